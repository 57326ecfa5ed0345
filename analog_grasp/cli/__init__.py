"""The command line: `analog-grasp`."""

from analog_grasp.cli.app import main

__all__ = ["main"]
