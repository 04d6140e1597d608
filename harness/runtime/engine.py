"""Executes a `.pte`'s graphs through ExecuTorch's Python runtime. The only module here that imports torch to run.

`executorch.runtime` is a thin wrapper that imports the exporter (5 s and torchao); what it wraps, the bindings module
`executorch.extension.pybindings._C`, is imported directly, which takes milliseconds after torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from harness.errors import ConfigError, ProductError
from harness.runtime.program import ProgramInfo

Array = npt.NDArray[np.generic]

_KERNEL_LIBRARIES = {
    "llama::": ("extension/llm/custom_ops", "libcustom_ops_aot_lib.so"),  # llama::fallback, between shards
    "quantized_decomposed::": ("kernels/quantized", "libquantized_ops_aot_lib.so"),  # --embedding-quantize
}


class Executor(Protocol):
    """What a `Session` runs on: the simulator or phone, or a stand-in in tests."""

    @property
    def info(self) -> ProgramInfo:
        """The program it executes."""
        ...

    def run(self, graph: str, inputs: Sequence[Array]) -> list[Array]:
        """One execution: inputs and outputs in the graph's order. Outputs may be overwritten by the next one."""
        ...


@dataclass
class Engine:
    """A loaded program; graphs are loaded on first use, or by `load`.

    Attributes:
        info: its description.
        step_ms: milliseconds of every execution, by graph.
    """

    info: ProgramInfo
    step_ms: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import torch

        torch.set_num_threads(1)  # several runners share the host's cores; the graphs are QNN's, not torch's
        self._torch = torch
        self._methods: dict[str, Any] = {}
        for prefix, (folder, library) in _KERNEL_LIBRARIES.items():
            if any(name.startswith(prefix) for name in self.info.operators):
                torch.ops.load_library(str(_executorch() / folder / library))  # type: ignore[no-untyped-call]
        bindings = _bindings()
        try:
            self._program = bindings._load_program(str(self.info.path))
        except RuntimeError as error:
            raise ProductError(
                f"ExecuTorch refuses the program: {error}", where=str(self.info.path), remedy="compile it again"
            ) from None

    def load(self, names: Sequence[str]) -> None:
        """Loads graphs, which creates their QNN contexts.

        Raises:
            ProductError: a method or context does not load; QNN has written why to standard output and error.
        """
        for name in names:
            if name in self._methods:
                continue
            try:
                self._methods[name] = self._program.load_method(name)
            except RuntimeError as error:
                raise ProductError(
                    f"the graph {name} does not load: {error}",
                    where=str(self.info.path),
                    remedy="see QNN's lines above; on the simulator the .pte must be compiled for it, and the QNN "
                    "libraries must be on LD_LIBRARY_PATH (`htpfarm doctor`)",
                ) from None

    def run(self, graph: str, inputs: Sequence[Array]) -> list[Array]:
        """See `Executor.run`. Raises ProductError when the backend fails."""
        self.load([graph])
        tensors = [self._torch.from_numpy(array) for array in inputs]
        start = time.perf_counter()
        try:
            outputs = self._methods[graph](tensors, False)
        except RuntimeError as error:
            raise ProductError(f"{graph} failed: {error}", where=str(self.info.path)) from None
        self.step_ms.setdefault(graph, []).append((time.perf_counter() - start) * 1000)
        return [output.numpy() for output in outputs]


def import_runtime() -> None:
    """Imports torch and the bindings, so that their second does not count as loading the model."""
    importlib.import_module("torch")
    _bindings()


def _executorch() -> Path:
    spec = importlib.util.find_spec("executorch")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("ExecuTorch is not installed", where="runtime", remedy="pip install executorch")
    return Path(next(iter(spec.submodule_search_locations)))


def _bindings() -> Any:
    try:
        return importlib.import_module("executorch.extension.pybindings._C")
    except ImportError:
        # Older and newer releases may lay the extension out differently; this name is the public one.
        return importlib.import_module("executorch.extension.pybindings.portable_lib")
