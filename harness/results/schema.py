"""The JSON schema of a line of `records.jsonl`: `python -m harness.schemas` writes docs/records.schema.json.

What a field means is taken from the docstrings of `harness.results.records`.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from typing import Any

from pydantic import TypeAdapter

from harness.paths import REPOSITORY
from harness.results.records import KINDS, PerplexityRecord, Record

SCHEMA = REPOSITORY / "docs" / "records.schema.json"
_ATTRIBUTE = re.compile(r"^ {4}(\w+(?:, \w+)*): (.+(?:\n {8}.+)*)", re.MULTILINE)
_NOT_FINITE = {"enum": ["NaN", "Infinity", "-Infinity"]}
_ENVELOPE: dict[str, Any] = {
    "time": {"type": "string", "format": "date-time", "description": "When it was written, ISO 8601 in UTC."},
    "run": {"type": "string", "description": "Id of the run that wrote it."},
}
_DERIVED = {
    "token_ppl": "exp(nll_sum / tokens), for readers without this package.",
    "word_ppl": "exp(nll_sum / words), lm-eval's word_perplexity.",
}


def schema() -> dict[str, Any]:
    """The schema as plain data: one of the kinds, told apart by `record` and `schema`."""
    definitions: dict[str, Any] = {}
    for kind in KINDS.values():
        made = _kind(kind)
        definitions |= made.pop("$defs", {})
        definitions[kind.kind] = made
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of htpfarm's records.jsonl",
        "description": "A reader ignores properties it does not know; any other change raises a kind's `schema`.",
        "oneOf": [{"$ref": f"#/$defs/{kind}"} for kind in KINDS],
        "$defs": definitions,
    }


def schema_text() -> str:
    """The schema as the file has it."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _kind(kind: type[Record]) -> dict[str, Any]:
    made = _with_names_of_infinity(TypeAdapter(kind).json_schema(mode="validation"))
    text, _, attributes = inspect.cleandoc(kind.__doc__ or "").partition("\n\nAttributes:\n")
    properties: dict[str, Any] = made["properties"]
    for names, words in _ATTRIBUTE.findall(attributes):
        for name in names.split(", "):
            if name in properties:
                properties[name]["description"] = " ".join(words.split())
    if kind is PerplexityRecord:
        number = {"anyOf": [{"type": "number"}, _NOT_FINITE]}
        properties |= {name: {**number, "description": words} for name, words in _DERIVED.items()}
    head = {"record": {"const": kind.kind}, "schema": {"const": kind.schema}, **_ENVELOPE}
    required = [field.name for field in dataclasses.fields(kind) if _is_required(field)]
    return {
        **made,
        "title": kind.__name__,
        "description": " ".join(text.split()),
        "properties": {**head, **properties},
        "required": [*head, *required],
    }


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _with_names_of_infinity(value: Any) -> Any:
    """A number that is not finite is written as its name."""
    if isinstance(value, dict):
        if value.get("type") == "number":
            rest = {key: item for key, item in value.items() if key != "type"}
            return {**rest, "anyOf": [{"type": "number"}, _NOT_FINITE]}
        return {key: _with_names_of_infinity(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_names_of_infinity(item) for item in value]
    return value
