"""docs/model.schema.json: fresh, and of use to an editor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import schemas
from harness.model_file import ModelFile
from harness.model_schema import SCHEMA, described, schema, schema_text
from harness.paths import MODELS, REPOSITORY

FIRST_LINE = "# yaml-language-server: $schema="


def test_the_file_is_fresh() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), "run: python -m harness.schemas"


def test_one_command_writes_every_schema(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for made in schemas.ALL:
        monkeypatch.setattr(made, "SCHEMA", tmp_path / made.SCHEMA.name)
    schemas.main()
    docs = sorted((REPOSITORY / "docs").glob("*.schema.json"))
    assert [path.name for path in docs] == ["model.schema.json", "records.schema.json"]
    for path in docs:
        assert (tmp_path / path.name).read_text(encoding="utf-8") == path.read_text(encoding="utf-8")


def test_every_key_is_described() -> None:
    made = schema()
    sections = {"ModelFile": made, **made["$defs"]}
    flat = [(name, part) for name, section in sections.items() for part in (section, *section.get("anyOf", []))]
    bare = [f"{name}.{key}" for name, part in flat for key, value in keys(part).items() if not value.get("description")]
    assert bare == ["DecodeSpeed.SM8650", "DecodeSpeed.SM8750"]  # named for what they are
    assert len(keys(sections["Params"])) > 30


def keys(part: dict[str, Any]) -> dict[str, Any]:
    return dict(part.get("properties", {}))


def test_docstrings_name_keys_that_are_there() -> None:
    text, attributes = described(ModelFile)
    assert text.startswith("One model's YAML file.")
    assert set(attributes) == set(ModelFile.model_fields)
    assert attributes["shards"] == "parts that upstream is asked to cut the model into (`num_sharding`)."


def test_choices_and_requirements_are_in_it() -> None:
    made = schema()
    assert made["$defs"]["CheckpointSection"]["properties"]["format"]["enum"][0] == "huggingface"
    assert {"name", "decoder", "params"} <= set(made["required"])
    assert made["$defs"]["LengthsSection"]["additionalProperties"] is False


def test_every_model_file_names_it() -> None:
    files = [*MODELS.glob("*.yaml"), *MODELS.glob("*/model.yaml")]
    assert len(files) >= 17
    for file in files:
        first = file.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith(FIRST_LINE), file
        assert (file.parent / first.removeprefix(FIRST_LINE)).resolve() == SCHEMA.resolve(), file
