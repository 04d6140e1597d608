"""How much faster is our perplexity than that of ExecuTorch's own tasks_eval? Same .pte, virtual phone and tokens.

    python benchmarks/perplexity_vs_upstream.py [--tokens 4064] [--graphs prefill,kv] [--json]

Three arms in one run, one after the other, each a process of its own, timed from its start to its end:

    upstream   examples/qualcomm/oss_scripts/llama/llama.py --pre_gen_pte … --eval_methods tasks_eval, unmodified: a
               runner for each window, the .pte pushed each time, token by token, logits pulled
    prefill    ours through the prefill graph: one runner, blocks of AR tokens, log-likelihoods sent back
    kv         ours through the decode graph, token by token as upstream

In the times: the process's start, its imports, pushing to a phone that has none of its files, the runner's start, the
scoring, the end. Not in them: compiling, starting the rack, writing the folder that `htpfarm rack build-dir` writes.
Upstream is told that there is no hub (HF_HUB_OFFLINE), so that it does not wait for one.

The tokens are the start of the model's held-out text, as many as make whole windows of upstream's (a context less one),
so that every arm scores the same windows. The kv graph's word perplexity has to be upstream's, to four digits.
"""

from __future__ import annotations

import argparse
import bisect
import datetime
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.build.builder import Builder, Request
from harness.build.cache import Artifact, locate
from harness.farm.connect import AdbServer
from harness.farm.deploy import deploy
from harness.farm.lease import Owner
from harness.farm.payload import sim_payload
from harness.farm.recover import leased
from harness.farm.resident import Resident, resident_spec
from harness.farm.workspace import ROOT
from harness.matrix import cells
from harness.model_file import Mode
from harness.models import ModelSpec, load_models
from harness.paths import MODELS, REPOSITORY
from harness.rack import build_dir, manage
from harness.runtime.cores import CORE_LOCKS, make_core_locks
from harness.soc import PHONE_KINDS, find_soc
from harness.target import Target
from harness.text.decoders import VERSIONS
from harness.text.heldout import prefix_token
from harness.text.tokenizer import Tokenizer, load_tokenizer
from harness.text.windows import rolling_windows
from harness.toolchain.environment import find_toolchain, fingerprint

MODEL, PHONE = "tiny_llama", PHONE_KINDS["galaxy_s24"]
TASK = """\
task: heldout
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
"""
LIMIT_S = 3600.0


@dataclass(frozen=True)
class Arm:
    """What one arm took, in seconds, and found.

    Attributes:
        name: `upstream`, or the graph.
        whole: from the process's start to its end.
        scoring: of that, from the first window to the last; for upstream with all its runners' starts, which belong to
            the windows.
        steps: of that, what the graph's executions took as the runner measured them; 0 for upstream, which does not
            say.
        word_ppl: word perplexity.
    """

    name: str
    whole: float
    scoring: float
    steps: float
    word_ppl: float


@dataclass(frozen=True)
class Setting:
    """What the arms share."""

    spec: ModelSpec
    artifact: Artifact
    state: manage.RackState
    text: str
    context: int
    folder: Path

    @property
    def serial(self) -> str:
        return self.state.phones[0].serial


def main() -> None:
    """Runs the arms and prints their times and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default=4064, type=int, help="at most; rounded down to whole windows")
    parser.add_argument("--graphs", default="prefill,kv", help="which of ours to run")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--score", type=Path, help=argparse.SUPPRESS)  # the inside of our arms
    options = parser.parse_args()
    if options.score:
        score(json.loads(options.score.read_text()))
        return
    spec = load_models(MODELS)[MODEL]
    artifact = compiled(spec)
    context = spec.lengths.max_seq_len - 1
    text, count = whole_windows(spec, options.tokens, context)
    with tempfile.TemporaryDirectory(prefix="htpfarm-benchmark-") as name:
        folder = Path(name)
        state = start_rack(folder)
        try:
            setting = Setting(spec, artifact, state, text, context, folder)
            arms = [ours(setting, graph) for graph in options.graphs.split(",")]
            arms.append(upstream(setting))
        finally:
            manage.down(folder / "rack")
    if options.json:
        print(json.dumps({"tokens": count, "arms": [asdict(arm) for arm in arms]}))
    else:
        report(arms, count, count // context)
    by_name = {arm.name: arm for arm in arms}
    if "kv" in by_name and not math.isclose(by_name["kv"].word_ppl, by_name["upstream"].word_ppl, rel_tol=5e-5):
        sys.exit("the kv graph's word perplexity is not upstream's: the arms did not do the same work")


def compiled(spec: ModelSpec) -> Artifact:
    """The model's hybrid for the phone, from the cache or compiled now."""
    (cell,) = cells([spec], [Mode.HYBRID], [find_soc(PHONE.soc)])
    toolchain = find_toolchain()
    artifact = locate(spec, cell.mode, cell.soc, Target.SIM, cell.lengths, fingerprint(toolchain))
    with tempfile.TemporaryDirectory(prefix="htpfarm-benchmark-") as logs:
        for result in Builder(toolchain, Path(logs)).build([Request(cell, Target.SIM, artifact)]):
            if result.error:
                raise result.error
    return artifact


def whole_windows(spec: ModelSpec, tokens: int, context: int) -> tuple[str, int]:
    """A start of the held-out text that makes whole windows of `context` tokens, and its tokens: `tokens` at most."""
    tokenizer, text = tokenizer_of(spec), spec.eval.text.read_text(encoding="utf-8")

    def count(end: int) -> int:
        return len(tokenizer.encode(text[:end], bos=False))

    for wanted in range(min(tokens, count(len(text))) // context * context, 0, -context):
        # A longer text may have a token less where a piece is completed, so look around.
        near = bisect.bisect_right(range(len(text) + 1), wanted, key=count)
        for end in range(min(near + 16, len(text)), max(near - 64, 0), -1):
            if count(end) == wanted:
                return text[:end], wanted
    sys.exit(f"--tokens must be at least {context}")


def tokenizer_of(spec: ModelSpec) -> Tokenizer:
    """The model's own tokenizer."""
    assert spec.tokenizer.path is not None
    return load_tokenizer(spec.tokenizer.path)


def start_rack(folder: Path) -> manage.RackState:
    """A rack of one phone, new, so that nothing is on it."""
    locks = make_core_locks()
    environment = {**find_toolchain().environment({}), CORE_LOCKS: str(locks)}
    return manage.up([("phone", PHONE)], state_dir=folder / "rack", runner_env=environment, expose=[locks])


def ours(setting: Setting, graph: str) -> Arm:
    """One of our arms: this script again, as a process of its own, with a phone that has none of our files."""
    link = AdbServer(setting.state.adb_host, setting.state.adb_port).link(setting.serial)
    link.must(["rm", "-rf", ROOT])
    job = setting.folder / f"{graph}.json"
    job.write_text(
        json.dumps(
            {
                "graph": graph,
                "serial": setting.serial,
                "port": setting.state.adb_port,
                "pte": str(setting.artifact.pte),
                "text": setting.text,
                "context": setting.context,
            }
        )
    )
    argv = [sys.executable, str(Path(__file__).resolve()), "--score", str(job)]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    start = time.monotonic()
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    whole = time.monotonic() - start
    if done.returncode:
        sys.exit(f"the {graph} arm failed\n{done.stderr[-3000:]}")
    said = json.loads(done.stdout)
    words = len(re.split(r"\s+", setting.text))  # lm-eval's rule
    arm = Arm(graph, whole, said["scoring"], said["steps"], math.exp(-said["log_likelihood"] / words))
    print(f"{graph}: {whole:.1f} s", file=sys.stderr, flush=True)
    return arm


def score(job: dict[str, Any]) -> None:
    """The inside of our arms: deploys, starts the runner, scores, and prints seconds and the log-likelihood."""
    from harness.evaluate.phone_scorer import PhoneScorer

    spec = load_models(MODELS)[MODEL]
    tokenizer = tokenizer_of(spec)
    assert spec.tokenizer.path is not None
    windows = rolling_windows(tokenizer.encode(job["text"], bos=False), prefix_token(tokenizer), job["context"])
    link = AdbServer(port=job["port"]).link(job["serial"])
    with leased(link, Owner.this_process("benchmark")):
        payload = sim_payload(Path(job["pte"]), spec.tokenizer.path)
        deployed = deploy(link, payload.files)
        started = resident_spec(
            payload, run_id="benchmark", number=0, decoder_version=VERSIONS[spec.decoder], eval_mode=1
        )
        with Resident(link, deployed, started) as resident:
            scorer = PhoneScorer(resident, job["graph"])
            start = time.monotonic()
            results = scorer.score(windows)
            scoring = time.monotonic() - start
    print(
        json.dumps(
            {
                "scoring": scoring,
                "steps": sum(result.seconds for result in results),
                "log_likelihood": math.fsum(value for result in results for value in result.logprobs),
            }
        )
    )


def upstream(setting: Setting) -> Arm:
    """llama.py's tasks_eval over the same text, as one document of an lm-eval task of its own."""
    toolchain = find_toolchain()
    made = build_dir.write_build_dir(setting.folder / "build-dir", toolchain)
    files = build_dir.write_model(made, setting.spec, {(PHONE.soc, Mode.HYBRID): setting.artifact})
    data, task = setting.folder / "text.jsonl", setting.folder / "task.yaml"
    data.write_text(json.dumps({"text": setting.text}) + "\n")
    task.write_text(TASK.format(data=data))
    argv = build_dir.command(
        *(made, toolchain, files),
        serial=setting.serial,
        soc=PHONE.soc,
        mode=Mode.HYBRID,
        methods=(build_dir.TASKS_EVAL,),
        prompt="unused",
        more=("--eval_tasks", str(task)),
    )
    env = build_dir.environment(build_dir.exports(made, toolchain, setting.state))
    env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(setting.folder / "datasets")}
    start = time.monotonic()
    done = subprocess.run(
        argv, cwd=made.run, env=env, capture_output=True, text=True, errors="replace", timeout=LIMIT_S, check=False
    )
    whole = time.monotonic() - start
    result = re.search(r"heldout: \{.*'word_perplexity,none': (?:np\.float64\()?([\d.e+-]+)", done.stderr)
    if done.returncode or not result:
        sys.exit(f"upstream failed\n{done.stderr[-3000:]}")
    scoring = logged(done.stderr, "heldout: {") - logged(done.stderr, "Running loglikelihood_rolling requests")
    print(f"upstream: {whole:.1f} s", file=sys.stderr, flush=True)
    return Arm("upstream", whole, scoring, 0.0, float(result[1]))


def logged(log: str, message: str) -> float:
    """When llama.py logged a message, in seconds: `[INFO 2026-01-31 12:34:56,789 file.py:1] message`."""
    found = re.search(rf"\[INFO (\S+ \S+),(\d+) \S+\] {re.escape(message)}", log)
    if found is None:
        sys.exit(f"upstream did not log {message!r}\n{log[-3000:]}")
    return datetime.datetime.fromisoformat(found[1]).timestamp() + int(found[2]) / 1000


def report(arms: list[Arm], tokens: int, windows: int) -> None:
    """The table and the ratios."""
    base = next(arm for arm in arms if arm.name == "upstream")
    print(f"{MODEL}, hybrid, {PHONE.label} ({PHONE.soc}, simulator): {tokens} tokens in {windows} windows\n")
    print(f"{'':10}{'whole':>10}{'scoring':>10}{'steps':>10}{'word ppl':>12}{'whole, upstream = 1':>22}{'scoring':>10}")
    for arm in arms:
        steps = f"{arm.steps:.1f} s" if arm.steps else "-"
        ratios = f"{base.whole / arm.whole:.1f}×", f"{base.scoring / arm.scoring:.1f}×"
        print(
            f"{arm.name:10}{arm.whole:8.1f} s{arm.scoring:8.1f} s{steps:>10}{arm.word_ppl:12.4f}"
            f"{ratios[0]:>22}{ratios[1]:>10}"
        )
    for arm in arms:
        if arm.name == "kv":
            rest = arm.whole - arm.steps
            print(f"\nkv: what is no step took {rest:.1f} s, {rest / arm.steps:.1%} of the steps")


if __name__ == "__main__":
    main()
