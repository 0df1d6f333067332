"""`python -m neva`, the same as the command `neva`."""

import sys

from neva.cli import main

if __name__ == "__main__":
    sys.exit(main())
