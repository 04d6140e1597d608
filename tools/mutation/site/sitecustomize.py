"""Read by every Python that a test starts: it gets the mutant too, and says which lines it ran.

The variables are set by `mutation.run`; without them nothing happens here.
"""

import os

if "MUTATION_MODULE" in os.environ or "MUTATION_TRACE" in os.environ:
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[2]))
    from mutation import inside

    sys.path.pop(0)
    inside.start()
