"""The examples in the docstrings run."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import analog_grasp

# Tested in tests/tasks: one of its examples registers a task, which is possible only once.
ELSEWHERE = "analog_grasp.tasks"
MODULES = [
    module.name
    for module in pkgutil.walk_packages(analog_grasp.__path__, "analog_grasp.")
    if not module.name.startswith(ELSEWHERE) and not module.name.endswith(".__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module)
    assert result.failed == 0
    # An example that doctest does not find, such as one below an attribute, would never run.
    assert result.attempted or ">>> " not in Path(module.__file__).read_text(encoding="utf-8")


def test_every_package_is_covered():
    packages = {name.split(".")[1] for name in MODULES}
    expected = {"adapters", "costs", "crossbar", "devices", "kernels", "report", "study"}
    assert packages >= expected | {"training", "tuning", "utils"}
