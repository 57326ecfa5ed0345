"""The Python example of the README."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.slow
def test_python_example_runs_as_written():
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(compile(example, str(README), "exec"), names)
    assert names["deployment"].time_s == 30 * 86400
    assert names["score"] > 0.5
    recalibrated = names["recalibrated"]
    assert recalibrated.loss_after <= recalibrated.loss_before
    assert recalibrated.parameters in (0, 37 * 2 * 384 + 770)
    assert names["task"].evaluate(names["model"]) >= names["score"] - 0.1
