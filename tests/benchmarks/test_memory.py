"""The benchmarks of deployment on small models."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "rows"),
    [
        ("memory.py", ["aihwkit, torch tile", "ours, bfloat16 from the file"]),
        ("streaming.py", ["1", "5"]),
        ("program_drift.py", ["pcm-nandakumar2019", "pcm-hermes-1"]),
    ],
)
def test_every_variant_has_a_row(script, rows):
    command = [sys.executable, BENCHMARKS / script, "--quick"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    table = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len({len(line) for line in table}) == 1
    assert set(rows) <= {line[0].removeprefix("| ") for line in table}
