"""What a quantisation is calibrated on: lm-eval tasks, a file of samples, the model's own text, or its prompts.

The precedence is upstream's, read in the installed ExecuTorch 1.5.1, oss_scripts/llama: `DatasetBuilder.
build_calib_dataloaders` (dataset/builders.py) does not choose between `--calib_samples` and `--calib_tasks` but takes
both where both are given, samples first (and `--calib_hf_dataset` third, which needs the Hub and is not here). With
none of them `export_llama` (llama.py) refuses to compile, although its own warning still says that "quantization
calibration will use --prompt". Here the model's calibration text takes that place, and where it has none, its prompts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness.errors import ConfigError
from harness.models import Calibration, ModelSpec
from harness.text.decoders import VERSIONS
from harness.text.heldout import prefix_token
from harness.text.lm_tasks import task_folders
from harness.text.task_files import task_files
from harness.text.templates import find_template, format_prompt
from harness.text.tokenizer import Tokenizer

_REMEDY = (
    'expected a list of {"messages": [{"role": "user" or "assistant", "content": "…"}]} in a .json file, or one such '
    "object a line in a .jsonl file; any other file is plain text"
)


@dataclass(frozen=True)
class CalibrationChoice:
    """What the user asked to calibrate with; nothing means the model's own text.

    Attributes:
        tasks: names of lm-eval tasks, groups or tags; upstream's `--calib_tasks`.
        limit: documents of each task at most; `--calib_limit`.
        fewshot: examples before each document, None for the task's own number; `--calib_num_fewshot`.
        samples: upstream's `--calib_samples`: a .json file with a list of samples, each
            `{"messages": [{"role": …, "content": …}]}`; .jsonl with one a line; any other file is plain text.
        task_folders: folders with task YAMLs of the user's.
    """

    tasks: tuple[str, ...] = ()
    limit: int = 1
    fewshot: int | None = None
    samples: Path | None = None
    task_folders: tuple[Path, ...] = ()


MODELS_OWN = CalibrationChoice()
"""The user asked for nothing."""


def choice_from_json(raw: dict[str, Any]) -> CalibrationChoice:
    """The inverse of `dataclasses.asdict` with paths as text."""
    return CalibrationChoice(
        tuple(raw["tasks"]),
        raw["limit"],
        raw["fewshot"],
        Path(raw["samples"]) if raw["samples"] else None,
        tuple(Path(folder) for folder in raw["task_folders"]),
    )


def calibration_sequences(
    spec: ModelSpec, tokenizer: Tokenizer, choice: CalibrationChoice, context: int, tokenizer_file: Path | None = None
) -> list[list[int]]:
    """Token sequences to calibrate with, each of 1 to `context` tokens.

    Args:
        spec: the model.
        tokenizer: its tokenizer.
        choice: what the user asked for.
        context: tokens of the context.
        tokenizer_file: where the tokenizer was read. Of an instruct model the chat template beside it, Hugging Face's,
            makes a sample's messages one text; without one their contents are simply joined, as upstream does for
            models whose tokenizer does not come from the Hub.

    Raises:
        ConfigError: an unknown task or one without data, a samples file that does not fit, no token at all.
    """
    sequences: list[list[int]] = []
    if choice.samples is not None:
        sequences += _from_file(choice.samples, spec, tokenizer, context, tokenizer_file)
    if choice.tasks:
        from harness.build.task_tokens import collect  # imports lm-eval, and so datasets

        sequences += collect(
            tokenizer, context, choice.tasks, limit=choice.limit, fewshot=choice.fewshot, folders=choice.task_folders
        )
    if choice.samples is None and not choice.tasks:
        sequences = _from_model(spec, tokenizer, context)
    if not sequences:
        raise ConfigError("there is nothing to calibrate with", where=_source(choice, spec))
    return sequences


def fingerprint(spec: ModelSpec, choice: CalibrationChoice) -> str:
    """What of a choice could change its sequences, for the cache key: contents of files, names, limits, versions.

    Of a local task all files of its folder count; of one of lm-eval's own its name and lm-eval's version, since its
    data are a data set's on the Hub.

    Raises:
        ConfigError: a file or folder that is not there.
    """
    parts = []
    if choice.samples is not None:
        own = _own_text(spec)
        count = f":{own.samples}" if own and _is_text(choice.samples) else ""
        parts.append(f"samples:{choice.samples.suffix}:{_file_hash(choice.samples)}{count}")
    if choice.tasks:
        files = task_files(task_folders(choice.task_folders), choice.tasks)
        # Names count, since YAMLs refer to files by them; folders do not.
        local = [(path.name, _file_hash(path)) for path in files]
        asked = json.dumps([choice.tasks, choice.limit, choice.fewshot, sorted(local)])
        parts.append(f"tasks:{hashlib.sha256(asked.encode()).hexdigest()}:lm_eval {version('lm_eval')}")
    if parts:
        return ";".join(parts)
    if own := _own_text(spec):
        return f"{_file_hash(own.text)}:{own.samples}"
    return f"prompts:{hashlib.sha256(json.dumps([spec.prompts, spec.system_prompt]).encode()).hexdigest()}"


def _own_text(spec: ModelSpec) -> Calibration | None:
    """The model's calibration text; None where its file names none."""
    return spec.calibration


def _source(choice: CalibrationChoice, spec: ModelSpec) -> str:
    return str(choice.samples) if choice.samples else ", ".join(choice.tasks) or str(spec.file)


def _from_model(spec: ModelSpec, tokenizer: Tokenizer, context: int) -> list[list[int]]:
    if own := _own_text(spec):
        return text_sequences(tokenizer, _read(own.text), own.samples, context)
    template = find_template(VERSIONS.get(spec.decoder, spec.decoder))
    prompts = [format_prompt(template, prompt, spec.system_prompt or "") for prompt in spec.prompts]
    return [part for prompt in prompts for part in _parts(tokenizer.encode(prompt, bos=True), context)]


def text_sequences(tokenizer: Tokenizer, text: str, samples: int, context: int) -> list[list[int]]:
    """The first `samples` pieces of a text, each after BOS (or else EOS), together `context` tokens at most.

    Raises:
        ConfigError: the tokenizer names neither BOS nor EOS.
    """
    prefix = prefix_token(tokenizer)
    tokens = tokenizer.encode(text, bos=False)
    step = context - 1
    return [[prefix, *tokens[start : start + step]] for start in range(0, min(len(tokens), samples * step), step)]


def _parts(tokens: Sequence[int], context: int) -> list[list[int]]:
    """A sequence cut up where it is too long, as upstream's `from_conversation` does it."""
    return [list(tokens[start : start + context]) for start in range(0, len(tokens), context)]


def _is_text(path: Path) -> bool:
    return path.suffix not in (".json", ".jsonl")


def _from_file(
    path: Path, spec: ModelSpec, tokenizer: Tokenizer, context: int, tokenizer_file: Path | None
) -> list[list[int]]:
    text = _read(path)
    if _is_text(path):
        own = _own_text(spec)
        return text_sequences(tokenizer, text, own.samples if own else len(text), context)
    render = _renderer(spec, tokenizer_file)
    conversations = [render(messages) for messages in read_samples(path)]
    return [part for said in conversations for part in _parts(tokenizer.encode(said, bos=True), context)]


def read_samples(path: Path) -> list[list[dict[str, str]]]:
    """The conversations of a samples file: a list of messages each, contents as plain text.

    Raises:
        ConfigError: unreadable, of another form, or with files: those are for multimodal models.
    """
    text = _read(path)
    try:
        if path.suffix == ".jsonl":
            samples = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            samples = json.loads(text)
        if not isinstance(samples, list):
            raise TypeError("expected a list of samples")
        return [_messages(sample, f"sample {number}") for number, sample in enumerate(samples)]
    except (ValueError, TypeError) as error:
        raise ConfigError(f"these are no calibration samples: {error}", where=str(path), remedy=_REMEDY) from None


def _messages(sample: Any, place: str) -> list[dict[str, str]]:
    if not isinstance(sample, dict) or set(sample) - {"files", "messages"}:
        raise TypeError(f"{place} must have the key messages, and no other")
    if sample.get("files"):
        raise ValueError(f"{place} has files: only multimodal models take them")
    messages = sample.get("messages")
    if not isinstance(messages, list) or not messages:
        raise TypeError(f"{place} has no list of messages")
    result = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise TypeError(f"a message of {place} lacks role or content")
        result.append({"role": message["role"], "content": _content(message["content"], place)})
    return result


def _content(content: Any, place: str) -> str:
    """A message's text; blocks of text are joined."""
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else [content]
    texts = [block.get("text") if isinstance(block, dict) and block.get("type") == "text" else None for block in blocks]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"a message of {place} has content that is no text")
    return "".join(text for text in texts if text)


def _renderer(spec: ModelSpec, tokenizer_file: Path | None) -> Callable[[list[dict[str, str]]], str]:
    """How messages become one text; see `TokenizerWrapper.apply_chat_template` in upstream's tokenizer.py."""
    template = _chat_template(tokenizer_file) if spec.instruct and tokenizer_file is not None else None
    if template is None:
        return lambda messages: "".join(message["content"] for message in messages)
    # Gemma's template writes <bos>, and encoding adds another.
    doubled = "<bos>" if spec.decoder in ("gemma-2b", "gemma3-1b") else None
    return lambda messages: template(messages).replace(doubled, "") if doubled else template(messages)


def _chat_template(tokenizer_file: Path) -> Callable[[list[dict[str, str]]], str] | None:
    folder = tokenizer_file.parent
    config = folder / "tokenizer_config.json"
    described = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    if not (folder / "chat_template.jinja").is_file() and "chat_template" not in described:
        return None
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    return lambda messages: str(theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the calibration file: {error}", where=str(path)) from None


def _file_hash(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError as error:
        raise ConfigError(f"cannot read the calibration file: {error.strerror}", where=str(path)) from None
    return _hash_once(str(path), stat.st_size, stat.st_mtime_ns)


@cache
def _hash_once(path: str, _size: int, _mtime_ns: int) -> str:
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
