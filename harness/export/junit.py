"""JUnit XML of a run, as GitHub's actions, GitLab and Jenkins read it. Pure.

A cell is a test case. What the product did wrong is a `failure`; what the rack or a build did wrong, and what was not
run, an `error`; what a gate or the user left out is `skipped` with its reason. The elements and attributes are those
that Jenkins's junit-10.xsd and GitLab's "Unit test reports" have in common.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from harness.results.records import Status
from harness.results.report import tail
from harness.results.summary import NOT_RUN, SIM_NOTE, CellSummary, RunSummary
from harness.results.text import number, perplexity, visible

_TAGS = {Status.FAILED.value: "failure", Status.ERROR.value: "error", NOT_RUN: "error", Status.SKIPPED.value: "skipped"}


def render_junit(summary: RunSummary) -> str:
    """The document, with its declaration."""
    tags = [_TAGS.get(cell.status, "") for cell in summary.cells]
    counts = {
        "tests": str(len(tags)),
        "failures": str(tags.count("failure")),
        "errors": str(tags.count("error")),
        "time": f"{sum(cell.seconds for cell in summary.cells):.3f}",
    }
    root = ET.Element("testsuites", {"name": "htpfarm", **counts})
    suite = ET.SubElement(
        root,
        "testsuite",
        {
            "name": _line(f"htpfarm {summary.run.id}"),
            **counts,
            "skipped": str(tags.count("skipped")),
            "hostname": _line(summary.run.host),
            "timestamp": _timestamp(summary.run.started),
        },
    )
    properties = ET.SubElement(suite, "properties")
    facts = {"verdict": summary.verdict, "target": summary.run.target.value, **summary.run.toolchain}
    facts |= {"note": SIM_NOTE} if summary.is_sim else {}
    for name, value in facts.items():
        ET.SubElement(properties, "property", {"name": _line(name), "value": _line(value)})
    for cell, tag in zip(summary.cells, tags, strict=True):
        _case(suite, cell, tag)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _case(suite: ET.Element, cell: CellSummary, tag: str) -> None:
    where = f"htpfarm.{cell.plan.model}.{cell.plan.mode}"
    names = {"classname": _line(where), "name": _line(cell.id), "time": f"{cell.seconds:.3f}"}
    case = ET.SubElement(suite, "testcase", names)
    if tag:
        reason = cell.reason or "no reason was recorded"
        kind = cell.failure_class.value if cell.failure_class else cell.status
        parts = [reason, f"what to do: {cell.remedy}" if cell.remedy else ""]
        parts += [f"evidence: {cell.evidence_path}" if cell.evidence_path else ""]
        parts += [tail(cell.evidence) if cell.evidence else ""]
        problem = ET.SubElement(case, tag, {"type": kind, "message": _line(reason)})
        problem.text = visible("\n".join(part for part in parts if part))
    if said := _numbers(cell):
        ET.SubElement(case, "system-out").text = visible(said)


def _numbers(cell: CellSummary) -> str:
    lines = [f"phone: {', '.join(cell.phones)}"] if cell.phones else []
    speeds = (
        ("TTFT", cell.ttft_ms, "ms"),
        ("prefill", cell.prefill_tok_s, "tok/s"),
        ("decode", cell.decode_tok_s, "tok/s"),
        ("load", cell.load_ms, "ms"),
    )
    lines += [f"{name}: {number(value)} {unit}" for name, value, unit in speeds if value is not None]
    lines += [
        f"word perplexity, {r.ground} {r.graph}, {r.tokens} tokens: {perplexity(r.word_ppl)}" for r in cell.perplexities
    ]
    lines += [f"check {check.name}: {'held' if check.passed else 'BROKEN'}: {check.text}" for check in cell.checks]
    return "\n".join(lines)


def _line(value: str) -> str:
    """Foreign text as an attribute's value: XML forbids most control characters, even escaped."""
    return re.sub(r"\s+", " ", visible(value))


def _timestamp(iso: str) -> str:
    """As `xs:dateTime` without a zone, in UTC: `2026-01-02T03:04:05`."""
    match = re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", iso)
    return match[0] if match else "1970-01-01T00:00:00"
