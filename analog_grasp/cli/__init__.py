"""The command line: `analog-grasp`."""

from analog_grasp.cli.main import main

__all__ = ["main"]
