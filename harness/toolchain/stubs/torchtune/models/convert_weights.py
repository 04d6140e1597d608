"""ExecuTorch carries the same function; its converters merely import it from here."""

from executorch.examples.models.checkpoint import get_mapped_key

__all__ = ["get_mapped_key"]
