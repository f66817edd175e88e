"""`python -m distillkit`, the same as the `distillkit` command."""

import sys

from distillkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
