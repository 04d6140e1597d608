"""The simulator's answers, remembered: the same graph of the same file gives the same outputs for the same inputs.

Most faults leave most executions as they are. Remembered ones cost no simulator, and where all are remembered not even
torch is loaded. Nothing else of the runner changes. Its speeds do: faults of speeds are run without this.
"""

from __future__ import annotations

import hashlib
import pickle
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from faults.fault import Patch
from faults.steps import Step


def remember(file: Path, sound: str = "") -> None:
    """Puts the memory between the runner and the engine. Called before anything is planted.

    Args:
        file: what it is kept in.
        sound: names a sound artifact. Two builds of it differ in bytes and compute the same: what they compute from
            the same random inputs tells it, and one remembers for the other. Empty: the file alone tells.
    """
    from harness.runtime.engine import Engine

    patch, memory = Patch(), _Memory(file)
    load_really, run_really = Engine.load, Engine.run

    @patch.around("harness.runtime.engine", "import_runtime")
    def import_runtime(_original: Any) -> None:
        """Not before it is needed."""

    @patch.around("harness.runtime.engine", "Engine.__post_init__")
    def post_init(original: Any, engine: Any) -> None:
        with Path(engine.info.path).open("rb") as stream:
            engine.memory_file = hashlib.file_digest(stream, "sha256").digest()
        engine.memory_names, engine.memory_ids = [], {}
        engine.memory_begin = lambda: original(engine)

    @patch.around("harness.runtime.engine", "Engine.load")
    def load(original: Any, engine: Any, names: Sequence[str]) -> None:
        for name in [name for name in names if name not in engine.memory_ids]:
            engine.memory_names.append(name)
            engine.memory_ids[name] = memory.program(engine.memory_file, name)
            if engine.memory_ids[name] is None:
                wake(engine)
                original(engine, [name])
                engine.memory_ids[name] = behaviour(engine, name) if sound else engine.memory_file
                memory.keep_program(engine.memory_file, name, engine.memory_ids[name])
        if engine.memory_begin is None:
            original(engine, names)

    @patch.around("harness.runtime.engine", "Engine.run")
    def run(original: Any, engine: Any, graph: str, inputs: Sequence[Any]) -> list[Any]:
        started = time.perf_counter()
        key = key_of(engine.memory_ids[graph], Step(engine, graph, list(inputs)))
        outputs = memory.get(key)
        if outputs is None:
            wake(engine)
            outputs = original(engine, graph, inputs)
            memory.put(key, outputs)
        else:
            engine.step_ms.setdefault(graph, []).append((time.perf_counter() - started) * 1000)
        return outputs

    def wake(engine: Any) -> None:
        """Loads what was put off."""
        if engine.memory_begin is not None:
            begin, engine.memory_begin = engine.memory_begin, None
            begin()
            load_really(engine, engine.memory_names)

    def behaviour(engine: Any, name: str) -> bytes:
        """What a graph computes from random inputs."""
        digest = hashlib.blake2b(f"{sound} {name}".encode(), digest_size=16)
        graph, generator = engine.info.graphs[name], np.random.default_rng(0)
        specs = [graph.tokens, graph.mask, *([graph.mask] if graph.sliding else []), graph.positions]
        limits = [engine.info.vocab, *([0] * (len(specs) - 2)), engine.info.context_len]
        for _ in range(2):
            inputs = []
            for spec, limit in zip(
                [*specs, *graph.k_in, *graph.v_in], [*limits, *([0] * 2 * len(graph.k_in))], strict=True
            ):
                # Of a mask or a cache, any value will do; small ones are numbers in every type.
                inputs.append(generator.integers(0, limit or 256, spec.shape).astype(spec.dtype))
            for array in run_really(engine, name, inputs):
                digest.update(array.tobytes())
        return digest.digest()


def key_of(program: bytes, step: Step) -> bytes:
    """What decides an execution's outputs: its inputs, but for columns of the cache that no row may see."""
    digest = hashlib.blake2b(program + step.graph.encode(), digest_size=16)
    columns = step.context - step.ar_len
    seen = np.zeros(columns, dtype=bool)
    for mask in step.masks:
        seen |= (mask[:, :columns] != step.block(mask)).any(axis=0)
    for array in step.inputs[: -2 * step.layers]:
        digest.update(array.tobytes())
    for layer in range(step.layers):
        digest.update(step.inputs[layer - 2 * step.layers][..., seen].tobytes())
        digest.update(step.inputs[layer - step.layers][:, :, seen].tobytes())
    return digest.digest()


class _Memory:
    """A file of outputs by a hash of the inputs. A program that never loaded is tried for real: it may not load."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._base = sqlite3.connect(file, timeout=60, isolation_level=None)
        self._base.execute("PRAGMA synchronous=OFF")
        self._base.execute("CREATE TABLE IF NOT EXISTS outputs (key BLOB PRIMARY KEY, value BLOB)")
        self._base.execute("CREATE TABLE IF NOT EXISTS programs (file BLOB, name TEXT, id BLOB)")

    def program(self, file: bytes, name: str) -> bytes | None:
        """What names a graph of a file that has loaded before."""
        found = self._base.execute("SELECT id FROM programs WHERE file = ? AND name = ?", (file, name)).fetchone()
        return None if found is None else bytes(found[0])

    def keep_program(self, file: bytes, name: str, known: bytes) -> None:
        """Remembers that it loads."""
        self._base.execute("INSERT INTO programs VALUES (?, ?, ?)", (file, name, known))

    def get(self, key: bytes) -> list[Any] | None:
        """Remembered outputs."""
        row = self._base.execute("SELECT value FROM outputs WHERE key = ?", (key,)).fetchone()
        return None if row is None else list(pickle.loads(row[0]))  # noqa: S301 - this process's own file

    def put(self, key: bytes, outputs: Sequence[Any]) -> None:
        """Remembers."""
        value = pickle.dumps([array.copy() for array in outputs], protocol=5)
        self._base.execute("INSERT OR REPLACE INTO outputs VALUES (?, ?)", (key, value))
