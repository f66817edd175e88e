"""`python -m distillkit`, the same as the `distillkit` command."""

import sys

from distillkit.cli import main

if __name__ == "__main__":
    code = main()
    if "torch.distributed" in sys.modules:  # --help does without
        from distillkit.world import leave

        leave(code)
    sys.exit(code)
