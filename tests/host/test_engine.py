"""Cells on an engine: what is decided, what is refused, TLS, files on their way, and real hosts, one of them lost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from events import HANG_S, NEVER_S, until
from hypothesis import given
from hypothesis import strategies as st

from harness.build.builder import Builder, Request
from harness.build.cache import Artifact
from harness.conduct.run_cell import Tried, settle
from harness.engine import connection, files
from harness.engine.builds import EngineBuilder
from harness.engine.cells import bundles_of
from harness.engine.connection import Connection, Member, engine_address, tls_folder
from harness.engine.driver import Engine, phones_of
from harness.engine.facts import (
    MEMORY,
    HostReport,
    InOrder,
    cell_data,
    cell_from_data,
    check_hosts,
    inventory_of,
    order_phones,
    phone_data,
    phone_from_data,
    place,
)
from harness.engine.host import Here
from harness.engine.join import resources_of
from harness.engine.work import Sender
from harness.errors import ConfigError, EnvError, FailureClass, InfraError, error_from_data
from harness.farm.failures import Failure
from harness.farm.select import Standing, Wish, meeting
from harness.inventory import Limits, Phone
from harness.matrix import Cell, cells
from harness.model_file import Mode
from harness.models import load_models
from harness.paths import MODELS, REPOSITORY
from harness.results import Status, load_run, read_records
from harness.soc import PHONE_KINDS, SOCS
from harness.target import Target
from harness.toolchain.environment import find_toolchain

LIMIT_S = HANG_S
S24 = PHONE_KINDS["galaxy_s24"]


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[ModuleType]:
    """benchmarks/two_hosts.py, which starts hosts as processes."""
    folder = str(REPOSITORY / "benchmarks")
    sys.path.insert(0, folder)
    try:
        import two_hosts

        yield two_hosts
    finally:
        sys.path.remove(folder)


# What is decided.


@pytest.mark.parametrize(
    ("text", "with_tls", "address"),
    [
        ("127.0.0.1:8786", False, "tcp://127.0.0.1:8786"),
        ("127.0.0.1:8786", True, "tls://127.0.0.1:8786"),
        ("tcp://shelf2:1", False, "tcp://shelf2:1"),
        ("tls://[::1]:8786", True, "tls://[::1]:8786"),
    ],
)
def test_an_address_has_the_scheme_of_its_links(text: str, with_tls: bool, address: str) -> None:
    assert engine_address(text, Path("certificates") if with_tls else None) == address


@pytest.mark.parametrize(
    ("text", "with_tls", "words"),
    [
        ("shelf2", False, "no address of an engine"),
        ("shelf2:port", False, "no address of an engine"),
        ("http://shelf2:1", False, "no address of an engine"),
        (":8786", False, "no address of an engine"),
        ("tls://shelf2:1", False, "needs certificates"),
        ("tcp://shelf2:1", True, "certificates were given for an address without TLS"),
    ],
)
def test_a_wrong_address_is_refused(text: str, with_tls: bool, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        engine_address(text, Path("certificates") if with_tls else None)


def test_a_folder_without_certificates_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.pem").touch()
    with pytest.raises(ConfigError, match=r"no cert\.pem, key\.pem"):
        tls_folder(tmp_path)
    monkeypatch.setenv("HTPFARM_ENGINE_TLS", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no cert\.pem, key\.pem"):
        tls_folder(None)
    monkeypatch.delenv("HTPFARM_ENGINE_TLS")
    assert tls_folder(None) is None


def test_a_build_goes_where_most_memory_is_left() -> None:
    assert place(6, {"a": 8, "b": 12}) == "b"
    assert place(6, {"a": 8, "b": 5}) == "a"
    assert place(6, {"a": 2, "b": 5}) is None
    assert place(6, {}) is None


def test_phones_are_asked_in_order_of_their_failures_then_of_the_schedulers_choice() -> None:
    names = ["a", "b", "c", "d"]
    assert order_phones(names, [], "c", {"b": 5}, {}) == ["c", "b", "a", "d"]
    assert order_phones(names, ["c"], "c", {}, {}) == ["a", "b", "d", "c"]
    assert order_phones(names, ["a", "a", "b"], None, {}, {"c": "cooling down"}) == ["d", "c", "b", "a"]


@given(st.lists(st.integers(0, 9), max_size=40))
def test_messages_are_handed_on_in_order_and_once(arrivals: list[int]) -> None:
    coming, got = InOrder(), []
    for number in [*arrivals, *range(10)]:  # the result brings all of them again
        got += coming.take(number, f"m{number}")
    assert got == [f"m{number}" for number in range(10)]


def phone(name: str, soc: str | None = "SM8650", **more: object) -> Phone:
    return Phone(name, None, S24, SOCS[soc] if soc else None, **more)  # type: ignore[arg-type]


def host(name: str, *phones: Phone, **identity: str) -> HostReport:
    known = {"htpfarm": "0.1.0", "qnn": "2.4.0"} | identity
    return HostReport(name, f"tcp://{name}:1", known, tuple(map(phone_data, phones)), memory_mb=5.0)


def test_phones_and_hosts_survive_the_way_as_json() -> None:
    one = phone("s24", rack="shelf", labels=("12gb",), capabilities=("meter",), priority=3, limits=Limits(42, 36))
    real = Phone("lab", "R3CX", None, None, labels=("x",))
    report = host("shelf1", one, real)
    again = HostReport.from_data(json.loads(json.dumps(report.to_data())))
    assert again == report
    assert [phone_from_data(data) for data in again.phones] == [one, real]


def test_phones_of_all_hosts_are_selected_as_those_of_one_rack() -> None:
    rack = inventory_of(
        [host("h2", phone("z", labels=("12gb",))), host("h1", phone("a"), phone("b", "SM8550"))], "tcp://e:1"
    )
    assert [one.name for one in rack.phones] == ["a", "b", "z"]
    standing = [Standing(one) for one in rack.phones]
    assert [one.name for one in meeting(Wish(labels=frozenset({"12gb"})), standing)] == ["z"]
    assert [one.name for one in meeting(Wish(arch=SOCS["SM8550"].arch), standing)] == ["b"]


def test_a_cell_survives_the_way_with_changed_lengths() -> None:
    model = load_models(MODELS)["tiny_llama"]
    lengths = replace(model.lengths, prefill_ar_len=16)
    cell = Cell(replace(model, lengths=lengths), Mode.HYBRID, SOCS["SM8650"], lengths, model.recipe.name, "s24")
    assert cell_from_data(json.loads(json.dumps(cell_data(cell)))) == cell


def test_hosts_that_differ_are_refused_by_what_differs() -> None:
    own = {"htpfarm": "0.1.0", "qnn": "2.4.0"}
    check_hosts(own, [host("h1", phone("a")), host("h2", phone("b"))], "tcp://e:1")
    with pytest.raises(ConfigError) as caught:
        check_hosts(own, [host("h1"), host("h2", qnn="2.51"), host("h3", extra="1")], "tcp://e:1")
    said = str(caught.value)
    assert "h2 (tcp://h2:1): qnn is 2.51, here 2.4.0" in said
    assert "h3 (tcp://h3:1): extra is 1, here none" in said
    assert "h1" not in said


def test_two_hosts_with_one_phones_name_are_refused() -> None:
    own = {"htpfarm": "0.1.0", "qnn": "2.4.0"}
    with pytest.raises(ConfigError, match=r"two hosts offer a phone 's24': h1 \(tcp://h1:1\) and h2"):
        check_hosts(own, [host("h1", phone("s24")), host("h2", phone("s24"))], "tcp://e:1")


def test_what_a_host_offers_and_how_a_driver_reads_it() -> None:
    here = Here("h", {"s24": None, "s25": None}, memory_mb=9000.0)  # type: ignore[dict-item]
    offered = resources_of(here)
    assert offered == {"phone:s24": 1.0, "phone:s25": 1.0, "memory_mb": 9000.0}
    assert resources_of(Here("h", memory_mb=1.0)) == {"memory_mb": 1.0}
    members = {
        "tcp://h:1": Member(offered, {"trouble": {"s25": "cooling down"}}),
        "tcp://c:1": Member({"memory_mb": 1}),
    }
    assert phones_of(members) == {"s24": ("tcp://h:1", ""), "s25": ("tcp://h:1", "cooling down")}


def test_an_error_survives_the_way() -> None:
    error = EnvError("full", where="disk", remedy="free some", evidence="df")
    again = error_from_data(json.loads(json.dumps(error.to_data())))
    assert (type(again), str(again)) == (EnvError, str(error))


def test_a_sender_stops_when_nobody_waits() -> None:
    said: list[tuple[str, object]] = []
    wanted = [True]
    sender = Sender("topic", lambda topic, message: said.append((topic, message)), lambda: wanted[0])
    sender.send({"say": "one"})
    wanted[0] = False
    with pytest.raises(InfraError, match="nobody waits"):
        sender.send({"say": "two"})
    assert said == [("topic", {"n": 0, "say": "one"})]
    assert sender.sent == [{"n": 0, "say": "one"}]


def test_a_lost_host_is_infra_and_the_cell_has_one_outcome() -> None:
    cell = cell_from_data(cell_data(_tiny()))
    asked: list[tuple[int, tuple[str, ...]]] = []
    records: list[object] = []

    def once(number: int, avoid: object, crashed: object) -> Tried:
        assert not crashed
        asked.append((number, tuple(avoid)))  # type: ignore[call-overload]
        return (
            Tried(Failure(FailureClass.INFRA, "the host was lost"), f"p{number}") if number < 6 else Tried(None, "p6")
        )

    outcome = settle(cell, once, record=records.append, say=lambda _name, _what: None, before=3)
    assert asked == [(4, ()), (5, ("p4",)), (6, ("p4", "p5"))]
    assert (outcome.status, outcome.attempts, outcome.phone) == (Status.PASSED, 6, "p6")
    assert records == [outcome]


def _tiny() -> Cell:
    model = load_models(MODELS)["tiny_llama"]
    return Cell(model, Mode.KV, SOCS["SM8650"], model.lengths, model.recipe.name)


# Files.


def _fill(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "model.pte").write_bytes(bytes(range(256)) * 10)
    (folder / "sub" / "empty").touch()
    return folder


@given(st.integers(1, 3000))
def test_pieces_cover_each_byte_once(size: int) -> None:
    one = files.FileFacts("a", 2560, "")
    spans = [(offset, length) for _, offset, length in files.pieces([one], size)]
    assert [offset for offset, _ in spans] == list(accumulate((length for _, length in spans[:-1]), initial=0))
    assert sum(length for _, length in spans) == 2560
    assert files.pieces([files.FileFacts("e", 0, "")], size) == [(files.FileFacts("e", 0, ""), 0, 0)]


def test_a_folder_comes_in_pieces_and_is_put_in_place_once(tmp_path: Path) -> None:
    source = _fill(tmp_path / "source")
    listed = files.listing(source)
    for target in (tmp_path / "target", tmp_path / "target"):  # the second time another one was faster
        scratch = tmp_path / ".coming"
        for file, offset, length in files.pieces(listed, 1000):
            files.write_piece(scratch / file.path, offset, files.read_piece(source / file.path, offset, length))
        files.put_in_place(scratch, target, listed)
        assert files.holds(target, listed)
        assert not scratch.exists()


def test_what_was_changed_on_the_way_is_not_put_in_place(tmp_path: Path) -> None:
    listed = files.listing(_fill(tmp_path / "source"))
    shutil.copytree(tmp_path / "source", tmp_path / ".coming")
    data = bytearray((tmp_path / ".coming" / "model.pte").read_bytes())
    data[77] ^= 1
    (tmp_path / ".coming" / "model.pte").write_bytes(data)
    with pytest.raises(InfraError, match=r"model\.pte came otherwise"):
        files.put_in_place(tmp_path / ".coming", tmp_path / "target", listed)
    assert not (tmp_path / "target").exists()
    assert not (tmp_path / ".coming").exists()


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x"])
def test_no_path_leads_out_of_the_cache(tmp_path: Path, path: str) -> None:
    with pytest.raises(InfraError, match="leads out"):
        files.inside(tmp_path, path)


def test_given_files_are_placed_by_content(tmp_path: Path) -> None:
    source = _fill(tmp_path / "a")
    one = bundles_of(Artifact("given", source / "model.pte", source, {}))
    (source / "model.pte").write_bytes(b"other")
    two = bundles_of(Artifact("given", source / "model.pte", source, {}))
    assert one[0].place != two[0].place
    assert one[1].place != two[1].place
    assert [file.path for file in one[0].files] == ["model.pte"]


class _CompileHost:
    """An engine with one compile host that has made all that it is asked for, in a cache of its own."""

    def __init__(self, cache: Path, artifact: Artifact) -> None:
        self.cache, self.artifact, self.fetched = cache, artifact, list[str]()

    def members(self) -> dict[str, Member]:
        return {"forge": Member({MEMORY: 1e6})}

    def trusted(self, _address: str) -> bool:
        return True

    def name_of(self, address: str) -> str:
        return address

    def follow(self, _address: str, _task: object, _order: object, _resources: object, deliver: Any, *_: Any) -> Any:
        folder, reference = self.artifact.folder.name, self.artifact.reference.name
        made = {"reused": True, "seconds": 1.0, "peak_mb": 1.0, "error": None}
        deliver({"built": self.artifact.key, "folder": folder, "reference": reference, **made})
        return {"error": None, "messages": []}

    def fetch(self, _address: str, place: str, target: Path, *, merge: bool = False) -> int:
        self.fetched.append(place)
        listed = files.listing(self.cache / place)
        shutil.copytree(self.cache / place, target.with_name(".coming"))
        (files.merge_into if merge else files.put_in_place)(target.with_name(".coming"), target, listed)
        return sum(file.bytes for file in listed)


@pytest.mark.parametrize("known", [(), ("reference.json", "witness.npz")], ids=["nothing", "what another mode needed"])
def test_a_built_artifact_comes_with_its_whole_witness(tmp_path: Path, known: tuple[str, ...]) -> None:
    """Lookahead's is added to a reference that a kv cell may have brought here before."""
    references = [tmp_path / name / "references" / "tiny" for name in ("driver", "forge")]
    for reference, names in zip(
        references, (known, ("reference.json", "witness.npz", "lookahead-3-4-4.json")), strict=True
    ):
        reference.mkdir(parents=True)
        for name in names:
            (reference / name).write_text(name)
    if not known:
        references[0].rmdir()
    made = tmp_path / "forge" / "artifacts" / "tiny-lookahead"
    made.mkdir(parents=True)
    (made / "model.pte").write_text("program")
    pte = tmp_path / "driver" / "artifacts" / made.name / "model.pte"
    pte.parent.parent.mkdir(parents=True)
    witness = tuple(references[0] / name for name in ("witness.npz", "lookahead-3-4-4.json"))
    artifact = Artifact("key", pte, references[0], {}, witness)
    (cell,) = cells([load_models(MODELS)["tiny_llama"]], [Mode.LOOKAHEAD], [SOCS["SM8650"]])
    host, local = _CompileHost(tmp_path / "forge", artifact), Builder(find_toolchain(), tmp_path / "logs")
    (result,) = EngineBuilder(host, local, lambda _: None).build([Request(cell, Target.SIM, artifact)])  # type: ignore[arg-type]
    assert result.error is None
    assert artifact.ready
    assert host.fetched == ["references/tiny", "artifacts/tiny-lookahead"]


# What is refused.


def test_without_dask_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['distributed'] = None; from harness.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "engine", "ls", "127.0.0.1:1"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "the engine needs Dask, which is not installed" in done.stderr
    assert '".[engine]"' in done.stderr


def _pytest(*arguments: str, cache: Path, limit_s: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "device", "-p", "no:cacheprovider", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "HTPFARM_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )


def test_two_sides_on_an_engine_are_refused(tmp_path: Path) -> None:
    done = _pytest("--engine", "127.0.0.1:1", "--ab", str(tmp_path), str(tmp_path), cache=tmp_path / "cache")
    assert done.returncode == 2, done.stdout
    assert "a run of A against B cannot be on an engine yet" in done.stdout + done.stderr


def test_where_no_engine_answers_nothing_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_S", 1.0)
    with pytest.raises(InfraError, match=r"no engine answers within 1 s") as caught:
        Connection(f"127.0.0.1:{free_port()}")
    assert "htpfarm engine serve" in str(caught.value)


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def served(two_hosts: ModuleType, folder: Path, *more: str) -> Iterator[tuple[str, Path]]:
    """An engine on the loopback; yields host:port and its log."""
    port = free_port()
    with two_hosts.process(folder, "serve", "serve", "--port", str(port), *more, cache=folder / "serve") as log:
        two_hosts.said(log, "serves")
        yield f"127.0.0.1:{port}", log


def test_an_engine_without_phones_is_said_and_others_workers_are_left_alone(
    tmp_path: Path, two_hosts: ModuleType
) -> None:
    with served(two_hosts, tmp_path) as (address, _):
        worker = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://{address}", "--no-nanny", "--no-dashboard"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        engine = Engine(address)
        try:
            until(engine.members)
            with pytest.raises(InfraError, match="no host of the engine offers a phone"):
                engine.admit()
            (member,) = engine.members()
            assert not engine.trusted(member)
        finally:
            engine.close()
            worker.terminate()
            worker.wait(timeout=HANG_S)


# TLS.


def certificates(folder: Path) -> Path:
    """ca.pem, cert.pem and key.pem for the loopback, as docs/engine.md makes them."""
    folder.mkdir()
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for line in (
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca",
        "req -newkey rsa:2048 -nodes -keyout key.pem -out request -subj /CN=host",
        "x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 2 -extfile names",
    ):
        subprocess.run(["openssl", *line.split()], cwd=folder, check=True, capture_output=True, timeout=HANG_S)
    return folder


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
def test_with_tls_a_plain_client_and_a_strangers_are_refused(
    tmp_path: Path, two_hosts: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, strangers = certificates(tmp_path / "own"), certificates(tmp_path / "strangers")
    with served(two_hosts, tmp_path, "--tls", str(own)) as (address, log):
        assert "tls://" in log.read_text()
        engine = Engine(address, own)
        assert engine.address == f"tls://{address}"
        assert engine.members() == {}
        engine.close()
        monkeypatch.setattr(connection, "CONNECT_S", 2.0)
        with pytest.raises(InfraError, match="no engine answers"):
            Connection(f"tcp://{address}")
        with pytest.raises(InfraError, match="no engine answers"):
            Connection(address, strangers)


# Real hosts.


@pytest.fixture
def hosted(
    tmp_path: Path, two_hosts: ModuleType, tiny_artifacts: dict[str, Artifact]
) -> Iterator[tuple[str, Path, dict[str, Path]]]:
    """An engine with a rack host (s24) and a compile host that has the tiny model: its address, a cache, logs."""
    from harness.paths import cache_root

    rack = two_hosts.rack_file(tmp_path, ["s24"])
    with contextlib.ExitStack() as stack:
        address, _ = stack.enter_context(served(two_hosts, tmp_path))
        compile_host = ("join", address, "--compile", "--name", "forge")
        rack_host = ("join", address, "--rack", str(rack), "--name", "shelf")
        logs = {
            "forge": stack.enter_context(two_hosts.process(tmp_path, "forge", *compile_host, cache=cache_root())),
            "shelf": stack.enter_context(two_hosts.process(tmp_path, "shelf", *rack_host, cache=tmp_path / "shelf")),
        }
        for log in logs.values():
            two_hosts.said(log, "has joined")
        yield address, tmp_path / "driver", logs


@pytest.mark.slow
def test_cells_are_compiled_on_one_host_and_run_on_another_with_the_same_records(
    hosted: tuple[str, Path, dict[str, Path]], tmp_path: Path
) -> None:
    address, cache, _ = hosted
    reports = tmp_path / "reports"
    arguments = ["--engine", address, "--modes", "hybrid", "--eval-tokens", "32", "-n", "auto"]
    done = _pytest(*arguments, "--reports", str(reports), cache=cache, limit_s=3 * HANG_S)
    assert done.returncode == 0, done.stdout
    (folder,) = (path for path in reports.iterdir() if path.is_dir())
    run = load_run(folder)
    (cell,) = run.outcomes
    outcome = run.outcomes[cell]
    assert (outcome.status, outcome.phone, outcome.attempts) == (Status.PASSED, "s24", 1)
    assert run.run.rack == address
    assert not run.raw
    # The artifact came from the compile host into this driver's own cache, and was not built here.
    assert Path(run.artifacts[cell].path).is_relative_to(cache)
    assert run.artifacts[cell].reused
    assert not list((folder / "build-logs").glob("*"))
    kinds = {record.kind for record in read_records(folder / "records.jsonl")}
    assert kinds == {"run", "plan", "artifact", "deploy", "sample", "perplexity", "ttft", "check", "outcome"}
    assert {check.name for check in run.checks[cell]} >= {"text_as_qdq", "phone_vs_qdq_ppl", "whole_on_htp"}
    assert sorted(path.name for path in (folder / "cells" / cell).iterdir()) == ["1-0", "1-1", "1-accuracy"]
    live = (folder / "live.log").read_text()
    assert "came from forge" in live
    assert f"s24        {cell}: prompt 1/" in live
    # Nothing of the try is left on its host.
    assert not list((tmp_path / "shelf" / "engine" / "runs").iterdir())
    if os.environ.get("HTPFARM_NIGHTLY"):  # a minute more: the same without an engine
        rack = tmp_path / "s24.yaml"
        local = ["--rack", str(rack), "--modes", "hybrid", "--eval-tokens", "32", "--reports", str(tmp_path / "local")]
        alone = _pytest(*local, cache=cache, limit_s=3 * HANG_S)
        assert alone.returncode == 0, alone.stdout
        (other,) = (path for path in (tmp_path / "local").iterdir() if path.is_dir())
        assert [_shape(r) for r in read_records(other / "records.jsonl")] == [
            _shape(r) for r in read_records(folder / "records.jsonl")
        ]


def _shape(record: object) -> tuple[object, ...]:
    """What two runs of one cell have in common."""
    names = ("kind", "cell", "name", "ground", "graph", "session", "prompt", "text", "passed", "status")
    return tuple(getattr(record, name, None) for name in names)


@pytest.mark.slow
def test_two_hosts_with_one_phone_are_refused_before_anything_runs(
    hosted: tuple[str, Path, dict[str, Path]], tmp_path: Path, two_hosts: ModuleType
) -> None:
    address, cache, _ = hosted
    rack = tmp_path / "s24.yaml"
    twin = ("join", address, "--rack", str(rack), "--name", "shelf2")
    with two_hosts.process(tmp_path, "shelf2", *twin, cache=tmp_path / "shelf2") as log:
        two_hosts.said(log, "has joined")
        done = _pytest("--engine", address, "--reports", str(tmp_path / "reports"), cache=cache)
        assert done.returncode == 2, done.stdout
        assert "two hosts offer a phone 's24': shelf" in done.stdout + done.stderr
        assert not (tmp_path / "reports").exists()


def test_a_bundle_goes_to_a_host_once(tmp_path: Path, two_hosts: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTPFARM_CACHE", str(tmp_path / "driver"))
    with contextlib.ExitStack() as stack:
        address, _ = stack.enter_context(served(two_hosts, tmp_path))
        arguments = ("join", address, "--compile", "--memory-mb", "1000", "--name", "forge")
        log = stack.enter_context(two_hosts.process(tmp_path, "forge", *arguments, cache=tmp_path / "forge"))
        two_hosts.said(log, "has joined")
        engine = Engine(address)
        stack.callback(engine.close)
        (there,) = engine.members()
        monkeypatch.setattr(files.pieces, "__defaults__", (1000,))
        folder = _fill(tmp_path / "source")
        one = files.bundle("artifacts/thing-key", folder)
        said: list[str] = []
        # Where host and driver share the file system nothing is copied.
        assert engine.send(there, one, said.append) == str(folder)
        # A file under another name is not found there, and goes over.
        single = files.bundle_of_file("given", folder / "model.pte", "other.pte")
        placed = Path(engine.send(there, single, said.append))
        assert placed.is_relative_to(tmp_path / "forge" / "given")
        assert (placed / "other.pte").read_bytes() == (folder / "model.pte").read_bytes()
        assert engine.send(there, single, said.append) == str(placed)
        assert len(said) == 1
        assert said[0].startswith("sending given/")
        # A folder that is there, and to which a file was added since, gets that one too.
        (folder / "more.json").write_text("{}")
        facts = {file.path: file for file in files.listing(folder)}
        grown = files.Bundle(
            single.place,
            (*single.files, facts["more.json"]),
            {**single.sources, "more.json": str(folder / "more.json")},
        )
        assert engine.send(there, grown, said.append) == str(placed)
        assert files.holds(placed, grown.files)
        # And back.
        back = tmp_path / "back" / "thing"
        assert engine.fetch(there, single.place, back) == 2562
        assert files.holds(back, grown.files)
        with pytest.raises(InfraError, match="leads out"):
            engine.fetch(there, "../../etc", back)


@pytest.mark.slow
def test_a_run_survives_the_loss_of_one_of_its_hosts(
    tmp_path: Path, two_hosts: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rack hosts in network namespaces and a compile host; every process of one rack host is killed."""
    if why := two_hosts.permitted():
        pytest.skip(why)
    monkeypatch.setenv("HTPFARM_CACHE", str(tmp_path / "driver"))
    with two_hosts.two_hosts(tmp_path, 2, tmp_path / "forge") as nets:
        found = two_hosts.sleeping(tmp_path, f"{nets[0].here}:{two_hosts.PORT}", 12, 0.5, nets[0], "kill", NEVER_S)
    assert found["outcomes"] == {"PASSED": 12}, found
    assert (found["without"], found["twice"], found["stranded"], found["not_understood"]) == ([], [], 0, 0)
    assert found["records_kept"]
    assert found["processes_killed"] >= 3  # the worker, the rack's server and its adb, at least
    again = found["tried_again"]
    assert again, "nothing ran on the host that was killed"
    assert set(again.values()) == {2}
    run = load_run(tmp_path / "run")
    after = {cell: run.outcomes[cell].phone for cell in again}
    assert all(name.startswith("b") for name in after.values()), after


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("HTPFARM_NIGHTLY"), reason="takes minutes: HTPFARM_NIGHTLY=1 runs it")
def test_a_device_run_survives_the_loss_of_one_of_its_hosts(
    tmp_path: Path, two_hosts: ModuleType, tiny_artifacts: dict[str, Artifact]
) -> None:
    from harness.paths import cache_root

    if why := two_hosts.permitted():
        pytest.skip(why)
    with two_hosts.two_hosts(tmp_path, 1, cache_root(), 10.0) as nets:
        found = two_hosts.real(tmp_path, f"{nets[0].here}:{two_hosts.PORT}", nets[0], "kill")
    assert two_hosts.good(found), (found, (tmp_path / "pytest.log").read_text())
    assert (found["exit_status"], found["planned"]) == (0, 3)
    assert found["tried_again"]


@pytest.mark.slow
def test_when_the_engine_is_lost_every_cell_ends_as_infra(
    tmp_path: Path, two_hosts: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler is killed while a cell runs: nobody waits for it, and the host leaves and frees its phone."""
    monkeypatch.setenv("HTPFARM_CACHE", str(tmp_path / "driver"))
    rack = two_hosts.rack_file(tmp_path, ["a0"])
    with contextlib.ExitStack() as stack:
        address, _ = stack.enter_context(served(two_hosts, tmp_path))
        arguments = ("join", address, "--rack", str(rack), "--name", "shelf")
        log = stack.enter_context(two_hosts.process(tmp_path, "shelf", *arguments, cache=tmp_path / "shelf"))
        two_hosts.said(log, "has joined")
        found: dict[str, object] = {}

        def go() -> None:
            found.update(two_hosts.sleeping(tmp_path, address, 3, 2 * HANG_S, None, "none"))

        run = threading.Thread(target=go, daemon=True)
        run.start()
        two_hosts.said(tmp_path / "run" / "live.log", "sleeping")
        for pid in two_hosts.listeners(int(address.rpartition(":")[2])):
            os.kill(pid, signal.SIGKILL)
        run.join(timeout=HANG_S)
        assert not run.is_alive()  # long before the cell would have ended
        assert found["outcomes"] == {"ERROR": 3}
        assert (found["without"], found["twice"]) == ([], [])
        data = load_run(tmp_path / "run")
        assert {outcome.failure_class for outcome in data.outcomes.values()} == {FailureClass.INFRA}
        assert all("engine" in outcome.reason for outcome in data.outcomes.values())
        two_hosts.said(log, "the engine is gone")
