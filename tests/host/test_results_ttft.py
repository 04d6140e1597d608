from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_run import EVIL, PHONES, planned, run_info, sample, ttfts, wide_cell, wide_records, write_run

from harness.results import OutcomeRecord, Record, Status, TtftRecord, load_run
from harness.results.report import render_html, render_markdown
from harness.results.summary import RunSummary, summarise
from harness.results.ttft import Plot, plots
from harness.results.ttft_plot import HEIGHT, WIDTH, draw, swatch, ticks
from harness.target import Target

CELL = "tiny_llama-hybrid-SM8650"


def _summary(folder: Path, *records: Record, target: Target = Target.SIM) -> RunSummary:
    return summarise(load_run(write_run(folder, made=[run_info(target), planned(CELL, 75), *records])))


def _ttft(tokens: int, ms: float, **changes: object) -> TtftRecord:
    values: dict[str, object] = {
        "cell": CELL,
        "phone": "s24",
        "serial": "127.0.0.1:5601",
        "target": Target.SIM,
        "graph": "prefill",
        "ar_len": 32,
        "prompt_tokens": tokens,
        "blocks": -(-tokens // 32),
        "ttft_ms": ms,
    }
    return TtftRecord(**(values | changes))  # type: ignore[arg-type]


def _svg(plot: Plot) -> ET.Element:
    return ET.fromstring(str(draw(plot, "p")))


def _of_class(svg: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in svg.iter() if name in element.get("class", "").split()]


def _at(element: ET.Element) -> tuple[float, float]:
    """Where a mark's path starts from, less its shape: the point it stands for."""
    match = re.match(r"M(-?[\d.]+) (-?[\d.]+)m", element.get("d", ""))
    assert match
    return float(match[1]), float(match[2])


def test_a_plot_for_each_model_mode_graph_and_ar_length(tmp_path: Path) -> None:
    found = plots(summarise(load_run(write_run(tmp_path, made=wide_records()))))
    assert [(plot.label, plot.graph, plot.ar_len, plot.is_sim) for plot in found] == [
        ("tiny_llama · hybrid", "prefill", 32, True),
        ("tiny_llama · kv", "kv", 1, True),
        ("tiny_llama · lookahead", "prefill", 32, True),
    ]
    for plot in found:
        assert [series.name for series in plot.series] == [f"{soc} · {phone}" for phone, (soc, _) in PHONES.items()]
        assert {len(point.times) for series in plot.series for point in series.points} == {3}


def test_the_median_of_the_repeats_and_what_a_block_costs(tmp_path: Path) -> None:
    times = {(1, 10.0), (1, 11.0), (1, 90.0), (32, 13.0), (33, 20.0), (96, 32.0)}
    (plot,) = plots(_summary(tmp_path, *(_ttft(tokens, ms, repeat=index) for index, (tokens, ms) in enumerate(times))))
    (series,) = plot.series
    assert [(point.tokens, point.blocks, point.median) for point in series.points] == [
        (1, 1, 11.0),
        (32, 1, 13.0),
        (33, 2, 20.0),
        (96, 3, 32.0),
    ]
    assert series.ms_per_block == pytest.approx((32 - 12) / 2)
    assert [(tokens, blocks) for tokens, blocks, _ in plot.rows] == [(1, 1), (32, 1), (33, 2), (96, 3)]
    assert replace(series, points=series.points[:2]).ms_per_block is None


def test_only_the_last_attempt_is_drawn(tmp_path: Path) -> None:
    first = [_ttft(1, 10.0), _ttft(33, 20.0), sample(CELL)]
    (plot,) = plots(_summary(tmp_path / "a", *first, _ttft(1, 50.0, attempt=2, phone="s24b")))
    assert [(series.name, [point.median for point in series.points]) for series in plot.series] == [
        ("SM8650 · s24b", [50.0])
    ]
    # Neither is what the last attempt did not come to measure again: nobody knows that it still holds.
    summary = _summary(tmp_path / "b", *first, sample(CELL, attempt=2), OutcomeRecord(CELL, Status.PASSED, attempts=2))
    assert plots(summary) == ()
    assert "TTFT against" not in render_html(summary)
    assert "TTFT against" not in render_markdown(summary)


def test_every_measurement_is_a_mark_and_steps_are_at_the_ends_of_blocks(tmp_path: Path) -> None:
    (plot,) = plots(_summary(tmp_path, *ttfts(CELL, "s24", 32, 50.0, Target.SIM)))
    svg = _svg(plot)
    marks = _of_class(svg, "point")
    assert len(marks) == 33
    assert marks[0].findtext("title") == "SM8650 · s24: 1 token, 1 block, 54.0 ms"
    boundaries = [float(line.get("x1", "")) for line in _of_class(svg, "boundary")]
    assert len(boundaries) == 3
    assert [text.text for text in _of_class(svg, "block")] == ["1", "2", "3", "block"]
    (stairs,) = _of_class(svg, "stairs")
    rises = re.findall(r"H([\d.]+)V", stairs.get("d", ""))
    assert [float(x) for x in rises] == boundaries[:2]
    assert _of_class(svg, "gap") == []
    # Both sides of a boundary: 32 tokens on it and low, 33 right of it and a block higher.
    low, high = [_at(marks[index * 3 + 1]) for index in (3, 4)]
    assert low[0] == boundaries[0] < high[0]
    assert low[1] - high[1] > 20
    axis = [text.text for text in svg.iter("text")]
    assert "sim TTFT, ms" in axis
    assert "prompt length, tokens" in axis
    assert [text for text in axis if text in ("0", "32", "64", "96")][-4:] == ["0", "32", "64", "96"]


def test_what_lies_between_blocks_that_were_not_measured_is_dashed(tmp_path: Path) -> None:
    (plot,) = plots(_summary(tmp_path, _ttft(10, 50.0), _ttft(20, 51.0), _ttft(50, 99.0), _ttft(100, 200.0)))
    svg = _svg(plot)
    assert len(_of_class(svg, "gap")) == 1
    assert _of_class(svg, "gap")[0].get("d", "").count("M") == 1
    (stairs,) = _of_class(svg, "stairs")
    assert stairs.get("d", "").count("M") == 2
    # Though 20 and 50 were measured, the rise is at 32, where the block ends.
    assert re.findall(r"H([\d.]+)V", stairs.get("d", "")) == [_of_class(svg, "boundary")[0].get("x1")]


def test_an_ar_of_one_has_no_boundaries(tmp_path: Path) -> None:
    (plot,) = plots(_summary(tmp_path, *ttfts(CELL, "s24", 1, 5.0, Target.SIM)))
    svg = _svg(plot)
    assert _of_class(svg, "boundary") == _of_class(svg, "gap") == []
    assert len(_of_class(svg, "point")) == 33
    assert "each token is a step" in render_html(_summary(tmp_path / "b", *ttfts(CELL, "s24", 1, 5.0, Target.SIM)))


def test_phones_are_told_apart_by_colour_and_shape(tmp_path: Path) -> None:
    found = plots(summarise(load_run(write_run(tmp_path, made=wide_records()))))[0]
    svg = _svg(found)
    groups = _of_class(svg, "series")
    assert [group.get("class") for group in groups] == ["series s0", "series s1", "series s2", "series s3"]
    shapes = {(mark.get("d") or "").partition("m")[2] for group in groups for mark in _of_class(group, "point")}
    assert len(shapes) == 4
    many = replace(found, series=(found.series[0],) * 30)
    shown = {
        (group.get("class"), _of_class(group, "point")[0].get("d", "").partition("m")[2])
        for group in _of_class(_svg(many), "series")
    }
    assert len(shown) == 30
    swatches = [_of_class(ET.fromstring(str(swatch(index))), "series")[0] for index in (0, 7)]
    assert [group.get("class") for group in swatches] == ["series s0", "series s1"]


def test_a_reader_who_sees_no_picture_gets_its_title_its_ends_and_all_numbers(tmp_path: Path) -> None:
    summary = _summary(tmp_path, _ttft(1, 50.0), _ttft(64, 90.5), _ttft(64, 91.5, repeat=1))
    (plot,) = plots(summary)
    svg = _svg(plot)
    assert svg.get("role") == "img"
    ids = (svg.get("aria-labelledby") or "").split()
    assert [element.get("id") for element in svg[:2]] == ids == ["p-title", "p-desc"]
    assert svg[0].text == "sim time to first token against prompt length: tiny_llama · hybrid"
    assert svg[1].text == (
        "prefill graph, 32 tokens a block. SM8650 · s24: 50.0 ms at 1 token, 1 block, 91.0 ms at 64 tokens, 2 blocks."
    )
    html = render_html(summary)
    table = html[html.index('<details class="data">') :]
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", table[: table.index("</details>")])
    assert [re.sub(r"<[^>]+>", "", cell) for cell in cells] == [
        *("prompttokens", "blocks", "SM8650 · s24sim ms"),
        *("1", "1", "50.0"),
        *("64", "2", "91.0 90.5 to 91.5"),
    ]
    assert "| 64 | 2 | 91.0 (90.5 to 91.5) |" in render_markdown(summary)
    assert "| a block more | | 41.0 |" in render_markdown(summary)


@pytest.mark.parametrize("target", list(Target))
def test_sim_is_said_where_the_times_are_the_simulators(tmp_path: Path, target: Target) -> None:
    summary = _summary(tmp_path, _ttft(1, 50.0, target=target), target=target)
    (svg,) = (_svg(plot) for plot in plots(summary))
    words = " ".join(svg.itertext()).split()
    assert ("sim" in words) == (target is Target.SIM)
    html, markdown = render_html(summary), render_markdown(summary)
    assert ("Numbers of this plot, in sim ms" in html) == (target is Target.SIM)
    assert ("SM8650 · s24, sim ms" in markdown) == (target is Target.SIM)
    assert "SM8650 · s24" in markdown


def test_what_is_no_time_is_counted_and_not_drawn(tmp_path: Path) -> None:
    broken = [math.nan, math.inf, -math.inf, -1.0, 1e300]
    records = [_ttft(1, 50.0), *(_ttft(1, ms, repeat=1 + index) for index, ms in enumerate(broken))]
    records += [_ttft(40, math.nan), _ttft(0, 5.0, blocks=0), _ttft(-3, 5.0), _ttft(10**30, 5.0)]
    summary = _summary(tmp_path, *records)
    (plot,) = plots(summary)
    assert plot.left_out == 9
    svg = _svg(plot)
    assert len(_of_class(svg, "point")) == 1
    assert not re.search(r"nan|inf", ET.tostring(svg, encoding="unicode"))
    assert "9 record(s) hold no finite time" in render_html(summary)
    assert "| 40 | 2 | no time |" in render_markdown(summary)


def test_a_plot_without_any_time_is_still_a_plot(tmp_path: Path) -> None:
    summary = _summary(tmp_path, _ttft(1, math.nan))
    (plot,) = plots(summary)
    svg = _svg(plot)
    assert _of_class(svg, "point") == []
    assert "SM8650 · s24: no time." in (svg[1].text or "")
    assert render_html(summary)


@pytest.mark.parametrize("name", [EVIL, '"><svg onload="x">', "]]> & <b>", "\x00\x0b\ufffe\uffff\ud800", "é\u202e"])
def test_hostile_names_stay_text(tmp_path: Path, name: str) -> None:
    summary = _summary(tmp_path, _ttft(1, 50.0, phone=name), _ttft(40, 90.0, phone=name))
    (plot,) = plots(summary)
    svg = _svg(plot)
    assert {element.tag for element in svg.iter()} == {"svg", "title", "desc", "g", "line", "text", "path"}
    assert not [key for element in svg.iter() for key in element.attrib if key.startswith("on")]
    assert len(_of_class(svg, "point")) == 2
    html = render_html(summary)
    assert html.count("<script") == 1  # the filter's
    assert "<svg onload" not in html
    html.encode()


@given(
    tokens=st.lists(st.integers(-5, 10**12), min_size=1, max_size=8),
    times=st.lists(st.floats(), min_size=8, max_size=8),
    blocks=st.lists(st.integers(-5, 10**12), min_size=8, max_size=8),
    ar_len=st.integers(-5, 10**30),
)
def test_no_record_breaks_the_drawing(
    tmp_path_factory: pytest.TempPathFactory, tokens: Sequence[int], times: list[float], blocks: list[int], ar_len: int
) -> None:
    records = [
        _ttft(length, ms, blocks=block, ar_len=ar_len) for length, ms, block in zip(tokens, times, blocks, strict=False)
    ]
    summary = _summary(tmp_path_factory.mktemp("run"), *records)
    drawn = 0
    for plot in plots(summary):
        svg = _svg(plot)
        marks = _of_class(svg, "point")
        drawn += len(marks) + plot.left_out
        for x, y in map(_at, marks):
            assert 0 <= x <= WIDTH
            assert 0 <= y <= HEIGHT
        assert len(list(svg.iter())) < 1000
    assert drawn == len(records)


@given(st.floats(0, 1e12))
def test_ticks_are_few_and_hold_the_greatest(most: float) -> None:
    found = ticks(most)
    assert found[0] == 0
    assert found[-1] >= most * (1 - 1e-9)
    assert 2 <= len(found) <= 7
    assert ticks(found[-1])[-1] == pytest.approx(found[-1])


def test_the_wide_run_is_small_and_whole(tmp_path: Path) -> None:
    html = render_html(summarise(load_run(write_run(tmp_path, made=wide_records()))))
    assert len(html.encode()) < 300_000
    svgs = re.findall(r'<svg viewBox="0 0 640.*?</svg>', html, flags=re.DOTALL)
    assert len(svgs) == 3
    for svg in svgs:
        assert svg.count('class="mark point"') == 4 * 11 * 3
        ET.fromstring(svg)
    for mode in ("hybrid", "kv", "lookahead"):
        assert f"#cell-{wide_cell(mode, 's25')}" in html
