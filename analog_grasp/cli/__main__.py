"""The command line as a module, which `torchrun -m analog_grasp.cli` starts."""

import sys

from analog_grasp.cli import main

if __name__ == "__main__":
    sys.exit(main())
