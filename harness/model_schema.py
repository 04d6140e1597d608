"""The JSON schema of models/*.yaml, for editors: `python -m harness.schemas` writes docs/model.schema.json.

The first line of each model file names it, as the YAML language server reads it. What a key means is in the docstrings
of `harness.model_file` and `harness.recipes`.
"""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from harness.model_file import ModelFile
from harness.paths import REPOSITORY

SCHEMA = REPOSITORY / "docs" / "model.schema.json"
_ATTRIBUTE = re.compile(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)


class _WithDocstrings(GenerateJsonSchema):
    """Takes a key's description from the `Attributes:` of its section's docstring."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        made = super().model_schema(schema)
        text, attributes = described(schema["cls"])
        made["description"] = text
        for name, words in attributes.items():
            if name in made.get("properties", {}):
                made["properties"][name]["description"] = words
        return made


def described(section: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """What a section's docstring says: of the section, and of each of its keys."""
    text, _, attributes = inspect.getdoc(section).partition("\n\nAttributes:\n")  # type: ignore[union-attr]
    return " ".join(text.split()), {name: " ".join(words.split()) for name, words in _ATTRIBUTE.findall(attributes)}


def schema() -> dict[str, Any]:
    """The schema as plain data."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **ModelFile.model_json_schema(schema_generator=_WithDocstrings),
        "title": "A model of htpfarm",
    }


def schema_text() -> str:
    """The schema as the file has it."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
