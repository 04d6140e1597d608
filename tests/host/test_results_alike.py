"""Perplexities over different tokens never stand side by side unmarked, wherever they are shown."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from compat_results import NOW, result, scored
from rich.console import Console
from sample_run import planned, run_info, write_run

from harness.compare.baselines import accept
from harness.compare.cli import print_comparison, run_gate
from harness.compare.runs import compare_perplexities, compare_runs
from harness.compatibility import compatibility
from harness.compatibility.matrix import shown_alike
from harness.compatibility.show import print_matrix, render_csv, render_html, render_markdown
from harness.export.junit import render_junit
from harness.export.prometheus import render_prometheus
from harness.export.pytorch import pytorch_records
from harness.export.step_summary import render_summary
from harness.results import OutcomeRecord, PerplexityRecord, Record, Status, load_run
from harness.results.accuracy import against_before, against_kv
from harness.results.alike import Alike, alike, alike_in, over, sums
from harness.results.cell_plots import draw_perplexities
from harness.results.records import Graph, Ground
from harness.results.report import render_html as report_html
from harness.results.report import render_markdown as report_markdown
from harness.results.summary import RunSummary, summarise
from harness.results.table import print_table
from harness.verdicts import Judgement

KV, HYBRID, LOOKAHEAD = (f"tiny_llama-{mode}-SM8650" for mode in ("kv", "hybrid", "lookahead"))
EASY, HARD = 60.0, 80.0
"""A block's nll in the first and in the second half of the text: the second is harder, as the tiny model's is."""


def score(cell: str, ground: Ground, graph: Graph, count: int, off: float = 0.0, **changes: object) -> PerplexityRecord:
    """Of 8 blocks of 32 tokens the first ones; `off` is added to each block's nll."""
    each = tuple((32, (EASY if number < 4 else HARD) + off) for number in range(count))
    words = {8: 143, 4: 73}.get(count, 18 * count)
    made = PerplexityRecord(cell, ground, graph, 32 * count, words, sum(n for _, n in each), 128, 1, 1.0, each)
    return replace(made, **changes)  # type: ignore[arg-type]


def a_token(blocks: int, off: float = 0.0) -> float:
    return over(score(KV, "FP", "full", blocks, off), 32 * blocks)


def cell_of(cell: str, *phone: tuple[Graph, int], **changes: object) -> list[Record]:
    return [
        score(cell, "FP", "full", 8, **changes),  # type: ignore[arg-type]
        score(cell, "QDQ", "full", 8, 0.5, **changes),  # type: ignore[arg-type]
        *(score(cell, "PHONE", graph, blocks, 0.6, **changes) for graph, blocks in phone),  # type: ignore[arg-type]
        OutcomeRecord(cell, Status.PASSED, phone="s24"),
    ]


MODES: list[tuple[str, tuple[tuple[Graph, int], ...]]] = [
    (KV, (("kv", 4),)),
    (HYBRID, (("prefill", 8), ("kv", 4))),
    (LOOKAHEAD, (("prefill", 8),)),
]


def the_run(tmp_path: Path, **changes: object) -> RunSummary:
    """The tiny model's three modes as they are measured: the kv graph over half of what the others score."""
    plan: list[Record] = [planned(cell, 75) for cell, _ in MODES]
    made = [record for cell, phone in MODES for record in cell_of(cell, *phone, **changes)]
    return summarise(load_run(write_run(tmp_path, made=[run_info(), *plan, *made])))


def test_sums_are_of_the_first_tokens() -> None:
    record = score(KV, "QDQ", "full", 3)
    assert sums(record) == {32: EASY, 64: 2 * EASY, 96: 3 * EASY}
    assert sums(replace(record, blocks=())) == {96: 3 * EASY}
    assert sums(replace(record, blocks=(), tokens=0)) == {}
    assert over(record, 64) == pytest.approx(math.exp(EASY / 32))
    assert math.isnan(over(record, 50))
    assert over(replace(record, nll_sum=1e9), 96) == math.inf


def test_what_is_alike_is_so_up_to_the_most_tokens_that_all_scored() -> None:
    long, short = score(KV, "QDQ", "full", 8), score(KV, "PHONE", "kv", 4)
    assert alike([long, short]) == Alike(128, False)
    assert alike([long, replace(long, ground="FP")]) == Alike(256, True)
    assert alike([long, short, score(KV, "PHONE", "prefill", 2)]) == Alike(64, False)
    assert alike([long, replace(short, blocks=())]) == Alike(128, False)
    assert alike([replace(long, blocks=()), short]) == Alike(None, False)
    assert alike([]) == Alike(None, True)


def test_another_text_or_another_look_back_is_not_alike() -> None:
    record = score(KV, "QDQ", "full", 8)
    assert alike([record, replace(record, ground="PHONE", words=7)]) == Alike(None, False)
    assert alike([record, replace(record, ground="PHONE", context_len=64)]) == Alike(64, False)
    assert alike([replace(record, blocks=()), replace(record, blocks=(), context_len=64)]) == Alike(None, False)


def test_the_phones_change_is_over_the_tokens_that_both_scored(tmp_path: Path) -> None:
    kv, hybrid, _ = the_run(tmp_path).cells
    found = against_before(kv.on("PHONE")[0], kv)
    assert found is not None
    assert (found.other.ground, found.tokens, found.word) == ("QDQ", 128, "-")
    assert (found.token, found.note) == ("+0.31 %", "over the first 128 tokens")  # exp(0.1 / 32)
    prefill = against_kv(hybrid.on("PHONE")[1], hybrid)
    assert prefill is not None
    assert (prefill.token, prefill.tokens) == ("+0.00 %", 128)


def test_all_of_a_models_figures_in_a_report_are_over_the_same_tokens(tmp_path: Path) -> None:
    summary = the_run(tmp_path)
    found = alike_in(summary)
    assert set(found.values()) == {Alike(128, False)}
    shown = {found[cell.id].figure(record) for cell in summary.cells for record in cell.perplexities}
    assert {(one.tokens, one.note) for one in shown} == {(128, "a token, first 128")}
    fp, qdq, phone = (f"{a_token(4, off):.3f}" for off in (0.0, 0.5, 0.6))
    whole = f"{a_token(8, 0.5):.3f}"
    assert (fp, qdq, phone, whole) == ("6.521", "6.624", "6.644", "9.053")
    markdown, html = report_markdown(summary), report_html(summary)
    numbers, _, rest = markdown.partition("## Perplexity")
    table, _, details = rest.partition("## Cells")
    note = "(a token, first 128)"
    assert f"{fp[:4]} {note} | {qdq[:4]} {note} | {phone[:4]} (kv, a token, first 128)" in numbers
    rows = f"| {fp[:4]} | {qdq[:4]} (+1.57 %) | {phone[:4]} (+0.31 %) |"
    assert f"| {KV} {rows} - | - | 128 |" in table
    assert f"| {HYBRID} {rows} {phone[:4]} (+0.31 %) | +0.00 % | 128 |" in table
    for part in (numbers, table):
        assert whole[:4] not in part
    assert "256 tokens" in details
    assert "vs QDQ over the first 128 tokens" in details
    assert "<small>a token, first 128</small>" in html
    assert '<th scope="col" class="n">a token<small class="line">first 128</small></th>' in html
    file = io.StringIO()
    print_table(summary, file)
    assert "ppl: perplexity of the held-out text, of a token, first 128;" in file.getvalue()
    assert whole[:4] not in file.getvalue()
    assert f"{phone[:4]} (kv, a token, first 128)" in render_summary(summary)
    assert whole[:4] not in render_summary(summary)


def test_the_plot_of_a_cell_is_over_the_same_tokens_or_not_drawn(tmp_path: Path) -> None:
    cell = the_run(tmp_path / "a").cells[0]
    drawn = draw_perplexities(cell, "x")
    assert drawn is not None
    assert "token perplexity by phase, 128 tokens" in drawn
    assert f"phone kv {a_token(4, 0.6):.2f}"[:13] in drawn
    assert draw_perplexities(the_run(tmp_path / "b", blocks=()).cells[0], "x") is None


def test_figures_that_have_no_tokens_in_common_are_marked(tmp_path: Path) -> None:
    summary = the_run(tmp_path, blocks=())
    assert set(alike_in(summary).values()) == {Alike(None, False)}
    markdown, html, cut = report_markdown(summary), report_html(summary), render_summary(summary)
    assert "(kv, over 128 tokens)" in markdown
    assert "(over 256 tokens)" in markdown
    assert "not the same" in markdown
    assert "over 128 tokens" in html
    assert "not the same" in html
    assert "(kv, over 128 tokens)" in cut
    cell = summary.cells[0]
    assert against_before(cell.on("PHONE")[0], cell) is None
    file = io.StringIO()
    print_table(summary, file)
    shown = " ".join(file.getvalue().split())
    assert "of what stands below it" in shown
    assert "over 256" in shown


def test_a_whole_text_that_all_scored_is_a_words_perplexity_and_needs_no_mark(tmp_path: Path) -> None:
    made = [record for cell in (KV, HYBRID) for record in cell_of(cell, ("kv", 8))]
    folder = write_run(tmp_path, made=[run_info(), planned(KV, 75), planned(HYBRID, 75), *made])
    summary = summarise(load_run(folder))
    record = summary.cells[0].on("PHONE")[0]
    assert alike_in(summary)[KV].figure(record).value == record.word_ppl
    assert "a token, first" not in report_markdown(summary)
    assert "first 256" not in report_html(summary)


def test_exports_say_over_how_many_tokens(tmp_path: Path) -> None:
    summary = the_run(tmp_path)
    assert "word perplexity, PHONE kv, 128 tokens: " in render_junit(summary)
    assert 'graph="kv",tokens="128"' in render_prometheus(summary)
    tokens = {
        (one.metric.extra_info["graph"], one.metric.extra_info["tokens"])
        for one in pytorch_records(summary)
        if one.metric.name == "word_perplexity"
    }
    assert tokens == {("full", "256"), ("prefill", "256"), ("kv", "128")}


# The matrix


def cells(*scores: tuple[PerplexityRecord, ...]) -> list[object]:
    modes = ("kv", "hybrid", "lookahead")
    return [
        result(f"r{number}", cell=f"tiny_llama-{mode}-SM8650", mode=mode, scores=one)
        for number, (mode, one) in enumerate(zip(modes, scores, strict=False))
    ]


def test_all_of_a_models_cells_in_the_matrix_show_the_same_tokens() -> None:
    kv, prefill = score(KV, "PHONE", "kv", 4), score(KV, "PHONE", "prefill", 8)
    found = shown_alike([(kv,), (kv, prefill), (prefill,)])
    assert [(one.of, one.graph, one.tokens) for one in found] == [
        ("token", "kv", 128), ("token", "kv", 128), ("token", "prefill", 128)
    ]  # fmt: skip
    assert {round(one.value, 6) for one in found} == {round(a_token(4), 6)}
    matrix = compatibility(cells((kv,), (kv, prefill), (prefill,)), NOW)  # type: ignore[arg-type]
    console = Console(record=True, width=200, file=io.StringIO())
    print_matrix(matrix, console)
    value = f"{a_token(4):.2f}"
    for said in (render_html(matrix), render_markdown(matrix), console.export_text()):
        assert said.count(f"ppl {value}") == 3
        assert said.count("a token, first 128") == 3
    rows = list(csv.DictReader(io.StringIO(render_csv(matrix))))
    assert {(row["ppl_of"], row["ppl_tokens"]) for row in rows} == {("token", "128")}
    assert len({row["ppl"] for row in rows}) == 1


def test_cells_that_all_have_a_graph_over_the_same_text_show_its_words() -> None:
    kv, prefill = score(KV, "PHONE", "kv", 4), score(KV, "PHONE", "prefill", 8)
    found = shown_alike([(kv,), (kv, replace(kv, graph="prefill"))])
    assert [(one.value, one.of, one.graph, one.note) for one in found] == [(kv.word_ppl, "word", "kv", "")] * 2
    # More tokens tell more, though they are a token's.
    assert [(one.of, one.tokens) for one in shown_alike([(kv, prefill), (kv, score(KV, "PHONE", "prefill", 6))])] == [
        ("token", 192)
    ] * 2
    assert [one.of for one in shown_alike([(prefill,)])] == ["word"]
    assert shown_alike([]) == []


def test_a_figure_over_other_tokens_than_its_neighbours_is_marked_in_the_matrix() -> None:
    kv, prefill = score(KV, "PHONE", "kv", 4, blocks=()), score(KV, "PHONE", "prefill", 8, blocks=())
    matrix = compatibility(cells((kv,), (prefill,)), NOW)  # type: ignore[arg-type]
    text = render_markdown(matrix)
    assert f"ppl {kv.word_ppl:.2f} (kv, over 128 tokens)" in text
    assert f"ppl {prefill.word_ppl:.2f} (prefill, over 256 tokens)" in text
    assert {row["ppl_tokens"] for row in csv.DictReader(io.StringIO(render_csv(matrix)))} == {"128", "256"}
    # Another model's tokens are another text's: they decide nothing here.
    other = result("r9", cell="other-kv-SM8650", model="other", scores=(scored("kv", 2),))
    (first, *_) = compatibility([*cells((score(KV, "PHONE", "kv", 4),)), other], NOW).entries.values()  # type: ignore[list-item]
    assert first.ppl is not None


def test_another_text_is_marked_in_the_matrix() -> None:
    one = score(KV, "PHONE", "kv", 4)
    assert [shown.note for shown in shown_alike([(one,), (replace(one, words=70),)])] == ["over 128 tokens"] * 2


def test_another_look_back_counts_as_far_as_the_shortest_reaches() -> None:
    long, short = score(KV, "PHONE", "kv", 8), score(KV, "PHONE", "kv", 8, context_len=64)
    assert [one.tokens for one in shown_alike([(long,), (short,)])] == [64, 64]


# Against another run, and against a baseline


def side(folder: Path, name: str, *scores: PerplexityRecord) -> Path:
    place = folder / name
    made: list[Record] = [replace(run_info(), id=name), planned(KV, 75), *scores, OutcomeRecord(KV, Status.PASSED)]
    return write_run(place, made=made)


def test_two_runs_that_scored_different_shares_compare_over_the_common_one(tmp_path: Path) -> None:
    long, short = score(KV, "PHONE", "kv", 8), score(KV, "PHONE", "kv", 5, 0.32)
    found = compare_perplexities([long], [short])["kv"]
    assert (found.judgement, found.documents, found.tokens) == (Judgement.REGRESSED, 5, 160)
    assert found.ratio == pytest.approx(math.exp(0.32 / 32))
    assert found.base == pytest.approx(over(long, 160))
    assert found.reason == "over the first 160 tokens, of 256 against 160"
    whole = compare_perplexities([long], [score(KV, "PHONE", "kv", 8)])["kv"]
    assert (whole.judgement, whole.tokens, whole.reason) == (Judgement.OK, 256, "")
    none = compare_perplexities([replace(long, blocks=())], [short])["kv"]
    assert (none.judgement, none.base) == (Judgement.INVALID, None)
    assert "256 tokens against 160" in none.reason
    # Blocks that only one side has are no reason not to compare the whole.
    assert compare_perplexities([long], [replace(long, blocks=())])["kv"].judgement is Judgement.OK
    console = Console(record=True, width=220, file=io.StringIO())
    print_comparison(compare_runs(load_run(side(tmp_path, "a", long)), load_run(side(tmp_path, "b", short))), console)
    text = console.export_text()
    assert "5 blocks, 160 tokens" in text
    assert "over the first 160 tokens" in text


@pytest.mark.parametrize("off", [math.nan, math.inf])
def test_a_candidate_whose_perplexity_is_no_number_regressed(tmp_path: Path, off: float) -> None:
    base, broken = score(KV, "PHONE", "kv", 8), score(KV, "PHONE", "kv", 8, off)
    assert compare_perplexities([base], [broken])["kv"].judgement is Judgement.REGRESSED
    assert compare_perplexities([broken], [base])["kv"].judgement is Judgement.INVALID
    sides = side(tmp_path, "a", base), side(tmp_path, "b", broken)
    found = run_gate(sides[1], sides[0], str(tmp_path / "h.sqlite"), tmp_path / "none")
    assert found.status == 1
    assert "perplexity of the kv graph +inf% against the base" in found.findings[0].what


def test_a_baseline_over_fewer_tokens_holds_for_the_first_ones(tmp_path: Path) -> None:
    place = tmp_path / "baselines"
    accept(side(tmp_path, "a", score(KV, "PHONE", "kv", 4)), "first", "Ada", place, datetime(2026, 1, 2, tzinfo=UTC))

    def findings(name: str, one: PerplexityRecord) -> tuple[int, str]:
        found = run_gate(side(tmp_path, name, one), history=str(tmp_path / f"{name}.sqlite"), folder=place)
        return found.status, "; ".join(finding.what for finding in found.findings)

    assert findings("more", score(KV, "PHONE", "kv", 8)) == (0, "")
    status, said = findings("worse", score(KV, "PHONE", "kv", 8, 0.64))
    assert status == 1
    assert said.startswith("perplexity on PHONE [kv] 6.65 over 128 tokens, accepted was 6.52")
    status, said = findings("unlike", score(KV, "PHONE", "kv", 8, blocks=()))
    assert (status, "INVALID: accepted over 128 tokens, scored over 256" in said) == (0, True)
    assert findings("nan", score(KV, "PHONE", "kv", 4, math.nan))[0] == 1
