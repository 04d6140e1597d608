"""Stub of torchtune.training: importable, and clear when used."""

from typing import Any


class FullModelHFCheckpointer:
    """Refuses: htpfarm converts checkpoints itself, without torchtune."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise RuntimeError(
            "torchtune is not installed and ExecuTorch's own weight converter asked for it; "
            "give the checkpoint to htpfarm, which converts it itself, or pip install torchtune"
        )
