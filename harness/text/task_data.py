"""Documents of a local lm-eval task from files beside its YAML, whatever folder the program was started in.

lm-eval's own `dataset_path: json` looks for `data_files` in the current folder. A task of ours says instead

    custom_dataset: !function harness.text.task_data.load
    dataset_kwargs:
      data_files: {test: words.jsonl}
    test_split: test

and each file is looked for in the YAML's folder. Nothing is written to a cache.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import ConfigError


def load(data_files: Mapping[str, str], config_source: str, **_: Any) -> Any:
    """The splits of a task: `datasets.DatasetDict`, split → documents.

    `.jsonl` is one JSON object a line, `.json` a list of them. A `.txt` is one document a chapter, `{"text": …}`:
    chapters end with a blank line.

    Args:
        data_files: split → file, relative to the folder of `config_source` (or absolute).
        config_source: the task's YAML; lm-eval passes it on.

    Raises:
        ConfigError: no such file, or not of its form.
    """
    from datasets import Dataset, DatasetDict  # type: ignore[import-untyped, unused-ignore]

    folder = Path(config_source).parent
    return DatasetDict(
        {split: Dataset.from_list(read_documents(folder / file, config_source)) for split, file in data_files.items()}
    )


def read_documents(path: Path, where: str) -> list[dict[str, Any]]:
    """The documents of one file; `where` is named in errors. Raises as in `load`."""
    try:
        text = path.read_text(encoding="utf-8")
        documents = _parse(text, path.suffix)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"cannot read the task's data {path}: {error}",
            where=where,
            remedy="data_files name .jsonl, .json or .txt files, relative to the task's YAML",
        ) from None
    if not documents:
        raise ConfigError(f"the task's data {path} holds no document", where=where)
    return documents


def _parse(text: str, suffix: str) -> list[dict[str, Any]]:
    if suffix == ".txt":
        return [{"text": chapter.strip("\n")} for chapter in text.split("\n\n") if chapter.strip()]
    if suffix not in (".json", ".jsonl"):
        raise ValueError(f"files of type {suffix!r} are not known")
    values = json.loads(text) if suffix == ".json" else [json.loads(line) for line in text.splitlines() if line.strip()]
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise TypeError("expected JSON objects: a list of them in a .json file, one a line in a .jsonl file")
    return values
