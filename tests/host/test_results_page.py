"""The report in a browser: 500 cells, filters, keyboard, what a screen reader is told; and the small plots."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from big_run import SCRIPT, write_big_run
from browser import SCHEMES, WIDTHS, browser, overflows, page, serious
from sample_run import BROKEN, EVIL, GOOD, sample, wide_records, write_run

from harness.results import load_run
from harness.results.cell_plots import LIMIT, Past, draw_line, draw_perplexities, past_line, speed_line
from harness.results.page import same_texts
from harness.results.report import HTML, render_html, write_reports
from harness.results.summary import CellSummary, summarise

MB = 1_000_000


@pytest.fixture(scope="module")
def opened() -> Iterator[Any]:
    """One browser for all of them: to start one takes seconds."""
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of 500 cells."""
    folder = write_big_run(tmp_path_factory.mktemp("big"))
    write_reports(folder)
    return folder / HTML


def _good(tmp_path: Path) -> CellSummary:
    return summarise(load_run(write_run(tmp_path))).cells[0]


def test_500_cells_weigh_less_than_8_mb_and_open(opened: Any, big: Path) -> None:
    assert big.stat().st_size < 8 * MB
    with page(opened, big.as_uri()) as found:
        took = found.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        print(f"500 cells, {big.stat().st_size / MB:.2f} MB: loaded in {took:.0f} ms")
        assert found.locator("details.cell").count() == 500
        assert found.locator("script").count() == 1
        assert serious(found) == []
        found.get_by_label("Find").fill("model_3_1b lookahead SM8650")
        found.get_by_role("status").get_by_text("3 of 500 cells shown").wait_for()
        assert found.locator("details.cell:not([hidden])").count() == 3
        assert found.locator(".matrix tbody tr:not([hidden])").count() == 1


def test_a_models_script_shows_as_text(opened: Any, big: Path) -> None:
    with page(opened, big.as_uri()) as found:
        cell = found.locator("details.cell", has_text=SCRIPT).first
        cell.evaluate("each => { each.open = true; each.scrollIntoView(); }")
        assert cell.locator("pre", has_text=SCRIPT).first.is_visible()
        assert found.locator("script").count() == 1


def test_the_policy_refuses_a_script_that_got_in_all_the_same(opened: Any, tmp_path: Path) -> None:
    made = render_html(summarise(load_run(write_run(tmp_path))))
    path = tmp_path / "injected.html"
    path.write_text(made.replace("</main>", "</main><script>document.title = 'ran'</script>"))
    context = opened.new_context()
    found = context.new_page()
    found.goto(path.as_uri())
    assert found.title() != "ran"
    assert found.locator("#filter").is_visible()  # and ours did run
    context.close()


@pytest.mark.parametrize("kind", ["every ending", "all that is measured"])
def test_nothing_serious_at_any_width_or_scheme(opened: Any, tmp_path: Path, kind: str) -> None:
    folder = write_run(tmp_path, made=wide_records() if kind == "all that is measured" else ())
    html, _ = write_reports(folder)
    for width, scheme in itertools.product(WIDTHS, SCHEMES):
        with page(opened, html.as_uri(), width, scheme) as found:
            found.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
            assert serious(found) == [], (width, scheme)
            assert overflows(found) <= 0, (width, scheme)


def test_the_filter_hides_and_says_so_and_the_keyboard_reaches_all(opened: Any, tmp_path: Path) -> None:
    html, _ = write_reports(write_run(tmp_path))
    with page(opened, html.as_uri()) as found:
        status = found.get_by_role("status")
        status.get_by_text("5 of 5 cells shown").wait_for()
        found.get_by_label("passed").uncheck()
        status.get_by_text("4 of 5 cells shown").wait_for()
        assert found.locator(f"tr[data-cell='{GOOD}']:visible").count() == 0
        assert found.locator(f"details[data-cell='{BROKEN} s23']").is_visible()
        found.get_by_role("button", name="Show all").click()
        status.get_by_text("5 of 5 cells shown").wait_for()
        found.reload()  # or the keys would go on from the button that was clicked
        focused = set()
        for _ in range(40):
            found.keyboard.press("Tab")
            focused.add(found.evaluate("document.activeElement.tagName"))
        assert {"INPUT", "BUTTON", "A", "DIV", "SUMMARY"} <= focused
        assert [found.locator(name).count() for name in ("main", "h1", "main > header")] == [1, 1, 1]


def test_a_link_opens_its_cell(opened: Any, tmp_path: Path) -> None:
    html, _ = write_reports(write_run(tmp_path))
    with page(opened, html.as_uri()) as found:
        found.locator(".matrix a", has_text="PASSED").click()
        cell = found.locator(f"details[data-cell='{GOOD}']")
        assert cell.evaluate("each => each.open")
        assert found.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_without_a_script_all_is_there(opened: Any, tmp_path: Path) -> None:
    html, _ = write_reports(write_run(tmp_path))
    context = opened.new_context(java_script_enabled=False)
    found = context.new_page()
    found.goto(html.as_uri())
    assert found.locator("#filter").is_hidden()
    assert found.locator("details.cell:visible").count() == 5
    context.close()


def test_small_plots_are_whole_and_say_their_numbers(tmp_path: Path) -> None:
    cell = _good(tmp_path)
    line = speed_line(cell)
    assert line is not None
    assert (line.values, line.breaks) == ((3.71, 3.9), (1,))
    drawn = ET.fromstring(draw_line(line, "x"))
    assert [each.text for each in drawn if each.tag in ("title", "desc")] == [
        "decode, tok/s, over time",
        "2 samples in 2 session(s), from 3.71 to 3.90 tok/s",
    ]
    scores = draw_perplexities(cell, "y")
    assert scores is not None
    assert "FP 12.30, QDQ 12.42, phone kv 12.43, phone prefill 12.44" in scores
    assert len(ET.fromstring(scores).findall(".//path[@class='dots']")) == 4


def test_a_plot_needs_two_numbers(tmp_path: Path) -> None:
    cell = _good(tmp_path)
    one = replace(cell, samples=cell.samples[:1], perplexities=cell.perplexities[:1])
    assert (speed_line(one), draw_perplexities(one, "x")) == (None, None)
    values = (float("nan"), float("inf"), LIMIT, -1.0, None)
    broken = tuple(sample(GOOD, number, decode_tok_s=value) for number, value in enumerate(values))
    assert speed_line(replace(cell, samples=broken)) is None
    zeros = tuple(sample(GOOD, n, decode_tok_s=0.0) for n in range(2))
    line = speed_line(replace(cell, samples=zeros))
    assert line is not None
    ET.fromstring(draw_line(line, "x"))


def test_history_is_drawn_with_its_change_points(tmp_path: Path) -> None:
    days = range(1, 15)
    past = [Past(f"r{day}", f"2026-10-{day:02d}T00:00:00+00:00", 3.7 - (day > 7) * 0.5, day == 8) for day in days]
    line = past_line("decode, tok/s", past)
    assert line is not None
    assert (line.breaks, line.first, line.last) == ((7,), "2026-10-01", "2026-10-14")
    assert "a change point at 2026-10-08 00:00:00 UTC, run r8" in line.description
    assert past_line("x", past[:1]) is None
    made = render_html(summarise(load_run(write_run(tmp_path))), {GOOD: {"decode, tok/s": past}})
    assert "decode, tok/s, over runs" in made


def test_samples_of_one_text_stand_together(tmp_path: Path) -> None:
    cell = _good(tmp_path)
    same = [sample(GOOD, number, text=EVIL) for number in range(3)]
    assert [len(group) for group in same_texts(replace(cell, samples=(*same, sample(GOOD, 3))))] == [3, 1]
