"""`pytest -m device` as a user runs it: bad input, a run from given files, and what kill -9 leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from events import HANG_S, until
from test_judged_cells import SCORE_CHECKS, TEXT_CHECKS

from harness.build.cache import Artifact
from harness.build.given import export
from harness.farm.lease import holders
from harness.matrix import cells
from harness.model_file import Mode
from harness.models import load_models
from harness.paths import MODELS, REPOSITORY
from harness.results import Status, load_run
from harness.soc import find_soc

pytestmark = pytest.mark.slow

RACK = """\
version: 1
phones:
  - name: one
    virtual: galaxy_s24
"""


def device(*arguments: str, cache: Path, **environment: str) -> subprocess.Popen[str]:
    """`pytest -m device` with a cache, and so a rack and leases, of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-m", "device", "-p", "no:cacheprovider", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "HTPFARM_CACHE": str(cache), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=2 * HANG_S)
    return process.returncode, output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "tiny_lama"], ["CONFIG", "tiny_lama", "tiny_llama"]),
        (["--socs", "SM8651"], ["CONFIG", "SM8651", "SM8650"]),
        (["--modes", "kw"], ["CONFIG", "kw"]),
        (["--rack", "no/such.yaml"], ["CONFIG", "no/such.yaml"]),
        (["--socs", "SM8350"], ["CONFIG", "--socs SM8350", "htpfarm devices"]),
        (["--eval-tasks", "htpfarm_ending"], ["CONFIG", "htpfarm_ending", "htpfarm_endings"]),
        (["--eval-tasks", "hellaswag"], ["CONFIG", "hellaswag"]),
        (["--calib-samples", "no/such.json"], ["CONFIG", "--calib-samples no/such.json"]),
        (["--modes", "lookahead", "--ngram", "5", "--window", "16", "--gcap", "16"], ["CONFIG", "step of 128 tokens"]),
        (["--pte", "no/such/folder"], ["CONFIG", "tiny_llama-kv-SM8550.pte: not there"]),
    ],
)
def test_bad_input_ends_before_anything_runs(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    status, output = finished(device(*arguments, "--reports", str(tmp_path / "reports"), cache=tmp_path / "cache"))
    assert status == 2, output
    assert all(word in output for word in words), output
    assert "Traceback" not in output
    assert not left_over(tmp_path / "cache")


def test_a_broken_inventory_is_refused_by_file_and_line(tmp_path: Path) -> None:
    rack = tmp_path / "rack.yaml"
    rack.write_text(RACK + "    sok: SM8650\n")
    status, output = finished(device("--rack", str(rack), cache=tmp_path / "cache"))
    assert status == 2
    assert f"{rack}:5" in output
    assert "sok" in output


@pytest.mark.parametrize(
    ("phones", "words"),
    [
        ("  - {name: lab, serial: R3CX40ABCDE, soc: SM8650}\n", "--build-folder build-android"),
        ("  - {name: lab, serial: R3CX40ABCDE}\n  - {name: v, virtual: galaxy_s24}\n", "(lab) and virtual ones (v)"),
    ],
)
def test_real_phones_need_a_build_folder_and_a_run_of_their_own(tmp_path: Path, phones: str, words: str) -> None:
    rack = tmp_path / "rack.yaml"
    rack.write_text(f"version: 1\nphones:\n{phones}")
    status, output = finished(device("--rack", str(rack), cache=tmp_path / "cache"))
    assert status == 2
    assert words in output
    assert not left_over(tmp_path / "cache")


def test_no_compiler_is_told_with_the_remedy(tmp_path: Path) -> None:
    status, output = finished(device(cache=tmp_path / "cache", CC="/no/such/compiler", QNN_SDK_ROOT=""))
    assert status == 2
    assert "no C compiler" in output
    assert "install one" in output


def test_no_adb_is_told_with_the_remedy(tmp_path: Path) -> None:
    status, output = finished(device(cache=tmp_path / "cache", ADBUTILS_ADB_PATH="/no/such/adb"))
    assert status == 2
    assert "no adb: /no/such/adb cannot be run" in output
    assert "pip install" in output
    assert not left_over(tmp_path / "cache")


def test_a_full_disk_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    """A file system of 64 MB for the cache, in a mount namespace of its own."""
    cache, reports = tmp_path / "cache", tmp_path / "reports"
    cache.mkdir()
    mounted = f"mount -t tmpfs -o size=64m none {cache} && exec {sys.executable} -m pytest -m device"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f"{mounted} --reports {reports}"],
        cwd=REPOSITORY,
        env={**os.environ, "HTPFARM_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no namespaces here: {done.stderr}")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "a build needs 2.0 GB" in done.stdout + done.stderr
    assert "HTPFARM_CACHE" in done.stdout + done.stderr
    assert not left_over(cache)


@pytest.fixture(scope="module")
def given(tiny_artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for `--pte` with the tiny model's hybrid artifact for SM8650."""
    folder = tmp_path_factory.mktemp("pte")
    (cell,) = cells([load_models(MODELS)["tiny_llama"]], [Mode.HYBRID], [find_soc("SM8650")])
    export([(cell, tiny_artifacts["hybrid"])], folder)
    return folder


def left_over(cache: Path) -> list[str]:
    """Command lines of processes that belong to a cache's rack or runs."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            environment = process.environ() if "harness.runtime" in line else {}
        except psutil.Error:
            continue
        # Of a runner on a phone QNN_SDK_ROOT says so.
        if str(cache) in line or str(cache) in environment.get("QNN_SDK_ROOT", ""):
            found.append(line)
    return found


def live(reports: Path) -> str:
    return "".join(path.read_text() for path in reports.glob("*/live.log"))


def test_a_given_pte_is_evaluated_later_with_more_text_and_tasks(given: Path, tmp_path: Path) -> None:
    cache, reports, rack = tmp_path / "cache", tmp_path / "reports", tmp_path / "rack.yaml"
    rack.write_text(RACK)
    asked = ["--eval-tokens", "320", "--eval-tasks", "htpfarm_endings", "--eval-limit", "3"]
    arguments = ["--rack", str(rack), "--modes", "hybrid", "--pte", str(given), "--reports", str(reports), *asked]
    try:
        status, output = finished(device(*arguments, cache=cache))
    finally:
        _rack_down(cache)
    assert status == 0, output
    (folder,) = reports.glob("2*")
    run = load_run(folder)
    (cell,) = run.outcomes
    scored = {(record.ground, record.graph): record for record in run.perplexities[cell]}
    assert set(scored) == {("FP", "full"), ("QDQ", "full"), ("PHONE", "kv"), ("PHONE", "prefill")}
    assert {(record.tokens, record.words) for record in scored.values()} == {(320, scored["FP", "full"].words)}
    assert scored["PHONE", "kv"].steps >= 320  # and a few beyond the seams
    assert scored["PHONE", "prefill"].steps == 10  # blocks of 32
    names = {check.name for check in run.checks[cell]}
    assert names == {"whole_on_htp", *TEXT_CHECKS, *SCORE_CHECKS}
    assert {check.verdict for check in run.checks[cell]} == {"PASSED"}
    tasks = run.tasks[cell]
    assert [(task.ground, task.samples) for task in tasks] == [("FP", 3), ("QDQ", 3), ("PHONE", 3)]
    assert all({"acc", "acc_norm"} <= set(task.metrics) for task in tasks)
    lm_eval = json.loads((folder / tasks[-1].path).read_text())
    assert lm_eval["results"]["htpfarm_endings"]["acc,none"] == tasks[-1].metrics["acc"]
    assert not (cache / "artifacts").exists()


@pytest.mark.parametrize("moment", ["deploying", "prompt 1/", "scoring "])
def test_kill_9_leaves_no_lease_and_the_next_run_is_clean(moment: str, given: Path, tmp_path: Path) -> None:
    cache, reports, rack = tmp_path / "cache", tmp_path / "reports", tmp_path / "rack.yaml"
    rack.write_text(RACK)
    arguments = ["--rack", str(rack), "--modes", "hybrid", "--pte", str(given), "--reports", str(reports), "-n", "1"]
    try:
        first = device(*arguments, "--eval-tokens", "4096", cache=cache)  # far from its end when it is killed
        until(lambda: moment in live(reports))
        workers = psutil.Process(first.pid).children(recursive=True)
        first.send_signal(signal.SIGKILL)
        first.wait(timeout=HANG_S)
        psutil.wait_procs([w for w in workers if "pytest" in " ".join(_line(w))], timeout=HANG_S)
        assert holders(cache / "leases") == ()
        (folder,) = reports.glob("2*")
        killed = load_run(folder)
        assert [entry.cell for entry in killed.plan] == ["tiny_llama-hybrid-SM8650"]
        assert not killed.outcomes

        status, output = finished(device(*arguments, "--eval-tokens", "32", cache=cache))
        assert status == 0, output
        (again,) = [load_run(f) for f in reports.glob("2*") if f != folder]
        assert [o.status for o in again.outcomes.values()] == [Status.PASSED]
        assert load_run(folder).plan == killed.plan
        assert not [line for line in left_over(cache) if "harness.runtime" in line]
    finally:
        _rack_down(cache)
    until(lambda: not left_over(cache))


def test_kill_9_while_compiling_leaves_no_compiler(tmp_path: Path) -> None:
    cache, reports, rack = tmp_path / "cache", tmp_path / "reports", tmp_path / "rack.yaml"
    rack.write_text(RACK)
    try:
        run = device("--rack", str(rack), "--modes", "kv", "--reports", str(reports), cache=cache)
        until(lambda: "quantise …" in live(reports))
        workers = [
            p for p in psutil.Process(run.pid).children(recursive=True) if "harness.build.worker" in " ".join(_line(p))
        ]
        assert workers
        run.send_signal(signal.SIGKILL)
        run.wait(timeout=HANG_S)
        _, alive = psutil.wait_procs(workers, timeout=HANG_S)
        assert not alive
        (folder,) = reports.glob("2*")
        assert [entry.cell for entry in load_run(folder).plan] == ["tiny_llama-kv-SM8650"]
    finally:
        _rack_down(cache)
    until(lambda: not left_over(cache))


def _rack_down(cache: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "harness.cli", "rack", "down"],
        cwd=REPOSITORY,
        env={**os.environ, "HTPFARM_CACHE": str(cache)},
        timeout=HANG_S,
        check=True,
    )


def _line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []
