"""What a runner said, request by request, and how two runners' words differ.

A process of the runner writes one file: what it was asked for with each answer, the files it wrote, how often it ran
each graph. The same requests to a sound runner give the same words, as the simulator computes the same every time; so
what differs is what a fault changed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.fault import Patch

FOLDER = "data/local/tmp/planted"
_TIMES = {"ttft_ms", "decode_ms", "seconds", "peak_rss_kib", "load_ms", "op", "id"}


class Tap:
    """Listens in a runner's process."""

    def __init__(self, patch: Patch, folder: Path) -> None:
        self._patch, self._folder = patch, folder
        self._words: list[dict[str, Any]] = []
        self._runs: dict[str, int] = {}
        self._asked: dict[str, Any] = {}

    def listen(self) -> None:
        """Begins. What a fault replaced is replaced once more, so that its words are heard and not the sound ones."""
        own = Patch()

        @own.around("harness.runtime.serve", "Channel.receive")
        def receive(original: Any, channel: Any) -> Any:
            message = original(channel)
            self._asked = dict(message or {})
            return message

        @own.around("harness.runtime.serve", "Channel.send")
        def send(original: Any, channel: Any, message: Mapping[str, Any]) -> None:
            if self._asked:
                parts = self._asked.get("legs") or [self._asked]
                group = ",".join(str(part.get("graph", "")) for part in parts)
                word = {"asked": key_of(self._asked), "op": self._asked.get("op"), "group": group}
                self._words.append({**word, "said": dict(message)})
            original(channel, message)

        @own.around("harness.runtime.engine", "Engine.run")
        def run(original: Any, engine: Any, graph: str, inputs: Sequence[Any]) -> Any:
            self._runs[graph] = self._runs.get(graph, 0) + 1
            return original(engine, graph, inputs)

    def write(self, arguments: Sequence[str], status: int) -> None:
        """Writes the process's file."""
        command = [word for word in arguments if word != "--x_serve"]
        if "--x_serve" not in arguments:
            said: dict[str, Any] = {}
            for flag in ("--output_path", "--x_stats_path", "--performance_output_path", "--dump_logits_path"):
                if flag in command and (path := Path(command[command.index(flag) + 1])).is_file():
                    said[flag.strip("-")] = _content(flag, path)
            self._words.append({"asked": key_of(_settled(command)), "op": "command", "group": "", "said": said})
        written = {
            "status": status,
            "planted": self._patch.places,
            "strikes": self._patch.strikes,
            "runs": self._runs,
            "cpu_s": round(time.process_time(), 2),
            "words": self._words,
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"{time.time_ns()}-{os.getpid()}.json"
        scratch = self._folder / f".{name}"
        scratch.write_text(json.dumps(written))
        scratch.rename(self._folder / name)


def _settled(command: Sequence[str]) -> list[str]:
    """A command line without what is called after the run: the names of files, but for a prompt's content."""
    found = []
    for before, word in zip(["", *command], command, strict=False):
        if before == "--tokenized_prompt" and Path(word).is_file():
            found.append(hashlib.sha256(Path(word).read_bytes()).hexdigest()[:16])
        else:
            found.append(word)
    return found


def _content(flag: str, path: Path) -> Any:
    data = path.read_bytes()
    if flag == "--x_stats_path":
        return json.loads(data)["turns"]
    if flag == "--dump_logits_path":
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return data.decode("latin-1")


def key_of(asked: Any) -> str:
    """What names a request: all of it but its number."""
    asked = {k: v for k, v in asked.items() if k != "id"} if isinstance(asked, dict) else asked
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Words:
    """All that the processes of one cell, or of one battery, said."""

    said: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    ops: dict[str, tuple[str, str]] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    strikes: int = 0
    planted: tuple[str, ...] = ()
    processes: int = 0
    cpu_s: float = 0.0


def read_words(folder: Path) -> Words:
    """Reads the files of a folder, in the order in which they were written."""
    found = Words()
    for path in sorted(folder.glob("*.json")):
        raw = json.loads(path.read_text())
        found.processes += 1
        found.cpu_s += raw["cpu_s"]
        found.strikes += raw["strikes"]
        found.planted = tuple(raw["planted"])
        for graph, count in raw["runs"].items():
            found.runs[graph] = found.runs.get(graph, 0) + count
        for word in raw["words"]:
            found.said.setdefault(word["asked"], []).append(word["said"])
            found.ops[word["asked"]] = word["op"], word["group"]
    return found


@dataclass
class Effect:
    """How what a faulty runner said differs from what a sound one says to the same requests.

    Attributes:
        compared: requests that both were asked.
        text: requests whose written bytes differ.
        tokens: requests whose reported tokens differ.
        steps: requests whose numbers of steps or of accepted tokens differ.
        perplexity: the largest change of a perplexity of all scored tokens of a graph; NaN where a score is none.
        each: the largest change of one token's log-likelihood, nats.
        logits: the largest RMS change of logits that were sent, in their steps.
        failed: requests that were refused or got no answer.
    """

    compared: int = 0
    text: int = 0
    tokens: int = 0
    steps: int = 0
    perplexity: float = 0.0
    each: float = 0.0
    logits: float = 0.0
    failed: int = 0

    @property
    def matters(self) -> bool:
        """Whether a token, a score by more than 0.5%, or a number of steps changed: what a check has to catch."""
        wrong_score = not abs(self.perplexity) <= 0.005
        return bool(self.text or self.tokens or self.steps or self.failed or wrong_score)

    def words(self) -> str:
        """In a few words."""
        counts = (("text", self.text), ("tokens", self.tokens), ("steps", self.steps), ("failed", self.failed))
        parts = [f"{name} {count}/{self.compared}" for name, count in counts if count]
        if math.isnan(self.perplexity) or abs(self.perplexity) >= 5e-5:
            parts.append(f"perplexity {self.perplexity:+.2%}")
        if math.isnan(self.each) or self.each >= 5e-4:
            parts.append(f"a score {self.each:.3g} nats")
        if self.logits >= 0.05 and not self.each:
            parts.append(f"logits {self.logits:.3g} steps")
        return ", ".join(parts) or "nothing"


def effect(faulty: Words, sound: Words) -> Effect:
    """Compares what was said to the same requests. Pure."""
    found = Effect()
    if not faulty.said and sound.said:  # it ended before it could say anything
        return Effect(compared=1, failed=1)
    sums: dict[str, tuple[int, float, float]] = {}
    for key, answers in faulty.said.items():
        if key not in sound.said:
            continue  # asked of the faulty one alone, after something that it said before
        base = sound.said[key][-1]
        for answer in answers:
            found.compared += 1
            _compare(found, *faulty.ops[key], answer, base, sums)
    for count, faulty_sum, sound_sum in sums.values():
        change = math.expm1((faulty_sum - sound_sum) / count) if count else 0.0
        if math.isnan(change) or abs(change) > abs(found.perplexity):
            found.perplexity = change
    return found


def _compare(
    found: Effect,
    op: str,
    group: str,
    answer: Mapping[str, Any],
    base: Mapping[str, Any],
    sums: dict[str, tuple[int, float, float]],
) -> None:
    if op == "command":
        if (turns := answer.get("x_stats_path")) is not None and base.get("x_stats_path") is not None:
            found.tokens += _differ(turns, base["x_stats_path"], ("prompt_tokens", "tokens", "stopped"))
            found.steps += _differ(turns, base["x_stats_path"], ("decode_steps", "accepted"))
        found.text += answer.get("output_path") != base.get("output_path")
        if answer.get("dump_logits_path") != base.get("dump_logits_path"):
            found.tokens += 1
        found.failed += not answer.get("output_path") and bool(base.get("output_path"))
        return
    if answer.get("ok") != base.get("ok"):
        found.failed += 1
    elif op == "generate":
        found.tokens += _differ([answer], [base], ("tokens", "stopped"))
        found.steps += _differ([answer], [base], ("prefill_steps", "decode_steps", "accepted"))
    elif op == "logits" and "logits" in base:
        found.logits = max(found.logits, _rms(_values(answer), _values(base)))
    elif op == "score" and "windows" in base:
        _scores(found, answer["windows"], base["windows"], sums, [group] * len(base["windows"]))
    elif op == "walk" and "legs" in base:
        _scores(found, answer["legs"], base["legs"], sums, group.split(","))
    elif _untimed(answer) != _untimed(base):
        found.tokens += 1


def _scores(
    found: Effect,
    windows: Iterable[Any],
    base: Sequence[Any],
    sums: dict[str, tuple[int, float, float]],
    groups: Sequence[str],
) -> None:
    for window, other, group in zip(windows, base, groups, strict=False):
        count, ours, theirs = sums.get(group, (0, 0.0, 0.0))
        pairs = list(zip(window["logprobs"], other["logprobs"], strict=False))
        found.steps += window["steps"] != other["steps"] or len(window["logprobs"]) != len(other["logprobs"])
        for value, right in pairs:
            number = float(value)
            count, ours, theirs = count + 1, ours - number, theirs - float(right)
            change = abs(number - float(right))
            found.each = change if math.isnan(change) else max(found.each, change)
        sums[group] = count, ours, theirs


def _differ(turns: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]], names: Sequence[str]) -> int:
    return int([[t.get(n) for n in names] for t in turns] != [[t.get(n) for n in names] for t in base])


def _untimed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _untimed(v) for k, v in value.items() if k not in _TIMES}
    return [_untimed(v) for v in value] if isinstance(value, list) else value


def _values(answer: Mapping[str, Any]) -> Any:
    import numpy as np

    return np.frombuffer(base64.b64decode(answer["logits"]), dtype=answer["dtype"]).astype(np.float64)


def _rms(ours: Any, theirs: Any) -> float:
    import numpy as np

    return float(np.sqrt(np.mean((ours - theirs) ** 2))) if ours.shape == theirs.shape else math.inf
