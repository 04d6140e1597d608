"""`python -m harness.schemas` writes docs/model.schema.json and docs/records.schema.json anew."""

from __future__ import annotations

from harness import model_schema
from harness.files import write_atomically
from harness.results import schema as records_schema

ALL = (model_schema, records_schema)
"""Each has the `SCHEMA` file and what is in it, `schema_text()`."""


def main() -> None:
    """Writes them, and prints where."""
    for made in ALL:
        write_atomically(made.SCHEMA, made.schema_text())
        print(made.SCHEMA)


if __name__ == "__main__":
    main()
