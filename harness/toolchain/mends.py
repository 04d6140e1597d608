"""What the installed ExecuTorch lacks, and how each gap is closed. One function a mend; each says when it stops.

1. torchtune. Upstream's converters of four models import it at the top, so no model at all can be imported
   without it, and PyPI's torchtune does not work with the torchao that ExecuTorch pins. The mend is a folder on
   `PYTHONPATH` with the two names they import. It stops when torchtune is installed, or when no converter of
   upstream's imports it any more.
2. Architecture parameters. The wheel ships none of the `.json` files that upstream's `params_path` names. The
   mend passes `--params` with a file written from the model's YAML, always: the YAML is what the user sees
   and edits. Nothing of upstream's is replaced.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

from harness.files import write_atomically

STUBS = Path(__file__).with_name("stubs")


def stub_paths(executorch: Path) -> tuple[Path, ...]:
    """Folders to put on `PYTHONPATH` so that upstream's Llama scripts import: mend 1, where it is needed.

    Args:
        executorch: the folder of the `executorch` package.
    """
    spec = importlib.util.find_spec("torchtune")
    installed = spec is not None and spec.origin is not None and STUBS not in Path(spec.origin).parents
    return () if installed or not imports_torchtune(executorch) else (STUBS,)


def imports_torchtune(executorch: Path) -> bool:
    """Whether a weight converter of upstream's imports torchtune."""
    converters = sorted((executorch / "examples" / "models").glob("*/convert_weights.py"))
    return any(
        line.startswith(("from torchtune", "import torchtune"))
        for converter in converters
        for line in converter.read_text(encoding="utf-8").splitlines()
    )


def write_params(params: Mapping[str, object], folder: Path) -> Path:
    """Writes upstream's `--params` file from a model's YAML: mend 2. Returns its path in `folder`."""
    target = folder / "params.json"
    write_atomically(target, json.dumps(dict(params), indent=2, sort_keys=True))
    return target
