"""The runner's word against the host's clock, on a virtual phone: right runs, and runs whose times are false.

    python benchmarks/speed_witness.py [--sessions N] [--busy N] [--mode kv|hybrid|lookahead] [--tokens N]

Each session is judged alone, as `speed_vs_host_clock` judges a cell; `--busy` starts loops that keep processors busy.
A right run that is INVALID, or a false one that is not, ends it with status 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.build.builder import Builder, Request
from harness.build.cache import locate
from harness.build.reference import load_reference
from harness.conduct.sides import launcher
from harness.conduct.speed_witness import Witnessed, session_witness, speed_check
from harness.farm.connect import AdbServer, PhoneLink
from harness.farm.deploy import DeployReport, deploy
from harness.farm.failures import classify
from harness.farm.payload import PayloadFile
from harness.farm.resident import Resident
from harness.farm.session import SessionSpec, prompt_flags, run_session
from harness.matrix import cells
from harness.model_file import Mode
from harness.models import load_models
from harness.paths import MODELS, REPOSITORY
from harness.rack import manage
from harness.soc import PHONE_KINDS, find_soc
from harness.target import Target
from harness.text.decoders import VERSIONS
from harness.toolchain.environment import find_toolchain, fingerprint

EVAL_MODE = {Mode.KV: "0", Mode.HYBRID: "1", Mode.LOOKAHEAD: "2"}
LIES = {
    "decode time / 1.2": "s.inference_end_ms = s.prompt_eval_end_ms + round(decode / 1.2)",
    "tok/s x 2": "s.inference_end_ms = s.prompt_eval_end_ms + round(decode / 2)",
    "all times / 1.2": "s.prompt_eval_end_ms = s.first_token_ms = s.inference_start_ms + round(prefill / 1.2); "
    "s.inference_end_ms = s.prompt_eval_end_ms + round(decode / 1.2)",
    "TTFT / 2": "s.inference_start_ms += round(prefill / 2)",
    "TTFT / 2, decode longer": "s.prompt_eval_end_ms = s.first_token_ms = s.inference_start_ms + round(prefill / 2)",
    "decode time x 1.2": "s.inference_end_ms = s.prompt_eval_end_ms + round(decode * 1.2)",
}


def lying(lie: str) -> str:
    """A program that is the runner, but for what it says of its times."""
    return (
        "import sys\nfrom harness.runtime import cli, stats\nsaid = stats.Stats.observer_line\n"
        "def false(s):\n"
        "    prefill = s.prompt_eval_end_ms - s.inference_start_ms\n"
        "    decode = s.inference_end_ms - s.prompt_eval_end_ms\n"
        f"    {lie}\n    return said(s)\n"
        "stats.Stats.observer_line = false\nsys.exit(cli.main())\n"
    )


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=3)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--mode", type=Mode, default=Mode.KV)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--right-only", action="store_true")
    options = parser.parse_args()
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
    try:
        with tempfile.TemporaryDirectory(prefix="htpfarm-") as folder:
            return _measure(options, Path(folder))
    finally:
        for loop in loops:
            loop.kill()


def _measure(options: argparse.Namespace, folder: Path) -> int:
    toolchain, model, mode = find_toolchain(), load_models(MODELS)["tiny_llama"], options.mode
    (cell,) = cells([model], [mode], [find_soc("SM8650")])
    artifact = locate(model, mode, cell.soc, Target.SIM, cell.lengths, fingerprint(toolchain))
    (built,) = Builder(toolchain, folder).build([Request(cell, Target.SIM, artifact)])
    if built.error:
        raise built.error
    tokenizer = artifact.reference / load_reference(artifact.reference).tokenizer
    lookahead = ("--ngram", str(cell.lengths.ngram), "--window", str(cell.lengths.window))
    flags = (
        *("--model_path", "model.pte", "--tokenizer_path", "tokenizer"),
        *("--decoder_model_version", VERSIONS[model.decoder], "--eval_mode", EVAL_MODE[mode]),
        *((*lookahead, "--gcap", str(cell.lengths.gcap)) if mode is Mode.LOOKAHEAD else ()),
    )
    shown = ("--seq_len", str(9 + options.tokens), "--temperature", "0", "--x_ignore_eos")
    prompt = prompt_flags([model.prompts[0]])
    files = [PayloadFile(artifact.pte, "model.pte"), PayloadFile(tokenizer, "tokenizer")]
    wrong = 0
    rack = manage.up(
        [("lab", PHONE_KINDS["galaxy_s24"])], state_dir=folder / "rack", expose=[folder, REPOSITORY], boot_delay=0.5
    )
    try:
        link = AdbServer(rack.adb_host, rack.adb_port).link(rack.phones[0].serial)
        link.wait_ready(60)
        for number, (name, lie) in enumerate({"right": None, **({} if options.right_only else LIES)}.items()):
            script = launcher(toolchain)
            if lie:
                program = folder / f"lie{number}.py"
                program.write_text(lying(lie))
                script = script.replace("-m harness.runtime", str(program))
            runner = folder / f"runner{number}"
            runner.write_text(script)
            deployed = deploy(link, [PayloadFile(runner, "qnn_llama_runner", True), *files])
            for session in range(options.sessions):
                spec = SessionSpec(
                    f"w{number}", session, "qnn_llama_runner", (*flags, *shown, *prompt),
                    outputs=("outputs.txt", "inference_speed.txt"), timeout_s=600,
                )  # fmt: skip
                result = run_session(link, deployed, spec, folder / f"{number}-{session}")
                if failure := classify(result):
                    raise SystemExit(f"{failure}")
                wrong += _show(name, session_witness(session, result), lie is not None)
            if lie is None:
                wrong += _show(name, _resident(link, deployed, flags), False)
    finally:
        manage.down(folder / "rack")
    return 1 if wrong else 0


def _resident(link: PhoneLink, deployed: DeployReport, flags: tuple[str, ...]) -> Witnessed:
    spec = SessionSpec("stays", 0, "qnn_llama_runner", ("--x_serve", *flags), timeout_s=600)
    with Resident(link, deployed, spec) as resident:
        for length in (1, 8, 32, 64, 100, 1, 8, 32):
            resident.generate([5] * length, max_new=1, timeout_s=600)
        return Witnessed(resident.claims)


def _show(name: str, witnessed: Witnessed, false: bool) -> int:
    check = speed_check("cell", [witnessed])
    print(f"{time.strftime('%H:%M:%S')}  {name:26} {check.verdict:11} {check.text}")
    for claim in witnessed.claims:
        off = claim.claimed_ms - claim.host_ms
        print(f"    {claim.what:8} {claim.claimed_ms:8.1f} {claim.host_ms:8.1f} {off:+8.1f}  adb {claim.adb_ms:.1f}")
    sys.stdout.flush()
    return int((check.verdict == "INVALID") is not false)


if __name__ == "__main__":
    sys.exit(main())
