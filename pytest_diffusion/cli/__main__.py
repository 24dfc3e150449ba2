"""`python -m pytest_diffusion.cli`, where the command is not on the path."""

import sys

from pytest_diffusion.cli import main

if __name__ == "__main__":
    sys.exit(main())
