from __future__ import annotations

import io
import itertools
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sample_run import (
    BROKEN,
    EVIL,
    GOOD,
    LOST,
    OLD,
    UNRUN,
    planned,
    run_info,
    sample,
    wide_cell,
    wide_records,
    write_run,
)

from harness.errors import ConfigError, FailureClass
from harness.results import OutcomeRecord, RecordWriter, Status, load_run
from harness.results.report import (
    escape_markdown,
    fenced,
    render_html,
    render_markdown,
    report,
    tail,
    write_reports,
)
from harness.results.summary import summarise
from harness.target import Target

_VOID = {"meta", "link", "br", "hr", "img", "input", "rect"}


class _Page(HTMLParser):
    """Fails on a tag that is not closed, or closed by another; collects what a reader and a browser get."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text = ""
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.pre: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.tags.append(tag)
        values = dict(attrs)
        if identity := values.get("id"):
            self.ids.append(identity)
        if tag == "a":
            self.links.append(values["href"] or "")
        elif loaded := (values.get("src") or values.get("href")):
            self.loads.append(loaded)
        assert not [name for name in names if name.startswith("on")]
        if tag == "pre":
            self.pre.append("")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "pre" in self.open:
            self.pre[-1] += data


def _page(folder: Path) -> _Page:
    return _Page(render_html(summarise(load_run(folder))))


def test_both_reports_are_written_whole(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    html, markdown = write_reports(folder)
    assert (html, markdown) == (folder / "report.html", folder / "report.md")
    assert html.read_text().startswith("<!DOCTYPE html>")
    assert html.read_text().rstrip().endswith("</html>")
    assert markdown.read_text().startswith("# FAILED: 5 cells")
    assert sorted(path.name for path in folder.iterdir()) == ["records.jsonl", "report.html", "report.md"]
    assert html.stat().st_mode & 0o777 == 0o644


def test_a_reader_of_the_old_report_keeps_it_and_a_failed_write_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path)
    html, _ = write_reports(folder)
    before = html.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    RecordWriter(folder).append(OutcomeRecord(UNRUN, Status.PASSED))
    with html.open("rb") as reader:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space"):
                write_reports(folder)
        assert html.read_bytes() == before
        assert sorted(path.name for path in folder.iterdir()) == ["records.jsonl", "report.html", "report.md"]
        write_reports(folder)
        assert reader.read() == before
    assert html.read_bytes() != before


def test_the_page_is_well_formed_and_loads_nothing(tmp_path: Path) -> None:
    page = _page(write_run(tmp_path))
    assert page.loads == []
    assert page.tags.count("script") == 1  # the filter's
    assert len(page.ids) == len(set(page.ids))
    html = render_html(summarise(load_run(tmp_path / run_info().id)))
    assert not re.search(r"https?://|@import|url\(", html)


def test_every_link_leads_to_a_cell(tmp_path: Path) -> None:
    page = _page(write_run(tmp_path))
    assert page.links
    assert "c.json" in page.links
    assert {link.removeprefix("#").replace("%40", "@") for link in page.links} - {"c.json"} <= set(page.ids)


def test_the_page_says_every_ending_in_words(tmp_path: Path) -> None:
    page = _page(write_run(tmp_path))
    for cell in (GOOD, BROKEN, LOST, OLD, UNRUN):
        assert cell in page.text
    text = " ".join(page.text.split())
    for piece in (
        "✓ PASSED",
        "✗ FAILED · PRODUCT",
        "! ERROR · INFRA",
        "– SKIPPED weight_sharing",
        "… NOT RUN",
        "SM8450 is V69; weight sharing between prefill and decode needs V73",
        "What to do: use kv mode (--modes kv)",
        "What to do: check the cable",
        "sim speed is not a phone's speed",
        "sim decode",
        "+2.02 %, +0.99 % vs FP",
        "+0.30 %, +0.15 % vs QDQ +0.20 %, +0.10 % vs phone kv",
        "TTFT against prompt length, in the simulator",
        "cloze 8 documents, limit 8, 0-shot, seed 1234acc 0.500",
        "167.5 kv 167.8 prefill",
        "phone_vs_qdq_ppl: phone inf is above QDQ 167.3, bound 2 %",
        "7.65 MB (7654321 bytes)",
        "reused from the cache",
        "checkpoint 0.400 s, calibrate 31.0 s, lower 1 min 04 s",
        "pytest -m device -k 'a b'",
        "v2.4.0.1234567890_abcdef",
        "bench-1",
    ):
        assert piece in text, piece


def test_the_verdict_stands_first(tmp_path: Path) -> None:
    text = _page(write_run(tmp_path)).text
    body = text[text.index("htpfarm · run") :]
    assert body.index("FAILED") < body.index("Matrix") < body.index("Numbers") < body.index("Cells")


def test_model_text_shows_as_text(tmp_path: Path) -> None:
    page = _page(write_run(tmp_path))
    shown = EVIL.replace("\x1b", "␛").replace("\u202e", "\ufffd")
    assert f"text{shown}" in page.pre
    assert any("<b>not bold</b>" in pre for pre in page.pre)


def test_every_foreign_field_is_escaped(tmp_path: Path) -> None:
    bad = "\"'><script>alert(1)</script>"
    cell = "m-kv-SM8650"
    writer = RecordWriter(tmp_path)
    writer.append(run_info())
    writer.append(planned(cell, 75))
    writer.append(sample(cell, phone=bad, serial=bad, prompt=bad, text=bad, settings={bad: bad}))
    writer.append(OutcomeRecord(cell, Status.FAILED, FailureClass.PRODUCT, bad, bad, bad, bad, phone=bad))
    page = _page(tmp_path)
    assert page.tags.count("script") == 1  # the filter's
    assert page.text.count("<script>alert(1)</script>") >= 10
    markdown = render_markdown(summarise(load_run(tmp_path)))
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert "<" not in outside.replace("\\<", "")
    assert outside.count("&lt;script&gt;") >= 4


def test_an_android_report_says_nothing_of_a_simulator(tmp_path: Path) -> None:
    summary = summarise(load_run(write_run(tmp_path, Target.ANDROID)))
    assert not re.search(r"\bsim\b|simulator", _Page(render_html(summary)).text)
    assert not re.search(r"\bsim\b|simulator", render_markdown(summary))


def _rows(line: str) -> list[str]:
    return [column.strip() for column in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_tables_have_the_same_columns_in_each_row(tmp_path: Path) -> None:
    markdown = render_markdown(summarise(load_run(write_run(tmp_path))))
    tables = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE)]
    assert len(tables) == 6
    for table in tables:
        assert len({len(_rows(line)) for line in table}) == 1
        assert set("".join(_rows(table[1]))) <= {"-", ":"}
    matrix, numbers, ppl, ttft, tasks, _ = tables
    assert [len(matrix), len(numbers)] == [2 + 3, 2 + 5]
    assert _rows(matrix[2]) == ["tiny_llama · hybrid", "– SKIPPED weight_sharing", "", "", "✓ PASSED", ""]
    assert _rows(numbers[0])[3] == "sim TTFT ms"
    assert _rows(numbers[2])[:6] == [GOOD, "s24", "PASSED", "410", "12.2", "3.80"]
    assert _rows(numbers[2])[-2] == "167.5 (kv), 167.8 (prefill)"
    assert _rows(numbers[-1])[2] == "NOT RUN"
    assert _rows(ppl[2]) == [GOOD, "12.30", "12.42 (+0.99 %)", "12.43 (+0.05 %)", "12.44 (+0.15 %)", "+0.10 %", "2032"]
    assert _rows(ppl[3]) == [BROKEN, "-", "-", "inf", "-", "-", "2032"]
    assert [_rows(row) for row in ttft[4:]] == [["33", "2", "180"], ["64", "2", "182"], ["a block more", "", "90.2"]]
    assert _rows(tasks[2])[2:] == ["acc", "0.500", "[phone prefill](c.json)"]


def test_markdown_headings_and_lists_stand_apart(tmp_path: Path) -> None:
    lines = render_markdown(summarise(load_run(write_run(tmp_path)))).splitlines()
    for before, line in itertools.pairwise(lines):
        if line.startswith("#") or (line.startswith("|") and not before.startswith("|")):
            assert before == "", (before, line)
    assert lines.count("````text") == 1
    assert not [line for line in lines if line != line.rstrip() and not line.startswith(" ")]


def test_markdown_escapes() -> None:
    assert escape_markdown("a|b\n`c` *d* [e](f) <g> & _h_ i_j \\") == (
        "a\\|b \\`c\\` \\*d\\* \\[e\\](f) &lt;g&gt; &amp; \\_h\\_ i_j \\\\"
    )
    assert fenced("a ```` b") == "`````text\na ```` b\n`````"


def test_lookahead_is_shown_by_cell_and_by_sample(tmp_path: Path) -> None:
    summary = summarise(load_run(write_run(tmp_path, made=wide_records())))
    cell = wide_cell("lookahead", "s24")
    page = _Page(render_html(summary))
    text = " ".join(page.text.split())
    assert len(page.ids) == len(set(page.ids))
    assert "5 + 63 tokens in 24 decode steps (39 saved, 1.62 tokens accepted a step)" in text
    assert "5 + 63 tokens in 63 decode steps · TTFT" in text
    assert "prefill 32, n-gram 5, window 8, gcap 8" in text
    markdown = render_markdown(summary)
    head, row = (
        next(_rows(line) for line in markdown.splitlines() if line.startswith(start))
        for start in ("| cell | phone |", f"| {cell} | s24 |")
    )
    shown = dict(zip(head, row, strict=True))
    assert [shown[name] for name in ("accepted a step", "decode steps", "steps saved")] == ["1.57", "24.5", "38.5"]
    assert "(session 0, 5 + 63 tokens in 24 decode steps, 39 saved, 1.62 tokens accepted a step):" in markdown
    assert "accepted a step" not in render_markdown(summarise(load_run(write_run(tmp_path / "narrow"))))


def test_a_long_log_is_cut_at_its_start() -> None:
    log = "\n".join(f"line {index}" for index in range(1000))
    assert tail(log).startswith("[…]\nline 940\n")
    assert tail(log).endswith("line 999")
    assert tail("short\n") == "short"
    assert len(tail("x" * 100_000)) < 7000


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    RecordWriter(tmp_path).append(run_info())
    page = _page(tmp_path)
    assert "NOTHING RAN" in page.text
    assert "0 cells" in render_markdown(summarise(load_run(tmp_path)))
    RecordWriter(tmp_path).append(planned(GOOD, 75))
    assert "INCOMPLETE" in _page(tmp_path).text


def test_report_of_the_command_line(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    out = io.StringIO()
    summary = report(folder, out)
    assert summary.headline == "FAILED"
    assert summary.verdict in out.getvalue()
    assert out.getvalue().splitlines()[-2:] == [str(folder / "report.html"), str(folder / "report.md")]
    with pytest.raises(ConfigError, match="there are no records here"):
        report(tmp_path / "missing", out)
