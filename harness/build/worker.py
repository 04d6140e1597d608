"""The build worker: `python -m harness.build.worker JOB.json`, a process of its own with the toolchain's environment.

The shared half runs once: load, score the float model, quantise, score QDQ, export, decompose. Then the process
forks one child an output (SoC × mode × target), which lowers from memory: nothing of the shared half is done or
copied twice. kv needs the decode graph only, so its children start while the prefill graph is still prepared. Hybrid
shares that decode graph and lookahead the prefill graph.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from harness.build import upstream
from harness.build.checkpoint import load_state_dict
from harness.build.events import Event, emit, stage
from harness.build.job import BuildJob, Output
from harness.build.lpbq import round_block_scales
from harness.build.reference import FILE, FP_FILE, QDQ_FILE, Reference
from harness.build.score import prepare_text
from harness.build.spinquant import rotate
from harness.build.testify import REPLICAS, testify, testify_lookahead
from harness.build.witness import load_witness, lookahead_file, save_lookahead
from harness.model_file import Mode
from harness.models import ModelSpec, load_model
from harness.runtime.context_graph import ContextGraph
from harness.runtime.lookahead import Settings
from harness.text.tokenizer import tokenizer_files
from harness.toolchain.mends import write_params

# The two modules take about 11 bytes a weight on disk: kept where that stays below 2 GB or so.
KEEP_MODULES_BELOW_WEIGHTS = 200_000_000
_PR_SET_PDEATHSIG = 1


def run(job: BuildJob) -> int:
    """Builds every output of the job; returns how many failed."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    spec = load_model(job.model_file)
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="htpfarm-build-") as name:
        return _build(job, spec, Path(name), times)


def _build(job: BuildJob, spec: ModelSpec, scratch: Path, times: dict[str, float]) -> int:
    modes = {output.mode for output in job.outputs}
    with stage("load", times):
        checkpoint = scratch / "checkpoint.pt"
        torch.save(rotate(load_state_dict(spec), spec.params, spec.recipe.spinquant), checkpoint)
        params = write_params(spec.params.model_args(), scratch)
        mode = Mode.KV if modes == {Mode.KV} else Mode.HYBRID
        decoders = upstream.construct(spec, upstream.control_args(spec, mode, job.lengths, params, checkpoint))
        ahead = None
        if Mode.LOOKAHEAD in modes:
            args = upstream.control_args(spec, Mode.LOOKAHEAD, job.lengths, params, checkpoint)
            ahead = upstream.lookahead_decoder(spec, args)
        text = prepare_text(spec, job.lengths.max_seq_len, scratch, job.calibration)
    soc = job.outputs[0].soc

    def logits(tokens: list[int]) -> torch.Tensor:
        return upstream.full_logits(decoders.calibration_prefill, tokens)

    new_reference = not (job.reference / FILE).is_file()
    keep = sum(p.numel() for p in decoders.decode.decoder.parameters()) < KEEP_MODULES_BELOW_WEIGHTS
    folder = Path(tempfile.mkdtemp(prefix=".reference-", dir=job.reference.parent)) if new_reference else job.reference
    if new_reference:
        with stage("score FP", times):
            fp = text.score(logits)
            if keep:
                upstream.save_reference(decoders, folder / FP_FILE)
    with stage("quantise", times):
        upstream.quantise(decoders, text.calibration, job.lengths.max_seq_len, soc, ahead)
        round_block_scales(decoders.calibration_prefill.decoder)
    if new_reference:
        with stage("score QDQ", times):
            qdq = text.score(logits)
            scale = decoders.decode.meta["get_logits_scale"]
            tokenizer = text.tokenizer_file.name
            reference = Reference(
                job.lengths.max_seq_len, text.held_out, fp, qdq, tokenizer, scale, spec.params.sliding_window
            )
            for file in tokenizer_files(text.tokenizer_file):
                shutil.copy(file, folder / file.name)
            if keep:
                upstream.save_reference(decoders, folder / QDQ_FILE)
            (folder / FILE).write_text(reference.to_json(), encoding="utf-8")
        with stage("witness", times):
            graph = upstream.context_graph(decoders, spec.params.sliding_window)
            dithered = upstream.dithered(decoders, graph, REPLICAS)
            size = (spec.max_new_tokens, job.lengths.max_seq_len)
            testify(graph.logits, dithered, text.witnessed, text.prompts, *size).save(folder)
            _publish(folder, job.reference)
    if ahead is not None:
        with stage("witness of lookahead", times):
            _lookahead_witness(job, spec, upstream.context_graph(decoders, spec.params.sliding_window))
    if mode is Mode.HYBRID:
        with stage("quantise prefill", times):
            upstream.quantise_prefill(decoders, soc)
    # Needed for the encodings only, and the largest graph.
    del decoders.calibration_prefill
    decode_name, prefill_name = upstream.graph_names()
    any_spec = upstream.compiler_spec(soc, job.outputs[0].target, spec.shards)
    children = Children(job, spec, times)

    def wanted(mode: Mode) -> list[Output]:
        return [output for output in job.outputs if output.mode is mode]

    decode, prefill = [], []
    if modes & {Mode.KV, Mode.HYBRID}:
        with stage("export decode", times):
            decode = [upstream.to_edge(decoders.decode, decode_name, any_spec)]
        children.start(wanted(Mode.KV), decode, decoders.decode.meta)
    if modes & {Mode.HYBRID, Mode.LOOKAHEAD}:
        with stage("export prefill", times):
            prefill = [upstream.to_edge(decoders.prefill, prefill_name, any_spec)]
        children.start(wanted(Mode.HYBRID), decode + prefill, decoders.decode.meta)
    if ahead is not None:
        with stage("export lookahead", times):
            graphs = [upstream.to_edge(ahead, decode_name, any_spec), *prefill]
        # Constant methods of our own, for the runner to refuse other settings; upstream's runner does not read them.
        ours = {f"get_{name}": getattr(job.lengths, name) for name in ("ngram", "window", "gcap")}
        children.start(wanted(Mode.LOOKAHEAD), graphs, {**ahead.meta, **ours})
    return children.finish()


def _lookahead_witness(job: BuildJob, spec: ModelSpec, graph: ContextGraph) -> None:
    """Writes what lookahead does on QDQ's logits, unless the reference has it already."""
    lengths = job.lengths
    settings = Settings(lengths.ngram, lengths.window, lengths.gcap)
    path = lookahead_file(job.reference, settings)
    if path.is_file():
        return
    prompts = load_witness(job.reference).prompts
    size = (spec.max_new_tokens, lengths.max_seq_len)
    save_lookahead(path, {p: testify_lookahead(graph.logits, settings, text, *size) for p, text in prompts.items()})


class Children:
    """The forked children: at most `job.parallel` at once, each lowering one output from inherited memory.

    Forks happen only between steps of the main thread, so that a child never inherits half a computation: an output
    that finds no place when it is given waits for the next step's end.
    """

    def __init__(self, job: BuildJob, spec: ModelSpec, times: dict[str, float]) -> None:
        self._job, self._spec, self._times = job, spec, times
        self._context = multiprocessing.get_context("fork")
        self._waiting: list[tuple[Output, list[upstream.EdgeGraph], dict[str, object], dict[str, float]]] = []
        self._running: list[multiprocessing.process.BaseProcess] = []
        self._failed = 0

    def start(self, outputs: list[Output], graphs: list[upstream.EdgeGraph], metadata: dict[str, object]) -> None:
        """Takes outputs on and starts as many as there are places for; does not wait.

        Args:
            outputs: what to lower the graphs for.
            graphs: decode, or decode and prefill.
            metadata: constant methods of the `.pte`.
        """
        self._waiting += [(output, list(graphs), dict(metadata), dict(self._times)) for output in outputs]
        self._pump()

    def finish(self) -> int:
        """Waits for all; returns how many failed."""
        while self._waiting or self._running:
            self._pump()
            time.sleep(0.05)
        return self._failed

    def _pump(self) -> None:
        for child in [child for child in self._running if not child.is_alive()]:
            child.join()
            self._running.remove(child)
            if child.exitcode != 0:
                self._failed += 1
                if child.exitcode is not None and child.exitcode < 0:
                    # Killed: it had no chance to say so itself.
                    emit(Event("failed", child.name, detail=f"killed by signal {-child.exitcode}"))
        while self._waiting and len(self._running) < self._job.parallel:
            output, graphs, metadata, times = self._waiting.pop(0)
            arguments = (output, graphs, self._job, self._spec, metadata, times)
            child = self._context.Process(target=_lower_child, args=arguments, name=output.key)
            child.start()
            self._running.append(child)


def _lower_child(
    output: Output,
    graphs: list[upstream.EdgeGraph],
    job: BuildJob,
    spec: ModelSpec,
    metadata: dict[str, object],
    times: dict[str, float],
) -> None:
    """Body of a forked child: lowers into a scratch folder beside its cache folder, then renames."""
    _die_with_parent()
    # OpenMP's thread pool does not survive a fork.
    torch.set_num_threads(1)
    output.folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".build-", dir=output.folder.parent))
    log = scratch / "build.log"
    events = os.dup(1)
    with log.open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    start = time.monotonic()
    try:
        options = upstream.compiler_spec(output.soc, output.target, spec.shards)
        upstream.lower(graphs, dict(metadata), options, spec.shards, scratch / "model.pte")
        times["lower"] = round(time.monotonic() - start, 3)
        _write_manifest(scratch, output, times)
        _publish(scratch, output.folder)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        failure = job.failures / f"{output.key}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        failure.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(log, failure)
        shutil.rmtree(scratch, ignore_errors=True)
        os.dup2(events, 1)
        emit(Event("failed", output.key, time.monotonic() - start, str(failure)))
        sys.stdout.flush()
        os._exit(1)
    sys.stdout.flush()
    os.dup2(events, 1)
    emit(Event("done", output.key, times["lower"]))
    sys.stdout.flush()
    # No interpreter shutdown: the QNN libraries' and torch's destructors belong to the parent's memory.
    os._exit(0)


def _write_manifest(scratch: Path, output: Output, times: dict[str, float]) -> None:
    pte = scratch / "model.pte"
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    manifest = {
        "key": output.key,
        "mode": output.mode,
        "soc": output.soc,
        "target": output.target,
        "bytes": pte.stat().st_size,
        "stages_s": times,
        "peak_mb": round(peak_kb / 1024, 1),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [sys.executable, *sys.argv],
        "fingerprint": output.fingerprint,
    }
    (scratch / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def _publish(scratch: Path, folder: Path) -> None:
    """Makes a scratch folder visible under its name, atomically; where another builder was first, theirs stays."""
    for path in scratch.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    # mkdtemp makes it private; a cache may be shared between users of a lab host.
    scratch.chmod(0o755)
    try:
        scratch.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(scratch, ignore_errors=True)


def _die_with_parent() -> None:
    """Asks the kernel to end this process when its parent dies, so that a killed run leaves no compiler behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Entry point."""
    _die_with_parent()
    job = BuildJob.from_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    job.reference.parent.mkdir(parents=True, exist_ok=True)
    failed = run(job)
    sys.stdout.flush()
    os._exit(1 if failed else 0)


if __name__ == "__main__":
    main()
