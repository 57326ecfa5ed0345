"""The command line: `analog-grasp`."""

import gc

# Start-up makes many objects and no garbage, for which Python would search every 700 objects.
gc.set_threshold(50_000, *gc.get_threshold()[1:])

from analog_grasp.cli.main import main  # noqa: E402

__all__ = ["main"]
