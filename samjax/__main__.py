"""`python -m samjax`, the same as the program `samjax`."""

import sys

from samjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
