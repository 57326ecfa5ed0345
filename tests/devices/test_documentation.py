"""The examples in the docstrings run."""

import doctest
import importlib

import pytest

MODULES = ["card", "conductance", "curve", "noise", "profile", "seed", "time"]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(f"analog_grasp.devices.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
