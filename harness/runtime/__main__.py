"""`python -m harness.runtime`."""

import os
import sys

from harness.runtime.cores import bind_to_core

if __name__ == "__main__":
    # Before torch and QNN are loaded: both count the cores once.
    bind_to_core(os.environ)

    from harness.runtime.cli import main

    sys.exit(main())
