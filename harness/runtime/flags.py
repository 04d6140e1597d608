"""qnn_llama_runner's flags with gflags' syntax, and ours, which start with `x_`. Pure.

gflags: `--flag value`, `--flag=value`, one dash or two; booleans `--flag`, `--noflag`, `--flag=false`; `--` ends them;
what is no flag is ignored. Names, types and defaults: `qnn_llama_runner.cpp` (main, cff6f4dd).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

Value = str | int | float | bool


class FlagError(Exception):
    """What gflags says before it exits with status 1."""


class HelpRequested(Exception):  # noqa: N818
    """`--help` was given."""


_DEFAULTS: Mapping[str, Value] = MappingProxyType(
    {
        "decoder_model_version": "llama2",
        "model_path": "kv_llama_qnn.pte",
        "attention_sink_rope_path": "",
        "output_path": "outputs.txt",
        "performance_output_path": "inference_speed.txt",
        "dump_logits_path": "",
        "tokenizer_path": "tokenizer.bin",
        "prompt": "The answer to the ultimate question is",
        "tokenized_prompt": "",
        "system_prompt": "",
        "temperature": 0.0,
        "seq_len": 128,
        "eval_mode": 1,
        "shared_buffer": False,
        "num_iters": 1,
        "ngram": 0,
        "window": 0,
        "gcap": 0,
        # Ours.
        "x_score_path": "",
        "x_score_output": "",
        "x_stats_path": "",
        "x_seed": 0,
        "x_ignore_eos": False,
        "x_serve": False,
    }
)


@dataclass(frozen=True)
class Flags:
    """Parsed flags.

    Attributes:
        values: every flag's value.
        given: the flags that were given.
        prompts: values of `--prompt TEXT`, in order. The runner collects prompts from that spelling alone.
    """

    values: Mapping[str, Value]
    given: frozenset[str] = field(default_factory=frozenset)
    prompts: tuple[str, ...] = ()

    def text(self, name: str) -> str:
        """A string flag."""
        return str(self.values[name])

    def integer(self, name: str) -> int:
        """An int32 flag."""
        return int(self.values[name])

    def number(self, name: str) -> float:
        """A double flag."""
        return float(self.values[name])

    def switch(self, name: str) -> bool:
        """A bool flag."""
        return bool(self.values[name])


def parse_flags(arguments: Sequence[str]) -> Flags:
    """Parses the command line without the program's name.

    Raises:
        FlagError: an unknown flag, a missing or an illegal value; gflags' words.
        HelpRequested: `--help`.
    """
    values = dict(_DEFAULTS)
    given: set[str] = set()
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        index += 1
        if argument == "--":
            break
        if not argument.startswith("-") or argument == "-":
            continue
        name, equals, value = argument.removeprefix("-").removeprefix("-").partition("=")
        if name == "help":
            raise HelpRequested
        negated = name.removeprefix("no") if name.startswith("no") else ""
        if name not in values and isinstance(values.get(negated), bool) and not equals:
            name, equals, value = negated, "=", "false"
        if name not in values:
            raise FlagError(f"unknown command line flag '{name}'")
        if isinstance(values[name], bool) and not equals:
            value = "true"
        elif not equals:
            if index >= len(arguments):
                raise FlagError(f"flag '{argument}' is missing its argument")
            value = arguments[index]
            index += 1
        values[name] = _convert(name, value)
        given.add(name)
    return Flags(MappingProxyType(values), frozenset(given), _collect_prompts(arguments))


def usage() -> str:
    """What `--help` prints."""
    kinds = {str: "string", int: "int32", float: "double", bool: "bool"}
    lines = ["python -m harness.runtime: qnn_llama_runner's flags, and ours (x_)."]
    lines += [f"    -{name} type: {kinds[type(value)]} default: {value!r}" for name, value in _DEFAULTS.items()]
    return "\n".join(lines)


def _collect_prompts(arguments: Sequence[str]) -> tuple[str, ...]:
    prompts = []
    index = 0
    while index < len(arguments):
        if arguments[index] == "--prompt" and index + 1 < len(arguments):
            prompts.append(arguments[index + 1])
            index += 1
        index += 1
    return tuple(prompts)


def _convert(name: str, value: str) -> Value:
    default = _DEFAULTS[name]
    kind = "string"
    try:
        if isinstance(default, bool):
            kind = "bool"
            return {"1": True, "t": True, "true": True, "y": True, "yes": True}.get(value.lower(), False) or {
                "0": False,
                "f": False,
                "false": False,
                "n": False,
                "no": False,
            }[value.lower()]
        if isinstance(default, int):
            kind = "int32"
            number = int(value, 0)
            if not -(1 << 31) <= number < 1 << 31:
                raise ValueError(value)
            return number
        if isinstance(default, float):
            kind = "double"
            return float(value)
    except (ValueError, KeyError):
        raise FlagError(f"illegal value '{value}' specified for {kind} flag '{name}'") from None
    return value
