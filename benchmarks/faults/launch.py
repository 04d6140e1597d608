"""The runner's process on a virtual phone: `python -m faults.launch FLAGS`, in place of `python -m harness.runtime`.

Environment: `HTPFARM_FAULT` names what is planted, more than one with commas; `HTPFARM_TAP` the folder that gets what
the runner said; `HTPFARM_MEMORY` the file of remembered executions, if they are to be remembered, and
`HTPFARM_MEMORY_SOUND` which sound artifact runs. The rest is the launcher's of every virtual phone.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from harness.runtime.cores import bind_to_core

REFUSED = 70
"""Exit status where a fault cannot be planted."""


def main() -> int:
    """Plants, listens, runs the runner's own command line."""
    bind_to_core(os.environ)
    arguments = sys.argv[1:]
    import faults.catalog  # noqa: F401 - fills the catalog
    import harness.runtime.serve  # noqa: F401 - what is imported by name is replaced where it was imported
    from faults.fault import CATALOG, Patch
    from faults.tap import Tap
    from harness.runtime import cli

    if memory := os.environ.get("HTPFARM_MEMORY"):
        from faults.memo import remember

        remember(Path(memory), os.environ.get("HTPFARM_MEMORY_SOUND", ""))
    folder = Path(os.environ["HTPFARM_TAP"])
    patch = Patch({key: value for key, value in os.environ.items() if key.startswith("HTPFARM_FAULT_")}, folder)
    tap = Tap(patch, folder)
    try:
        for name in filter(None, os.environ.get("HTPFARM_FAULT", "").split(",")):
            CATALOG.faults[name].plant(patch)
            if not patch.places and not patch.before_main:
                raise RuntimeError(f"{name} planted nothing")
    except Exception:
        traceback.print_exc()
        print(f"cannot plant {os.environ.get('HTPFARM_FAULT')}", file=sys.stderr)
        (folder / "cannot-plant").write_text(traceback.format_exc())
        return REFUSED
    tap.listen()
    status = 1
    try:
        for call in patch.before_main:
            call(arguments)
        status = cli.main(arguments)
    finally:
        tap.write(arguments, status)
    return status


if __name__ == "__main__":
    sys.exit(main())
