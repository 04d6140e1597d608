"""The report of a run of A against B, and of `htpfarm compare`: what it says, its plot, and how it looks."""

from __future__ import annotations

import itertools
import re
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from ab_run import EVERY, FAST, SAME, SHORT, SLOW, WRONG, write_ab_run
from browser import SCHEMES, WIDTHS, browser, overflows, page, serious
from sample_run import EVIL, run_info, sample, write_run
from test_results_report import _Page

from harness.cli import main
from harness.compare.keep import judge_ab, write_ab_reports
from harness.compare.view import BASE_SIDE, ab_view, replies
from harness.results import load_run
from harness.results.against import Against, CellAgainst, Measured, percent
from harness.results.pair_plot import MARGIN, draw_pairs
from harness.results.records import ComparisonRecord
from harness.results.report import (
    MANY,
    render_comparison_html,
    render_comparison_markdown,
    render_html,
    render_markdown,
    write_reports,
)
from harness.results.summary import summarise
from harness.target import Target
from harness.verdicts import RULES

VERDICTS = {SLOW: "REGRESSED", WRONG: "REGRESSED", SHORT: "INVALID", FAST: "IMPROVED", SAME: "OK"}


def seen(folder: Path) -> Against:
    found = ab_view(folder)
    assert found is not None
    return found


def cell(against: Against, name: str) -> CellAgainst:
    return next(one for one in against.cells if one.cell == name)


def speed(against: Against, name: str, metric: str = "decode_tok_s") -> Measured:
    return next(one for one in cell(against, name).measured if one.record.metric == metric)


def rows(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_cell_has_its_verdict_and_the_worst_stand_first(tmp_path: Path) -> None:
    against = seen(write_ab_run(tmp_path))
    assert {one.cell: one.judgement for one in against.cells} == VERDICTS
    assert [one.judgement for one in against.cells] == ["REGRESSED", "REGRESSED", "INVALID", "IMPROVED", "OK"]
    assert (against.headline, against.detail) == ("REGRESSED", "5 cells: 2 REGRESSED, 1 INVALID, 1 IMPROVED, 1 OK")
    assert against.toolchain == {"qnn": ("2.4.0", "2.7.0")}
    assert {look.cell for look in against.look if look.blocks} == {SLOW, WRONG}
    assert {look.cell for look in against.look if not look.blocks} == {SHORT, FAST}


def test_pairs_are_those_of_the_samples_in_the_order_taken(tmp_path: Path) -> None:
    folder = write_ab_run(tmp_path)
    slow = speed(seen(folder), SLOW)
    sides = [load_run(place).samples[SLOW] for place in (folder / BASE_SIDE, folder)]
    expected = [[sample.decode_tok_s for sample in side if sample.pair is not None] for side in sides]
    assert [[pair.base for pair in slow.pairs], [pair.candidate for pair in slow.pairs]] == expected
    assert [pair.first for pair in slow.pairs] == ["base", "candidate"] * 4
    assert slow.record.pairs == len(slow.pairs) == 8
    assert slow.record.change == pytest.approx(1 / 1.1 - 1, abs=0.002)
    assert re.fullmatch(r"-9\.\d% \(-\d+\.\d% to -\d+\.\d%\)", slow.change)
    assert not speed(seen(folder), SHORT).pairs


def test_the_token_that_differs_and_both_texts_are_there(tmp_path: Path) -> None:
    (reply,) = cell(seen(write_ab_run(tmp_path)), FAST).replies
    assert (reply.place, reply.tokens, reply.unit) == (2, (9, 77), "token")
    assert (reply.base, reply.candidate) == (" was the word", f" was {EVIL}")
    assert (reply.base[: reply.shared], reply.base[reply.shared :]) == (" was ", "the word")
    assert reply.where == "from token 2 on (9 in the base, 77 in the candidate)"
    shorter = sample(FAST, raw={"turns": [{"tokens": [7, 8]}]})
    (cut,) = replies([sample(FAST, raw={"turns": [{"tokens": [7, 8, 9]}]})], [shorter])
    assert cut.where == "from token 2 on (9 in the base, none in the candidate)"
    (plain,) = replies([sample(FAST, text="abc", raw={})], [sample(FAST, text="abd", raw={})])
    assert plain.where == "from character 2 on"
    assert replies([sample(FAST)], [sample(FAST)]) == ()


def test_the_report_says_the_comparison_before_the_matrix(tmp_path: Path) -> None:
    folder = write_ab_run(tmp_path)
    found = _Page(render_html(summarise(load_run(folder)), against=ab_view(folder)))
    text = " ".join(found.text.split())
    assert text.index("FAILED 5 cells") < text.index("Base → candidate: REGRESSED 5 cells: 2 REGRESSED")
    assert text.index("Base → candidate: REGRESSED") < text.index("Look at first") < text.index("Matrix")
    for piece in (
        "Base 20260102-030405-cafe-base, candidate 20260102-030405-cafe .".replace(" .", "."),
        "qnn2.4.0 → 2.7.0",
        f"{WRONG}: perplexity of the kv graph +5.02% against the base What to do: compare the two sides' QDQ",
        "ttft_ms, prefill_tok_s, decode_tok_s: INVALID: session 0: token counts differ",
        "8 pairs, in the order taken",
        "differs from token 2 on (9 in the base, 77 in the candidate)",
        "Text: 1 of 1 greedy replies differ",
        "perplexity [kv]",
        "51.0953.668 blocks",
    ):
        assert piece in text, piece
    assert len(found.ids) == len(set(found.ids))
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    shown = EVIL.replace("\x1b", "␛").replace("\u202e", "\ufffd")
    assert f"candidate was {shown}" in found.pre
    assert found.tags.count("script") == 1
    assert found.loads == []


def test_a_run_without_a_base_has_no_such_section(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    assert ab_view(folder) is None
    assert "Base → candidate" not in render_html(summarise(load_run(folder)))
    assert "Base → candidate" not in render_markdown(summarise(load_run(folder)))


def test_markdown_has_the_same_and_whole_tables(tmp_path: Path) -> None:
    folder = write_ab_run(tmp_path)
    markdown = render_markdown(summarise(load_run(folder)), ab_view(folder))
    assert markdown.index("## Base → candidate") < markdown.index("## Matrix")
    found = rows(markdown)
    place = next(n for n, row in enumerate(found) if row[:2] == [SLOW, "✗ REGRESSED"])
    assert found[place][2:5] == ["ended", "PASSED", "FAILED"]
    assert found[place + 3][:5] == ["", "✗ REGRESSED", "sim decode, tok/s", "10.00", "9.09"]
    assert found[place + 3][5] == speed(seen(folder), SLOW).change
    assert found[place + 3][6] == "8 pairs"
    for table in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE):
        assert len({len(row) for row in rows(table)}) == 1, table
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside
    for before, line in itertools.pairwise(markdown.splitlines()):
        if line.startswith("#") or (line.startswith("|") and not before.startswith("|")):
            assert before == "", (before, line)


def test_on_phones_nothing_is_called_the_simulators(tmp_path: Path) -> None:
    folder = write_ab_run(tmp_path, Target.ANDROID)
    against = seen(folder)
    for text in (_Page(render_comparison_html(against)).text, render_comparison_markdown(against)):
        assert not re.search(r"\bsim\b|simulator", text)


def test_without_the_bases_records_the_runs_own_say_it(tmp_path: Path) -> None:
    """As where only a run's `records.jsonl` was kept."""
    kept = ComparisonRecord(SLOW, "x-base", "s24", "decode_tok_s", "REGRESSED", -0.09, -0.1, -0.08, 8, 1e-9, 10.0, 9.1)
    older = replace(kept, judgement="OK", change=0.0)
    folder = write_ab_run(tmp_path, Target.SIM, EVERY, older, kept)
    shutil.rmtree(folder / BASE_SIDE)
    against = seen(folder)
    assert [(one.cell, one.judgement) for one in against.cells] == [(SLOW, "REGRESSED")]
    assert (against.base, speed(against, SLOW).record) == ("x-base", kept)
    assert "the base's are not here" in render_comparison_markdown(against)
    assert "the base's are not here" in _Page(render_comparison_html(against)).text


def test_the_plot_shows_each_pair_the_interval_and_zero(tmp_path: Path) -> None:
    slow = speed(seen(write_ab_run(tmp_path)), SLOW)
    drawn = draw_pairs(slow, "x", "sim ")
    assert drawn is not None
    svg = ET.fromstring(drawn)
    circles = svg.findall(".//circle")
    assert [circle.get("class") for circle in circles] == ["disc", "ring"] * 4
    zero = float(svg.find(".//path[@class='axis']").get("d").split()[1].split("H")[0])  # type: ignore[union-attr]
    assert all(float(circle.get("cy", "0")) > zero for circle in circles)  # a lower rate lies below no change
    band = svg.find("rect")
    assert band is not None
    heights = [float(circle.get("cy", "0")) for circle in circles]
    assert min(heights) < float(band.get("y", "0")) < max(heights)
    said = svg.findtext("desc")
    assert said is not None
    assert said.startswith("REGRESSED: 8 pairs in the order taken: -9.")
    assert svg.findtext("title") == "sim decode, change of each pair"
    better = draw_pairs(speed(seen(tmp_path / "20260102-030405-cafe"), FAST, "ttft_ms"), "y")
    assert better is not None
    assert "up is worse" in better


def test_a_plot_needs_two_pairs_and_holds_the_rules_margin(tmp_path: Path) -> None:
    slow = speed(seen(write_ab_run(tmp_path)), SLOW)
    assert draw_pairs(replace(slow, pairs=slow.pairs[:1]), "x") is None
    huge = replace(slow, pairs=tuple(replace(pair, candidate=1e9) for pair in slow.pairs))
    assert draw_pairs(huge, "x") is not None
    assert RULES.margin == MARGIN


def test_percent() -> None:
    values = (0.0, 0.0004, -0.012, 0.5, -0.999, 12.0, None, float("nan"))
    assert [percent(value) for value in values] == [
        "+0.00%", "+0.04%", "-1.2%", "+50.0%", "-99.9%", "+1200%", "–", "–",
    ]  # fmt: skip


def test_many_cells_are_folded(tmp_path: Path) -> None:
    cells = [(f"m{number}-kv-SM8650", 10.0) for number in range(MANY + 1)]
    folder = write_ab_run(tmp_path, Target.SIM, cells)
    html = render_comparison_html(seen(folder))
    assert "<body class=many>" in html
    assert " open>" not in html
    assert len(html) < 1_500_000


def test_compare_writes_pages_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_ab_run(tmp_path)
    made = [tmp_path / "out" / name for name in ("c.html", "c.md")]
    words = ["compare", str(folder / BASE_SIDE), str(folder), "--html", str(made[0]), "--markdown", str(made[1])]
    assert main(words) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [str(path) for path in made]
    assert made[1].read_text().startswith("# REGRESSED: 20260102-030405-cafe-base → 20260102-030405-cafe\n")
    found = _Page(made[0].read_text())
    assert "Matrix" not in found.text
    assert SLOW in found.text


def test_a_run_of_a_against_b_has_it_in_its_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the end of the run, and when `htpfarm report` writes them again; with another base, where one is given."""
    folder = write_ab_run(tmp_path)
    judged = judge_ab(folder)
    assert judged is not None
    write_ab_reports(folder, judged[0])
    html = (folder / "report.html").read_text()
    assert "Gate: ✗ FAIL" in html
    assert 'id="h-against"' in html
    assert "## Base → candidate" in (folder / "report.md").read_text()
    write_reports(folder)
    assert 'id="h-against"' not in (folder / "report.html").read_text()
    assert main(["report", str(folder)]) == 1
    assert 'id="h-against"' in (folder / "report.html").read_text()
    other = write_run(tmp_path / "other")
    assert main(["report", str(folder), "--base", str(other)]) == 1
    assert f"candidate <b>{folder.name}</b>" in (folder / "report.html").read_text()
    assert f"Base <b>{run_info().id}</b>" in (folder / "report.html").read_text()
    capsys.readouterr()


def test_the_pages_in_a_browser(tmp_path: Path) -> None:
    folder = write_ab_run(tmp_path)
    html, _ = write_reports(folder, against=ab_view(folder))
    own = tmp_path / "own.html"
    own.write_text(render_comparison_html(seen(folder)))
    with browser() as opened:
        for path, width, scheme in itertools.product((html, own), WIDTHS, SCHEMES):
            with page(opened, path.as_uri(), width, scheme) as found:
                found.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
                assert serious(found) == [], (path, width, scheme)
                assert overflows(found) <= 0, (path, width, scheme)
        with page(opened, own.as_uri()) as found:
            found.get_by_role("status").get_by_text("5 of 5 cells shown").wait_for()
            found.get_by_role("checkbox", name="OK").uncheck()
            found.get_by_role("status").get_by_text("4 of 5 cells shown").wait_for()
            assert found.locator(f"details[data-cell='{SAME}']").is_hidden()
            found.locator("table.against a", has_text=FAST).click()
            assert found.locator(f"details[data-cell='{FAST}']").evaluate("each => each.open")
            assert found.get_by_text("<script>alert('x')</script>").first.is_visible()
        with page(opened, html.as_uri()) as found:
            found.get_by_role("status").get_by_text("5 of 5 cells shown").wait_for()
            found.get_by_label("passed").uncheck()
            found.get_by_role("status").get_by_text("2 of 5 cells shown").wait_for()
            assert found.locator("table.against tbody tr:visible").count() == 2
