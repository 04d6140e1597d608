"""A run as a pandas table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import ConfigError
from harness.results.records import KINDS, Entry, PerplexityRecord
from harness.results.store import RECORDS, read_entries

if TYPE_CHECKING:
    import pandas as pd

HEAD = ("time", "run")


def read_frame(run: Path | str, kind: str = "sample") -> pd.DataFrame:
    """The records of one kind, a row each, with `time` as a timestamp; columns as in docs/records.schema.json,
    numbers that are not finite as such.

    Args:
        run: the run's folder.
        kind: `sample`, `outcome`, `perplexity`, …; `all` for every kind, with a column of each field of any.

    Raises:
        ConfigError: the folder has no records, or no kind is of that name.
    """
    # Here and not at the top: it takes half a second, and only who asks for a frame needs it.
    import pandas as pd

    if kind != "all" and kind not in KINDS:
        raise ConfigError(f"no kind of record is named {kind!r}", remedy=f"one of {', '.join(KINDS)}, or all")
    entries = [entry for entry in read_entries(Path(run) / RECORDS) if kind in ("all", entry.record.kind)]
    fields = [field.name for field in dataclasses.fields(KINDS[kind])] if kind != "all" else []
    frame = pd.DataFrame([_row(entry) for entry in entries], columns=None if entries else ["record", *HEAD, *fields])
    frame["time"] = pd.to_datetime(frame["time"], utc=True, format="ISO8601", errors="coerce")
    return frame


def _row(entry: Entry) -> dict[str, Any]:
    record = entry.record
    row = {"record": record.kind, "time": entry.time, "run": entry.run, **vars(record)}
    if isinstance(record, PerplexityRecord):
        row |= {"token_ppl": record.token_ppl, "word_ppl": record.word_ppl}
    return row
