"""What a `.pte` says about itself: graphs, sizes, encodings, the chipset it was compiled for. Loads no library.

The metadata are constant methods (`get_n_layers`, …) whose values stand in the program's tables, and the delegate's
compile spec; both are read from the file, so a `.pte` can be checked where no QNN library works. Sources: ExecuTorch
1.5.1's `schema/program.fbs`, `backends/qualcomm/serialization/qc_compiler_spec.fbs`, and the inputs and outputs of
`examples/qualcomm/oss_scripts/llama/model/static_llama.py`.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ConfigError, ProductError
from harness.model_file import Mode
from harness.runtime.flatbuffer import MalformedError, Table, root
from harness.runtime.lookahead import Settings

KV_GRAPH = "kv_forward"
PREFILL_GRAPH = "prefill_forward"

_DTYPES = {0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 27: "uint16"}
"""`ScalarType` of program.fbs → numpy's name."""

_CHIPSETS = {
    **{39: "SA8295", 72: "SA8797", 60: "SC8380XP", 30: "SM8350", 36: "SM8450", 42: "SM8475", 43: "SM8550"},
    **{57: "SM8650", 69: "SM8750", 87: "SM8850", 46: "SSG2115P", 58: "SSG2125P", 45: "SXR1230P", 53: "SXR2230P"},
    **{75: "SXR2330P", 77: "QCS9100", 95: "SAR2230P", 52: "SA8255", 96: "SW6100", 93: "QCM6490", 97: "SM8845"},
}
"""`QcomChipset` of qc_compiler_spec.fbs → name."""

Value = int | float | bool | str


@dataclass(frozen=True)
class TensorSpec:
    """Shape, and dtype by numpy's name."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Graph:
    """One method that runs the decoder.

    Attributes:
        name: `kv_forward` or `prefill_forward`.
        ar_len: tokens one execution takes (AR).
        tokens, mask, positions: specs of [1,AR], [1,1,AR,CL] and [1,AR].
        sliding: whether a sliding-window mask follows the mask (gemma2, gemma3, gemma4).
        k_in, v_in: specs of the caches, one a layer: [1,Hkv,D,CL−AR] and [1,Hkv,CL−AR,D].
        logits: spec of [1,AR,V].
    """

    name: str
    ar_len: int
    tokens: TensorSpec
    mask: TensorSpec
    positions: TensorSpec
    sliding: bool
    k_in: tuple[TensorSpec, ...]
    v_in: tuple[TensorSpec, ...]
    logits: TensorSpec


@dataclass(frozen=True)
class Delegate:
    """The QNN compile spec: what the context binaries were built for.

    Attributes:
        soc: chipset by name, or `chipset N` for a number we do not know.
        htp_arch: Hexagon architecture, as 75.
        vtcm_mb: tightly coupled memory the graphs may use, in MB.
        shared_buffer: compiled for shared (rpcmem) buffers.
        weight_sharing: one copy of the weights for all graphs.
        contexts: number of delegates, over all methods.
        sizes: bytes of each context binary; fewer than delegates where methods share one.
    """

    soc: str
    htp_arch: int
    vtcm_mb: int
    shared_buffer: bool
    weight_sharing: bool
    contexts: int
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class ProgramInfo:
    """A static llama `.pte`.

    Attributes:
        path: the file.
        mode: derived from the graphs: kv (one graph), hybrid (prefill and kv with AR 1), lookahead (kv with AR > 1).
        n_layers: layers with a KV cache.
        n_kv_heads, head_dim: of the first layer.
        vocab: size of the logits' last dimension.
        context_len: CL, from the mask's last dimension.
        graphs: by name.
        logits_scale, logits_zero_point: logits = (raw − zero point) × scale; 1 and 0 for float logits.
        sliding_window: width for models that have one, else None.
        metadata: values of the constant methods, without `get_`.
        delegate: None if no QNN delegate is in it.
        operators: kernels beyond the delegate, as `llama::fallback.out`.
    """

    path: Path
    mode: Mode
    n_layers: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    context_len: int
    graphs: Mapping[str, Graph]
    logits_scale: float
    logits_zero_point: int
    sliding_window: int | None
    metadata: Mapping[str, tuple[Value, ...]]
    delegate: Delegate | None
    operators: tuple[str, ...]

    @property
    def kv(self) -> Graph:
        """The graph that decodes."""
        return self.graphs[KV_GRAPH]

    @property
    def prefill(self) -> Graph | None:
        """The graph that takes prompts in blocks; None in kv mode."""
        return self.graphs.get(PREFILL_GRAPH)

    @property
    def lookahead(self) -> Settings | None:
        """The settings it was compiled with, where it says so: ours do, upstream's do not."""
        values = [_first(self.metadata, name) for name in ("ngram", "window", "gcap")]
        return Settings(*(int(value) for value in values if value is not None)) if None not in values else None

    @property
    def kv_dtype(self) -> str:
        """numpy's name of the cache's dtype."""
        return self.kv.k_in[0].dtype


def read_info(path: Path) -> ProgramInfo:
    """Reads a `.pte`'s description; neither torch nor a QNN library is loaded.

    Raises:
        ConfigError: no such file, no ExecuTorch program, truncated, or not a static llama.
    """
    try:
        if path.stat().st_size == 0:
            raise ConfigError("the .pte file is empty", where=str(path), remedy="compile or copy it again")
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _parse(path, mapped)
    except OSError as error:
        raise ConfigError(f"cannot read the .pte: {error.strerror}", where=str(path)) from None
    except (MalformedError, RecursionError) as error:
        raise ConfigError(
            f"damaged .pte: {error}", where=str(path), remedy="compile it again, or copy it again in full"
        ) from None


def mode_error(info: ProgramInfo, mode: Mode) -> ProductError:
    """The refusal of a `.pte` that was compiled for another mode than it is to run in."""
    return ProductError(
        f"the .pte was compiled in {info.mode} mode and cannot run in {mode} mode",
        where=str(info.path),
        remedy=f"run it with the eval_mode of {info.mode}, or compile with --model_mode {mode}",
    )


def _parse(path: Path, mapped: mmap.mmap) -> ProgramInfo:
    head = bytes(mapped[:64])
    if head[4:6] != b"ET":
        raise ConfigError(
            "this is no ExecuTorch program: bytes 4 to 7 are not ET12",
            where=str(path),
            remedy="give the .pte that `htpfarm compile` or llama.py wrote",
        )
    size, program_size, segments = len(mapped), len(mapped), 0
    if head[8:12] == b"eh00":
        program_size = int.from_bytes(head[16:24], "little")
        segments = int.from_bytes(head[24:32], "little")
    if program_size > size:
        raise MalformedError(f"the program needs {program_size} bytes, the file has {size}")
    program = root(bytes(mapped[:program_size]))
    end = max((segments + s.integer(0, "Q") + s.integer(1, "Q") for s in program.tables(4)), default=0)
    if end > size:
        raise MalformedError(f"its segments end at byte {end}, the file at {size}")
    plans = {plan.text(0): plan for plan in program.tables(1)}
    if KV_GRAPH not in plans:
        raise ConfigError(
            f"not a static llama: it has no method {KV_GRAPH} (it has {', '.join(sorted(plans)) or 'none'})",
            where=str(path),
            remedy="compile it with ExecuTorch's examples/qualcomm/oss_scripts/llama, or `htpfarm compile`",
        )
    metadata = {name[4:]: _constants(plan) for name, plan in sorted(plans.items()) if name.startswith("get_")}
    graphs = {name: _graph(path, name, plans[name]) for name in (KV_GRAPH, PREFILL_GRAPH) if name in plans}
    run = [plans[name] for name in graphs]
    return _info(path, graphs, metadata, run, _delegate(program, run))


def _info(
    path: Path,
    graphs: Mapping[str, Graph],
    metadata: Mapping[str, tuple[Value, ...]],
    plans: list[Table],
    delegate: Delegate | None,
) -> ProgramInfo:
    kv = graphs[KV_GRAPH]
    if len({(g.mask.shape[-1], g.logits.shape[-1], len(g.k_in)) for g in graphs.values()}) != 1:
        raise MalformedError("its graphs disagree about context length, vocabulary or layers")
    mode = Mode.LOOKAHEAD if kv.ar_len > 1 else Mode.HYBRID if PREFILL_GRAPH in graphs else Mode.KV
    integer_logits = not kv.logits.dtype.startswith("float")
    scale, zero = _first(metadata, "logits_scale"), _first(metadata, "logits_zero_point")
    if integer_logits and (scale is None or zero is None):
        raise MalformedError("its logits are integers, but it has no get_logits_scale and get_logits_zero_point")
    window = _first(metadata, "sliding_window")
    operators = {f"{o.text(0)}.{o.text(1)}" for plan in plans for o in plan.tables(6)}
    return ProgramInfo(
        path=path,
        mode=mode,
        n_layers=len(kv.k_in),
        n_kv_heads=kv.k_in[0].shape[1],
        head_dim=kv.k_in[0].shape[2],
        vocab=kv.logits.shape[-1],
        context_len=kv.mask.shape[-1],
        graphs=dict(graphs),
        logits_scale=float(scale) if integer_logits and scale is not None else 1.0,
        logits_zero_point=int(zero) if integer_logits and zero is not None else 0,
        sliding_window=int(window) if window is not None else None,
        metadata=dict(metadata),
        delegate=delegate,
        operators=tuple(sorted(operators)),
    )


def _graph(path: Path, name: str, plan: Table) -> Graph:
    values = list(plan.tables(2))
    inputs = [_tensor(values[i]) for i in plan.integers(3)]
    outputs = [_tensor(values[i]) for i in plan.integers(4)]
    layers = (len(outputs) - 1) // 2
    extra = len(inputs) - 2 * layers
    mask = inputs[1].shape if len(inputs) > 1 else ()
    if layers < 1 or extra not in (3, 4) or len(mask) != 4 or len(outputs[0].shape) != 3 or mask[2] >= mask[3]:
        raise ConfigError(
            f"not a static llama with a KV cache: {name} has {len(inputs)} inputs and {len(outputs)} outputs",
            where=str(path),
            remedy="expected tokens, mask, positions and a K and a V cache for each layer",
        )
    caches = inputs[extra:]
    ar, context = mask[2], mask[3]
    for k, v in zip(caches[:layers], caches[layers:], strict=True):
        if len(k.shape) != 4 or len(v.shape) != 4 or k.shape[3] != context - ar or v.shape[2] != context - ar:
            raise MalformedError(f"{name}: a cache of {k.shape}, {v.shape} does not hold {context} − {ar} tokens")
    return Graph(
        name=name,
        ar_len=ar,
        tokens=inputs[0],
        mask=inputs[1],
        positions=inputs[extra - 1],
        sliding=extra == 4,
        k_in=tuple(caches[:layers]),
        v_in=tuple(caches[layers:]),
        logits=outputs[0],
    )


def _tensor(value: Table) -> TensorSpec:
    tensor = value.table(1)
    if value.integer(0, "B") != 5 or tensor is None:
        raise MalformedError("an input or output is no tensor")
    return TensorSpec(tensor.integers(2), _DTYPES.get(tensor.integer(0, "b"), "unknown"))


def _constants(plan: Table) -> tuple[Value, ...]:
    """The values a constant method returns: scalars, or one list."""
    values = list(plan.tables(2))
    found: list[Value] = []
    for index in plan.integers(4):
        kind, payload = values[index].integer(0, "B"), values[index].table(1)
        if payload is None:
            continue
        match kind:
            case 2:
                found.append(payload.integer(0, "q"))
            case 3:
                found.append(bool(payload.integer(0, "B")))
            case 4:
                found.append(payload.number(0))
            case 6:
                found.append(payload.text(0))
            case _:
                pass
    return tuple(found)


def _first(metadata: Mapping[str, tuple[Value, ...]], key: str) -> float | int | None:
    values = metadata.get(key, ())
    return values[0] if values and isinstance(values[0], (int, float)) else None


def _delegate(program: Table, plans: list[Table]) -> Delegate | None:
    delegates = [d for plan in plans for d in plan.tables(7) if d.text(0) == "QnnBackend"]
    specs = [spec for d in delegates for spec in d.tables(2) if spec.text(0) == "qnn_compile_spec"]
    if not specs:
        return None
    options = root(specs[0].blob(1))
    soc = options.table(0)
    htp = soc.table(1) if soc else None
    backend = options.table(1)
    htp_options = backend.table(1) if backend else None
    number = soc.integer(0) if soc else 0
    return Delegate(
        soc=_CHIPSETS.get(number, f"chipset {number}"),
        htp_arch=htp.integer(0) if htp else 0,
        vtcm_mb=htp.integer(1, "I") if htp else 0,
        shared_buffer=bool(options.integer(7, "B")),
        weight_sharing=bool(htp_options.integer(8, "B")) if htp_options else False,
        contexts=len(delegates),
        sizes=_sizes(program, delegates),
    )


def _sizes(program: Table, delegates: list[Table]) -> tuple[int, ...]:
    """Bytes of each delegate's blob, once; schema/program.fbs of ExecuTorch: in a segment, or inline."""
    places = [d.table(1) for d in delegates]
    found = dict.fromkeys((p.integer(0, "b"), p.integer(1, "I")) for p in places if p)
    inline, segments = list(program.tables(3)), list(program.tables(4))
    try:
        return tuple(segments[index].integer(1, "Q") if kind else len(inline[index].blob(0)) for kind, index in found)
    except IndexError:
        raise MalformedError("a delegate's blob is not in the file") from None
