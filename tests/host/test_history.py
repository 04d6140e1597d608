"""The history on SQLite and PostgreSQL: imports that repeat, race and die; questions; the command."""

from __future__ import annotations

import importlib.util
import json
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import postgres
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sample_run import BROKEN, EVIL, GOOD, OLD, UNRUN, planned, records, run_info, sample, write_run
from sqlalchemy import text

from harness.cli import main
from harness.errors import ConfigError, FailureClass, InfraError
from harness.history.changepoints import UnavailableError, change_points
from harness.history.plot import write_plot
from harness.history.query import Choice, cell_results, list_runs, session_values, standings
from harness.history.schema import metadata
from harness.history.store import History, check_sound
from harness.history.trend import sparkline, trends
from harness.paths import REPOSITORY
from harness.results import OutcomeRecord, Record, RecordWriter, Status
from harness.results.records import encode
from harness.results.store import RECORDS
from harness.target import Target
from harness.verdicts import Judgement


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str | None]:
    with postgres.server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'history.sqlite'}"
    server: str | None = request.getfixturevalue("postgres_server")
    if server is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql, or set HTPFARM_TEST_POSTGRES")
    return postgres.new_database(server)


def night(reports: Path, number: int, decode: float, *more: Record, target: Target = Target.SIM) -> Path:
    """A run of one cell on the n-th of January, with two sessions around a speed."""
    run = f"202601{number:02d}-000000-{number:04x}"
    day = f"2026-01-{number:02d}T00:00"
    info = replace(run_info(target), id=run, started=f"{day}:00.000+00:00")
    made = [
        info,
        planned(GOOD, 75),
        sample(GOOD, 0, decode_tok_s=decode - 0.01, target=target),
        sample(GOOD, 1, decode_tok_s=decode + 0.01, target=target),
        *(more or [OutcomeRecord(GOOD, Status.PASSED, phone="s24")]),
    ]
    folder = reports / run
    folder.mkdir(parents=True)
    lines = [encode(record, run, f"{day}:{place:02d}.000+00:00") for place, record in enumerate(made)]
    (folder / RECORDS).write_bytes(b"".join(lines))
    return folder


def tables(history: History) -> dict[str, list[tuple[object, ...]]]:
    """All there is, for comparing."""
    found = {}
    with history.reading() as connection:
        for name, table in metadata.tables.items():
            columns = [column for column in table.c if column.name != "imported"]
            rows = connection.execute(table.select().with_only_columns(*columns)).all()
            found[name] = sorted((tuple(row) for row in rows), key=repr)
    return found


def test_an_import_repeated_changes_nothing(url: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "reports")
    with History(url) as history:
        first = history.import_run(folder)
        before = tables(history)
        again = history.import_run(folder)
        assert tables(history) == before
    assert first.added == first.records == again.records == len(records())
    assert again.added == 0


def test_a_run_that_goes_on_brings_only_what_is_new(url: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "reports")
    with History(url) as history:
        history.import_run(folder)
        assert {r.cell: r.status for r in cell_results(history, Choice())}[UNRUN] == "NOT RUN"
        RecordWriter(folder).append(OutcomeRecord(UNRUN, Status.PASSED, phone="s25"))
        again = history.import_run(folder)
        assert again.added == 1
        assert {r.cell: r.status for r in cell_results(history, Choice())}[UNRUN] == "PASSED"
    with History(url.replace("history.sqlite", "other.sqlite")) as other:
        other.forget(run_info().id)
        other.import_run(folder)
        fresh = tables(other)
    with History(url) as history:
        assert tables(history) == fresh


def test_another_run_of_the_same_id_is_refused(url: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    other = write_run(tmp_path / "b", made=[run_info(), planned(GOOD, 75)])
    longer = other / RECORDS
    longer.write_bytes(longer.read_bytes() * 20)
    with History(url) as history:
        history.import_run(folder)
        before = tables(history)
        with pytest.raises(ConfigError, match=r"not what the history has.*\n.*history forget"):
            history.import_run(other)
        assert tables(history) == before
        assert history.forget(run_info().id)
        assert not history.forget(run_info().id)
        assert history.import_run(other).records == 40


def test_lines_not_understood_and_foreign_text_are_kept(url: str, tmp_path: Path) -> None:
    made = [run_info(), planned(GOOD, 75), sample(GOOD, text=EVIL, phone="a\0b\ud800")]
    made.append(OutcomeRecord(GOOD, Status.FAILED, FailureClass.PRODUCT, "nul \0 here", evidence=EVIL))
    folder = write_run(tmp_path / "reports", made=made)
    with (folder / RECORDS).open("ab") as file:
        file.write(b'{"record": "power", "watts": 3}\nnot json \xff\n')
    with History(url) as history:
        assert history.import_run(folder).records == 6
        (result,) = cell_results(history, Choice())
        assert result.reason == r"nul \0 here"
        assert "<script>" in result.evidence
        with history.reading() as connection:
            kinds = connection.execute(text("SELECT kind FROM records ORDER BY line")).scalars().all()
    assert kinds == ["run", "plan", "sample", "outcome", "raw", "raw"]


def test_where_each_cell_stands(url: str, tmp_path: Path) -> None:
    bad = OutcomeRecord(GOOD, Status.FAILED, FailureClass.PRODUCT, "wrong text", "read it", "evidence")
    left_out = OutcomeRecord(GOOD, Status.SKIPPED, reason="not selected (-k or a test's name)")
    with History(url) as history:
        history.import_run(night(tmp_path, 1, 20.0))
        history.import_run(night(tmp_path, 2, 21.0))
        history.import_run(night(tmp_path, 3, 22.0, bad))
        history.import_run(night(tmp_path, 4, 23.0, left_out))
        history.import_run(night(tmp_path, 5, 500.0, target=Target.ANDROID))
        phone, sim = standings(history, metrics=["decode_tok_s"])
        assert (phone.latest.target, sim.latest.target) == ("android", "sim")
        assert phone.latest.metrics == {"decode_tok_s": 500.0}
        assert (sim.latest.run[:8], sim.latest.failure_class, sim.latest.reason) == (
            "20260103",
            "PRODUCT",
            "wrong text",
        )
        assert sim.last_good is not None
        assert (sim.last_good.run[:8], sim.last_good.metrics) == ("20260102", {"decode_tok_s": 21.0})
        (early,) = standings(history, Choice(until="2026-01-01"))
        assert early.latest.run[:8] == "20260101"
        history.import_run(write_run(tmp_path / "more"))
        stand = {one.latest.cell: one for one in standings(history, Choice(target="sim"))}
    assert stand[OLD].latest.failure_class == "UNSUPPORTED"
    assert stand[OLD].latest.gate == "weight_sharing"
    assert stand[OLD].last_good is None
    assert math.isinf(stand[BROKEN].latest.metrics["word_ppl[PHONE/kv/2032]"])
    assert len(stand[GOOD].latest.metrics) > 5
    assert list(stand[GOOD].latest.metrics) == sorted(stand[GOOD].latest.metrics)
    assert UNRUN not in stand


def test_questions_by_cell_phone_metric_and_range(url: str, tmp_path: Path) -> None:
    with History(url) as history:
        for number in range(1, 6):
            history.import_run(night(tmp_path, number, 20.0 + number))
        ask = session_values
        assert len(ask(history, Choice())) == 5 * 2 * 5
        speeds = ask(history, Choice(metrics=("decode_tok_s",), since="2026-01-02", until="2026-01-03"))
        assert [value.value for value in speeds] == [21.99, 22.01, 22.99, 23.01]
        assert [value.time[:10] for value in speeds] == ["2026-01-02"] * 2 + ["2026-01-03"] * 2
        assert not ask(history, Choice(phone="nobody"))
        assert len(ask(history, Choice(phone="s24", metrics=("decode*", "ttft_ms")))) == 20
        assert len(ask(history, Choice(cells=("tiny*s24",)))) == 50
        assert not ask(history, Choice(cells=("tiny%",)))
        assert not ask(history, Choice(metrics=("decode_tok-s*",)))
        assert [value.value for value in ask(history, Choice(metrics=("decode_tok_s",)), limit=1)] == [25.01]
        assert [run.run[:8] for run in list_runs(history, Choice(since="2026-01-04"))] == ["20260104", "20260105"]


def test_a_trend_judges_the_latest_run_by_those_before(url: str, tmp_path: Path) -> None:
    with History(url) as history:
        for number in range(1, 13):
            history.import_run(night(tmp_path, number, 20.0 + 0.1 * (number % 3)))
        history.import_run(night(tmp_path, 13, 17.0))
        values = session_values(history, Choice(metrics=("decode_tok_s",)))
    (trend,) = trends(values)
    assert trend.judgement is Judgement.REGRESSED
    assert trend.bound is not None
    assert trend.bound.sessions == 12
    assert len(trend.spark) == 13
    (since,) = trends(values, {(GOOD, "sim"): "2026-01-05"})  # a change accepted then: too short a history
    assert since.judgement is Judgement.INCONCLUSIVE
    (good,) = trends([value for value in values if value.time < "2026-01-13"])
    assert good.judgement is Judgement.OK


def test_speeds_of_a_run_of_a_against_b_are_no_part_of_the_course(url: str, tmp_path: Path) -> None:
    with History(url) as history:
        history.import_run(night(tmp_path, 1, 20.0))
        ab = night(tmp_path, 2, 10.0, sample(GOOD, 100, pair=0), OutcomeRecord(GOOD, Status.PASSED, phone="s24"))
        history.import_run(ab)
        values = session_values(history, Choice(metrics=("decode_tok_s",)))
        assert {value.run for value in values} == {"20260101-000000-0001"}
        (stand,) = standings(history)
    assert stand.latest.run == "20260102-000000-0002"


def test_speeds_that_contradict_the_hosts_clock_are_no_part_of_the_course(url: str, tmp_path: Path) -> None:
    invalid = OutcomeRecord(GOOD, Status.ERROR, FailureClass.INVALID, "two clocks", phone="s24")
    failed = OutcomeRecord(GOOD, Status.FAILED, FailureClass.PRODUCT, "wrong text", phone="s24")
    with History(url) as history:
        history.import_run(night(tmp_path, 1, 10.0, invalid))
        assert session_values(history, Choice(metrics=("decode_tok_s", "ttft_ms"))) == []
        history.import_run(night(tmp_path, 2, 10.0, failed))
        assert len(session_values(history, Choice(metrics=("decode_tok_s",)))) == 2


def test_the_migrations_make_the_tables(url: str) -> None:
    with History(url) as history, history.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_newer_database_is_refused(url: str) -> None:
    with History(url) as history, history.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="schema 9999"):
        History(url)


@pytest.mark.parametrize("bad", ["mysql://localhost/x", "nonsense://", "sqlite:///"])
def test_a_url_that_is_none_is_refused(bad: str) -> None:
    if bad == "sqlite:///":  # in memory: of no use, but it works
        History(bad).close()
        return
    with pytest.raises(ConfigError):
        History(bad)


def test_a_server_that_is_not_there_is_an_infra_error() -> None:
    with pytest.raises(InfraError, match="failed") as caught:
        History("postgresql://user:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_an_infra_error(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, not at all, whatever its name may say\n" * 100)
    with pytest.raises(InfraError, match="not a database"):
        History(str(path))


# Writers


def _import_all(url: str, folders: list[Path]) -> None:
    with History(url) as history:
        list(history.import_runs(folders))


def test_writers_at_once_lose_nothing(url: str, tmp_path: Path) -> None:
    """Three processes, also the first to make the tables; half of the runs are everybody's."""
    folders = [night(tmp_path, number, 20.0) for number in range(1, 13)]
    context = multiprocessing.get_context("fork")
    parts = [folders[:6] + folders[6 + place :] + folders[6 : 6 + place] for place in range(3)]
    writers = [context.Process(target=_import_all, args=(url, part)) for part in parts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * 3
    with History(url) as history:
        assert check_sound(history) == "ok"
        together = tables(history)
        for folder in folders:
            history.forget(folder.name)
        for folder in sorted(folders):
            history.import_run(folder)
        assert tables(history) == together
    assert len(together["records"]) == 12 * 5


def test_a_writer_that_waits_too_long_says_so(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'h.sqlite'}"
    folder = night(tmp_path, 1, 20.0)
    with History(url) as history, History(url, busy_s=0.2) as other, history.writing():
        with pytest.raises(InfraError, match="locked"):
            other.import_run(folder)
        assert list_runs(other) == []  # readers do not wait


def test_kill_9_while_importing_leaves_all_of_a_run_or_nothing(url: str, tmp_path: Path) -> None:
    """Killed at many moments of an import of runs that are large enough to be caught in the middle."""
    bench = _benchmark()
    folders = [bench.write_run(tmp_path / "reports", number) for number in range(3)]  # type: ignore[attr-defined]
    History(url).close()
    kept: set[int] = set()
    context = multiprocessing.get_context("fork")
    for delay in (0.02, 0.1, 0.2, 0.35, 0.5):
        process = context.Process(target=_import_all, args=(url, folders))
        process.start()
        time.sleep(delay)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with History(url) as history:
            assert check_sound(history) == "ok"
            counts = {run.run: 0 for run in list_runs(history)}
            with history.reading() as connection:
                for run, count in connection.execute(text("SELECT run, COUNT(*) FROM records GROUP BY run")):
                    counts[run] = count
            assert set(counts.values()) <= {2001}
            kept.add(len(counts))
            for run in counts:
                history.forget(run)
    assert min(kept) < 3, "no kill came in time to interrupt anything"
    with History(url) as history:
        assert sum(one.added for one in history.import_runs(folders)) == 3 * 2001


# The command


def test_the_command_imports_shows_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    database, page = str(tmp_path / "h.sqlite"), tmp_path / "page.html"
    folders = [str(night(tmp_path, number, 20.0 + number)) for number in range(1, 4)]
    assert main(["history", "import", "--history", database, *folders]) == 0
    assert "5 records, 5 of them new" in capsys.readouterr().out
    assert main(["history", "show", "--history", database, "--cell", GOOD, "--plot", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "decode_tok_s" in shown
    assert "▁▅█" in shown
    assert "(sim)" in shown
    html = page.read_text()
    assert "plotly" in html.lower()
    assert 'src="http' not in html
    assert main(["history", "show", "--history", database, "--metric", "decode_tok_s", "--json"]) == 0
    (trend,) = json.loads(capsys.readouterr().out)
    assert [value["value"] for value in trend["values"]] == [21.0, 22.0, 23.0]
    assert main(["history", "runs", "--history", database, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3
    assert main(["history", "forget", "--history", database, "no-such-run"]) == 2


def test_a_runs_text_cannot_break_the_page(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'h.sqlite'}"
    evil = "x</script><script>alert(1)</script>"
    made = [run_info(), planned(GOOD, 75), sample(GOOD, phone=evil)]
    made = [replace(run_info(), id=evil), *made[1:]]
    folder = write_run(tmp_path, made=made)
    with History(url) as history:
        history.import_run(folder)
        found = trends(session_values(history, Choice(metrics=("decode_tok_s",))))
    write_plot(found, tmp_path / "page.html")
    assert "<script>alert(1)" not in (tmp_path / "page.html").read_text()


def test_sparklines() -> None:
    assert sparkline([1, 2, 3]) == "▁▅█"
    assert sparkline([5, 5]) == "▄▄"
    assert sparkline([math.nan, 1.0, math.inf, 2.0]) == " ▁ █"
    assert sparkline([math.nan]) == ""


def test_change_points_need_otava(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTPFARM_OTAVA", "/no/such/python")
    with pytest.raises(UnavailableError, match="No such file"):
        change_points([[1.0] * 20])


def test_change_points_find_where_the_level_changed() -> None:
    levels = [20.0 + 0.1 * (number % 3) for number in range(20)] + [18.0 + 0.1 * (number % 3) for number in range(20)]
    steady = [20.0 + 0.1 * (number % 3) for number in range(40)]
    try:
        found = change_points([levels, steady, [1.0, 2.0], [math.inf] * 20])
    except UnavailableError as error:
        pytest.skip(str(error))
    assert found == [[20], [], [], []]


def _benchmark() -> object:
    path = REPOSITORY / "benchmarks" / "history_scale.py"
    spec = importlib.util.spec_from_file_location("history_scale", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["history_scale"] = module
    spec.loader.exec_module(module)
    return module
