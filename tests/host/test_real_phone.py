"""What a real phone needs that a virtual one does not, against a virtual phone that insists on each."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from events import HANG_S
from farm_rack import OBSERVER
from sample_run import planned
from test_ab import RUNNER
from test_judged_cells import SCORE_CHECKS, TEXT_CHECKS, leave, remove, truncate, without_modules
from test_plugin import device, finished

from harness.build.cache import Artifact
from harness.conduct.ab import measure_pairs
from harness.conduct.attempt import Attempt, Bench
from harness.conduct.live import LiveLog
from harness.conduct.phone_files import BUILD_FOLDER, BUILD_NAME, PhoneFiles, own_build_folder
from harness.conduct.real import check_real, target_of
from harness.conduct.run_cell import run_cell
from harness.conduct.sides import read_side
from harness.errors import ConfigError, FailureClass, InfraError
from harness.evaluate.choice import EvalChoice
from harness.evaluate.host import Host
from harness.farm.awake import kept_awake
from harness.farm.connect import PhoneLink
from harness.farm.deploy import deploy
from harness.farm.failures import Failure, classify
from harness.farm.health import HealthBook
from harness.farm.identity import attach, survey
from harness.farm.lease_service import HostLeases
from harness.farm.payload import Payload, android_payload
from harness.farm.prepare import Nurse
from harness.farm.session import SessionSpec, run_session
from harness.inventory import load_inventory
from harness.matrix import cells
from harness.model_file import Mode
from harness.models import ModelSpec, load_models
from harness.paths import MODELS, REPOSITORY
from harness.rack import manage
from harness.rack.image import LAUNCHER
from harness.rack.manage import RackState
from harness.results import DeployRecord, Record, RecordWriter, SampleRecord, Status, load_run
from harness.results.records import OutcomeRecord, RunInfo, utc_now
from harness.results.store import RunData
from harness.results.summary import exit_status, summarise
from harness.soc import PHONE_KINDS, SOCS
from harness.target import Target
from harness.toolchain.describe import toolchain_at
from harness.toolchain.environment import find_toolchain
from harness.verdicts import Judgement

LIBRARIES = (
    "libqnn_executorch_backend.so",
    "libQnnHtp.so",
    "libQnnHtpV75Stub.so",
    "libQnnHtpV75Skel.so",
    "libQnnHtpPrepare.so",
    "libQnnSystem.so",
)
INSISTS = f"""#!/bin/sh
insist() {{ echo "insists: $1" >&2; exit 3; }}
case $LD_LIBRARY_PATH in ''|*:*) insist "one LD_LIBRARY_PATH" ;; esac
for name in {" ".join(LIBRARIES)}; do [ -f "$LD_LIBRARY_PATH/$name" ] || insist "$name"; done
case $ADSP_LIBRARY_PATH in ''|*:*|*';'*) insist "one ADSP_LIBRARY_PATH" ;; esac
grep -q unsigned "$ADSP_LIBRARY_PATH/libQnnHtpV75Skel.so" || insist "the unsigned skel"
[ -x ./qnn_llama_runner ] || insist "chmod"
for word in "$@"; do case $word in --x_*) insist "the stock runner's flags" ;; esac; done
grep -q "svc power stayon true" /data/misc/logd/accepted || insist "staying awake"
grep -q "KEYCODE_WAKEUP" /data/misc/logd/accepted || insist "the screen"
grep -q "fixed-performance-mode-enabled true" /data/misc/logd/accepted || insist "fixed performance"
"""


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RackState]:
    folder = tmp_path_factory.mktemp("rack")
    script = folder / "insists.sh"
    good = f"echo text > outputs.txt\necho 1 > inference_speed.txt\necho '{OBSERVER}'\n"
    simulator = shlex.join(
        [
            *("env", *(f"{k}={v}" for k, v in find_toolchain().environment({}).items() if k != "PATH")),
            *(f"PYTHONPATH={REPOSITORY}", sys.executable, "-m", "harness.runtime"),
        ]
    )
    script.write_text(
        INSISTS + f'if [ -n "$SIMULATE$(cat simulate 2>/dev/null)" ]; then exec {simulator} "$@"; fi\n' + good
    )
    try:
        yield manage.up(
            [("lab", PHONE_KINDS["galaxy_s24"])],
            state_dir=folder,
            boot_delay=0.5,
            runner_argv=["/bin/sh", str(script)],
            expose=[folder],
            plain=False,
        )
    finally:
        manage.down(folder)


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A build folder and an SDK as ExecuTorch's and Qualcomm's are laid out."""
    build, sdk = tmp_path / "build-android", tmp_path / "sdk"
    runner = build / "examples/qualcomm/oss_scripts/llama/qnn_llama_runner"
    runner.parent.mkdir(parents=True)
    runner.write_text(LAUNCHER)
    for place in (
        build / "backends/qualcomm/libqnn_executorch_backend.so",
        *(
            sdk / "lib/aarch64-android" / f"{n}.so"
            for n in ("libQnnHtp", "libQnnHtpV75Stub", "libQnnHtpPrepare", "libQnnSystem")
        ),
        sdk / "lib/hexagon-v75/unsigned/libQnnHtpV75Skel.so",
    ):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{place.parent.name} {place.name}\n")
    monkeypatch.setenv(BUILD_FOLDER, str(build))
    monkeypatch.setenv("QNN_SDK_ROOT", str(sdk))
    return build, sdk


def link_to(rack: RackState, tmp_path: Path) -> PhoneLink:
    """By a rack file that knows it as a real phone."""
    file = tmp_path / "devices.yaml"
    file.write_text(
        f"version: 1\nadb: {{port: {rack.adb_port}}}\nphones:\n  - {{name: lab, serial: '{rack.phones[0].serial}'}}\n"
    )
    (phone,) = attach(load_inventory(file))
    assert phone.identity.soc == SOCS["SM8650"]
    return phone.link


def payload(built: tuple[Path, Path], tmp_path: Path) -> Payload:
    for name in ("m.pte", "t.model"):
        (tmp_path / name).write_text(name)
    return android_payload(
        tmp_path / "m.pte", tmp_path / "t.model", SOCS["SM8650"], build_folder=built[0], qnn_sdk_root=built[1]
    )


def run(link: PhoneLink, files: Payload, tmp_path: Path, **changes: object):
    deployed = deploy(link, files.files)
    spec = SessionSpec("real", 1, files.runner, ("--prompt", "x"), outputs=("outputs.txt",), timeout_s=HANG_S)
    return run_session(link, deployed, replace(spec, **changes), tmp_path / "out")  # type: ignore[arg-type]


def test_all_that_a_real_phone_needs_is_there(rack: RackState, built: tuple[Path, Path], tmp_path: Path) -> None:
    link, files = link_to(rack, tmp_path), payload(built, tmp_path)
    link.must("rm -f /data/misc/logd/accepted")
    before = link.must("settings put global stay_on_while_plugged_in 2; settings get global stay_on_while_plugged_in")
    with kept_awake(link):
        result = run(link, files, tmp_path)
    assert classify(result) is None, result.stderr
    accepted = link.must("cat /data/misc/logd/accepted").stdout
    assert accepted.index("mode-enabled true") < accepted.index("mode-enabled false")
    assert link.must("settings get global stay_on_while_plugged_in").stdout == before.stdout


@pytest.mark.parametrize("missing", LIBRARIES)
def test_it_insists_on_each_library(rack: RackState, built: tuple[Path, Path], tmp_path: Path, missing: str) -> None:
    link, files = link_to(rack, tmp_path), payload(built, tmp_path)
    fewer = replace(files, files=tuple(file for file in files.files if file.name != missing))
    with kept_awake(link):
        result = run(link, fewer, tmp_path)
    assert result.exit_status == 3
    assert missing in result.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"env": {"ADSP_LIBRARY_PATH": "/data/local/tmp:/vendor/lib/rfsa/adsp"}}, "one ADSP_LIBRARY_PATH"),
        ({"env": {"ADSP_LIBRARY_PATH": "/vendor"}}, "unsigned skel"),
        ({"env": {"LD_LIBRARY_PATH": ""}}, "one LD_LIBRARY_PATH"),
        ({"flags": ("--x_serve",)}, "stock runner's flags"),
    ],
)
def test_it_insists_on_paths_and_flags(
    rack: RackState, built: tuple[Path, Path], tmp_path: Path, change: dict, words: str
) -> None:
    link, files = link_to(rack, tmp_path), payload(built, tmp_path)
    with kept_awake(link):
        result = run(link, files, tmp_path, **change)
    failure = classify(result)
    assert failure
    assert words in result.stderr


def test_it_insists_on_being_awake(rack: RackState, built: tuple[Path, Path], tmp_path: Path) -> None:
    link, files = link_to(rack, tmp_path), payload(built, tmp_path)
    link.must("rm -f /data/misc/logd/accepted")
    assert "staying awake" in run(link, files, tmp_path).stderr


def test_real_phones_are_refused_before_anything_runs_without_what_they_need(
    built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "devices.yaml"
    file.write_text("version: 1\nphones:\n  - {name: lab, serial: R3, soc: SM8650}\n")
    phones = load_inventory(file).phones
    assert target_of(phones) is Target.ANDROID
    check_real(phones)
    (built[1] / "lib/hexagon-v75/unsigned/libQnnHtpV75Skel.so").unlink()
    with pytest.raises(ConfigError) as caught:
        check_real(phones)
    assert caught.value.evidence.endswith("libQnnHtpV75Skel.so")
    monkeypatch.delenv("QNN_SDK_ROOT")
    with pytest.raises(ConfigError, match="libraries for Android"):
        check_real(phones)
    monkeypatch.delenv(BUILD_FOLDER)
    with pytest.raises(ConfigError, match="no build folder"):
        check_real(phones)
    file.write_text(file.read_text() + "  - {name: v, virtual: galaxy_s24}\n")
    with pytest.raises(ConfigError, match=r"real phones \(lab\) and virtual ones \(v\)"):
        check_real(load_inventory(file).phones)


def test_phones_of_several_adb_servers_are_one_rack(tmp_path: Path) -> None:
    """As phones on other computers are: each rack has a server of its own, on a port of its own."""
    kinds = {"east": "galaxy_s24", "west": "galaxy_s25"}
    states = {}
    try:
        for name, kind in kinds.items():
            states[name] = manage.up([(name, PHONE_KINDS[kind])], state_dir=tmp_path / name, runner_argv=["/bin/true"])
        file = tmp_path / "devices.yaml"
        lines = ["version: 1", "racks:"]
        lines += [f"  - {{name: {n}, adb: {{host: localhost, port: {s.adb_port}}}}}" for n, s in states.items()]
        lines += ["phones:"]
        lines += [f"  - {{name: {n}, rack: {n}, serial: '{s.phones[0].serial}'}}" for n, s in states.items()]
        file.write_text("\n".join(lines))
        inventory = load_inventory(file)
        found = survey(inventory)
        assert [(p.phone.name, p.identity.soc) for p in found.attached] == [
            ("east", SOCS["SM8650"]),
            ("west", SOCS["SM8750"]),
        ]
        for phone in found.attached:
            assert phone.link.must("getprop ro.soc.model").stdout.strip() in ("SM8650", "SM8750")
        manage.down(tmp_path / "west")  # one computer less: the other's phone is still there, and the reason is said
        found = survey(inventory)
        assert [p.phone.name for p in found.attached] == ["east"]
        ((phone, error),) = found.refused
        assert phone.name == "west"
        assert isinstance(error, InfraError)
        assert "no adb server answers" in error.what
    finally:
        for name in states:
            manage.down(tmp_path / name)


# A against B: each side's own build for Android


def build_folder(built: tuple[Path, Path], folder: Path, percent: int) -> Path:
    """A build for Android whose runner insists as the phone does, and reports a clock that goes by the percentage."""
    made = folder / BUILD_NAME
    shutil.copytree(built[0], made)
    runner = made / "examples/qualcomm/oss_scripts/llama/qnn_llama_runner"
    _, _, body = RUNNER.format(percent=percent, tokens=16).partition("\n")
    runner.write_text(INSISTS + body)
    backend = made / "backends/qualcomm/libqnn_executorch_backend.so"
    backend.write_text(f"{percent}\n")
    return made


def ab_side(
    rack: RackState, tmp_path: Path, artifact: Artifact, name: str, files: PhoneFiles | None
) -> tuple[Attempt, list[Record]]:
    link_to(rack, tmp_path)
    (phone,) = attach(load_inventory(tmp_path / "devices.yaml"))
    (cell,) = cells([load_models(MODELS)["tiny_llama"]], [Mode.KV], [SOCS["SM8650"]])
    kept: list[Record] = []
    bench = Bench(
        f"real-{name}", tmp_path / name, (phone,), kept.append, lambda _, what: None, Target.ANDROID, EvalChoice(),
        Host(), Nurse(HealthBook(tmp_path / "health")), side=name, phone_files=files,
    )  # fmt: skip
    return Attempt(bench, cell, artifact, phone, 1), kept


def test_each_side_of_ab_runs_its_own_runner_on_a_real_phone(
    rack: RackState, built: tuple[Path, Path], tmp_path: Path, scripted_artifact: Artifact
) -> None:
    """The artifact is one and the same: what is slower is the runner of the candidate's build."""
    sides, records = [], []
    for name, percent in (("base", 100), ("candidate", 110)):
        files = PhoneFiles(build_folder(built, tmp_path / name, percent), built[1])
        attempt, kept = ab_side(rack, tmp_path, scripted_artifact, name, files)
        sides.append(attempt)
        records.append(kept)
    link_to(rack, tmp_path).must("rm -f /data/misc/logd/accepted")  # it has to be kept awake for this
    found = measure_pairs((sides[0], sides[1]), new_tokens=16)
    assert not isinstance(found, Failure), found
    assert {speed.alone for speed in found} == {Judgement.REGRESSED}
    assert found[2].change == pytest.approx(1 / 1.1 - 1, abs=0.005)
    for kept in records:
        samples = [record for record in kept if isinstance(record, SampleRecord)]
        assert [sample.pair for sample in samples] == list(range(8))
        assert {sample.target for sample in samples} == {Target.ANDROID}
        (deployed,) = (record for record in kept if isinstance(record, DeployRecord))
        assert {"qnn_llama_runner", "libqnn_executorch_backend.so"} <= {*deployed.pushed, *deployed.reused}
    hashes = [side.bench.phone_files.fingerprint() for side in sides if side.bench.phone_files]
    differing = {name for name in hashes[0] if hashes[0][name] != hashes[1][name]}
    assert differing == {"android_runner_sha256", "android_backend_sha256"}


def test_a_sides_build_folder_is_found_in_its_checkout(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    package = checkout / "src" / "executorch"
    (checkout / "backends" / "qualcomm").mkdir(parents=True)
    package.mkdir(parents=True)
    assert own_build_folder(tmp_path / "venv", package) is None
    (checkout / BUILD_NAME).mkdir()
    assert own_build_folder(tmp_path / "venv", package) == checkout / BUILD_NAME
    assert (
        own_build_folder(tmp_path / "venv", checkout) == checkout / BUILD_NAME
    )  # EXECUTORCH_ROOT, or imported in place
    wheel = tmp_path / BUILD_NAME  # a stray folder of that name above a wheel is not its
    wheel.mkdir()
    assert own_build_folder(tmp_path / "venv", tmp_path / "site-packages" / "executorch") is None
    (tmp_path / "venv" / BUILD_NAME).mkdir(parents=True)
    assert own_build_folder(tmp_path / "venv", package) == tmp_path / "venv" / BUILD_NAME


def test_a_side_takes_what_it_was_given_then_its_own_then_the_runs(
    built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = tmp_path / "side"
    side.mkdir()
    (side / "x.pte").write_text("program")
    assert read_side("base", side).phone_files() == PhoneFiles(*built)
    (side / BUILD_NAME).mkdir()
    assert read_side("base", side).phone_files().build == side / BUILD_NAME
    given = read_side("base", side, tmp_path / "given", tmp_path / "sdk").phone_files()
    assert given == PhoneFiles(tmp_path / "given", tmp_path / "sdk")
    (side / BUILD_NAME).rmdir()
    monkeypatch.delenv(BUILD_FOLDER)
    with pytest.raises(ConfigError, match="this side has none") as caught:
        read_side("candidate", side).phone_files()
    assert caught.value.where == f"--ab, candidate ({side})"
    assert "--ab-build-folders BASE CANDIDATE" in caught.value.remedy
    monkeypatch.delenv("QNN_SDK_ROOT")
    with pytest.raises(ConfigError, match="libraries for Android") as caught:
        read_side("candidate", side, built[0]).phone_files()
    assert "--ab-sdks" in caught.value.remedy


def test_an_environment_may_take_its_libraries_from_a_given_sdk(tmp_path: Path) -> None:
    sdk = find_toolchain().qnn.root
    toolchain, known = toolchain_at(Path(sys.prefix), sdk)
    assert toolchain.qnn.root == sdk
    assert known["qnn"] == find_toolchain().qnn.source  # the same libraries by another way are the same


@pytest.mark.slow
def test_ab_on_a_real_phone_is_refused_without_a_runner_for_each_side(
    rack: RackState, built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pytest -m device --ab` of two environments on what its rack file calls a real phone: nothing is built."""
    link_to(rack, tmp_path)
    monkeypatch.delenv(BUILD_FOLDER)
    for part in find_toolchain().qnn.root.iterdir():  # an SDK has this computer's libraries, too
        for place in part.iterdir() if part.name == "lib" else (part,):
            (built[1] / place.relative_to(part.parent)).symlink_to(place)
    places = ["--rack", str(tmp_path / "devices.yaml"), "--reports", str(tmp_path / "reports")]
    sides = ["--ab", sys.prefix, sys.prefix]
    status, output = finished(device(*places, "--modes", "kv", *sides, cache=tmp_path / "cache"))
    assert status == 2, output
    assert "this side has none" in output
    assert f"--ab, base ({sys.prefix})" in output
    assert "--ab-build-folders BASE CANDIDATE" in output
    other = tmp_path / "other" / BUILD_NAME
    shutil.copytree(built[0], other)
    (other / "backends/qualcomm/libqnn_executorch_backend.so").unlink()
    folders = ["--ab-build-folders", str(built[0]), str(other)]
    status, output = finished(device(*places, "--modes", "kv", *sides, *folders, cache=tmp_path / "cache"))
    assert status == 2, output
    assert f"--ab, candidate ({sys.prefix}): {other}" in output
    assert str(other / "backends/qualcomm/libqnn_executorch_backend.so") in output
    status, output = finished(device(*places, *folders, cache=tmp_path / "cache", HTPFARM_BUILD_FOLDER=str(built[0])))
    assert status == 2, output
    assert "which is not given" in output
    assert not list(tmp_path.glob("reports/*/build*"))


def judged_on_real(
    rack: RackState, tmp_path: Path, artifact: Artifact, model: ModelSpec
) -> tuple[OutcomeRecord, RunData]:
    """A hybrid cell's outcome and records. The artifact is the simulator's, which runs it; all else is a phone's."""
    link_to(rack, tmp_path)
    (phone,) = attach(load_inventory(tmp_path / "devices.yaml"))
    (cell,) = cells([model], [Mode.HYBRID], [SOCS["SM8650"]])
    writer = RecordWriter(tmp_path / "run")
    writer.append(RunInfo("run", utc_now(), (), "", "", {}, "", Target.ANDROID))
    writer.append(planned(cell.id, 75))
    bench = Bench(
        "run",
        tmp_path / "run",
        (phone,),
        writer.append,
        LiveLog(tmp_path / "run").say,
        Target.ANDROID,
        EvalChoice(),
        Host(),
        Nurse(HealthBook(tmp_path / "health")),
        HostLeases(tmp_path / "leases"),
    )
    phone.link.must("mkdir -p /data/local/tmp/htpfarm")
    script = Path(rack.phones[0].root).parents[1] / "insists.sh"
    script.write_text(script.read_text().replace("$SIMULATE$(cat simulate 2>/dev/null)", "yes"))
    outcome = run_cell(bench, cell, artifact, 60.0)
    return outcome, load_run(tmp_path / "run")


def tiny(kv_tokens: int = 64, **changes: Any) -> ModelSpec:
    """With one prompt of a few new tokens, and little text to score."""
    model = load_models(MODELS)["tiny_llama"]
    changes = {"prompts": model.prompts[:1], "max_new_tokens": 8, **changes}
    return replace(model, eval=replace(model.eval, kv_tokens=kv_tokens), **changes)


@pytest.mark.slow
def test_a_cell_on_a_real_phone_is_judged_by_its_witness_alone(
    rack: RackState, built: tuple[Path, Path], tmp_path: Path, tiny_artifacts: dict[str, Artifact]
) -> None:
    """From deployment to verdict, with a reference that has no module, as a large model's."""
    artifact = without_modules(tiny_artifacts["hybrid"], tmp_path)
    outcome, data = judged_on_real(rack, tmp_path, artifact, tiny())
    (sample,) = data.samples[outcome.cell]
    assert sample.target is Target.ANDROID
    assert sample.text.startswith(tiny().prompts[0])
    assert sample.generated_tokens == 7
    assert "vitals" in sample.raw
    checks = {check.name: check for check in data.checks[outcome.cell]}
    assert set(checks) == {"whole_on_htp", *TEXT_CHECKS, *SCORE_CHECKS} - {"prefill_vs_kv_ppl", "first_tokens"}
    assert {check.verdict for check in checks.values()} == {"PASSED"}, outcome.reason
    assert {check.attempt for check in checks.values()} == {outcome.attempts}
    assert outcome.status is Status.PASSED, outcome
    assert exit_status(summarise(data)) == 0
    assert summarise(data).cells[0].passed_text(sample)
    assert {(one.ground, one.graph, one.tokens) for one in data.perplexities[outcome.cell]} == {
        *(("FP", "full", 64), ("QDQ", "full", 64), ("PHONE", "kv", 64))
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "prompts", "words"),
    [
        (remove, None, "the artifact has no witness"),
        (truncate, None, "the witness cannot be read"),
        (leave, ("Once upon a time",), "does not know the prompt 'Once upon a time'"),
    ],
    ids=["none", "cut short", "of other prompts"],
)
def test_without_a_witness_a_cell_on_a_real_phone_is_not_judged_and_never_passes(
    rack: RackState,
    built: tuple[Path, Path],
    tmp_path: Path,
    tiny_artifacts: dict[str, Artifact],
    damage: Callable[[Path], None],
    prompts: tuple[str, ...] | None,
    words: str,
) -> None:
    artifact = without_modules(tiny_artifacts["hybrid"], tmp_path)
    damage(artifact.reference)
    model = tiny(**({"prompts": prompts} if prompts else {}))
    outcome, data = judged_on_real(rack, tmp_path, artifact, model)
    assert (outcome.status, outcome.failure_class, outcome.attempts) == (Status.ERROR, FailureClass.NOT_JUDGED, 1)
    assert words in outcome.reason
    assert "compile again" in outcome.remedy
    assert exit_status(summarise(data)) == 1
    verdicts = {check.name: check.verdict for check in data.checks[outcome.cell]}
    assert verdicts == {"whole_on_htp": "PASSED", "speed_vs_host_clock": "PASSED", "witness": "NOT_JUDGED"}
    (sample,) = data.samples[outcome.cell]
    assert not summarise(data).cells[0].passed_text(sample)
