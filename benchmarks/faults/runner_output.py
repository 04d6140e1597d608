"""Faults of what comes out: logits, the choice of a token, when a turn ends, what is written and reported."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from faults.fault import HYBRID, KV, LOOKAHEAD, Patch, fault
from faults.runner_inputs import feed_another_prompt, position_off
from faults.steps import DECODE, PREFILL, Step, after

BLOCKS = (HYBRID, LOOKAHEAD)


# Logits


def scale_logits(patch: Patch, factor: float, where: Callable[[Step], bool] = lambda _step: True) -> None:
    """Multiplies dequantised logits."""

    def change(step: Step, outputs: list[Any]) -> bool:
        if not where(step):
            return False
        raw, zero = outputs[0], step.engine.info.logits_zero_point
        top = np.iinfo(raw.dtype).max if raw.dtype.kind == "u" else np.inf
        moved = (raw.astype(np.float64) - zero) * factor + zero
        raw[:] = np.clip(np.rint(moved) if raw.dtype.kind == "u" else moved, 0, top).astype(raw.dtype)
        return True

    after(patch, change)


@fault("logits are 5% too large")
def logits_times_1_05(patch: Patch) -> None:
    scale_logits(patch, 1.05)


@fault("logits are 2% too large")
def logits_times_1_02(patch: Patch) -> None:
    scale_logits(patch, 1.02)


@fault("logits are 1% too large")
def logits_times_1_01(patch: Patch) -> None:
    scale_logits(patch, 1.01)


@fault("logits are 0.5% too large")
def logits_times_1_005(patch: Patch) -> None:
    scale_logits(patch, 1.005)


@fault("logits are 2% too small")
def logits_times_0_98(patch: Patch) -> None:
    scale_logits(patch, 0.98)


@fault("decode's logits are 10% too large from position 100 on")
def logits_grow_late(patch: Patch) -> None:
    scale_logits(patch, 1.1, lambda step: step.graph == DECODE and step.past >= 100)


@fault("prefill's logits are 2% too large", modes=BLOCKS)
def prefill_logits_times_1_02(patch: Patch) -> None:
    scale_logits(patch, 1.02, lambda step: step.graph == PREFILL)


@fault("logits' zero point is off by one step", harmless=True)
def logits_zero_point(patch: Patch) -> None:
    def change(_step: Step, outputs: list[Any]) -> bool:
        raw = outputs[0]
        if raw.dtype.kind == "u":
            raw[:] = np.where(raw < np.iinfo(raw.dtype).max, raw + 1, raw)
        return True

    after(patch, change)


@fault("logits have 8 bits")
def logits_of_8_bits(patch: Patch) -> None:
    def change(_step: Step, outputs: list[Any]) -> bool:
        outputs[0][:] = outputs[0] >> 8 << 8
        return True

    after(patch, change)


@fault("the largest logits saturate")
def logits_saturate(patch: Patch) -> None:
    def change(_step: Step, outputs: list[Any]) -> bool:
        raw = outputs[0]
        raw[:] = np.minimum(raw, np.partition(raw, -3, axis=-1)[..., -3:-2])
        return True

    after(patch, change)


@fault("one token in fifty of the vocabulary is never likely")
def tokens_lost(patch: Patch) -> None:
    def change(_step: Step, outputs: list[Any]) -> bool:
        outputs[0][..., 7::50] = outputs[0].min()
        return True

    after(patch, change)


@fault("each logit has noise of 0.1 nats")
def logits_noisy(patch: Patch) -> None:
    add_noise(patch, 0.1)


@fault("each logit has noise of 0.05 nats")
def logits_slightly_noisy(patch: Patch) -> None:
    add_noise(patch, 0.05)


def add_noise(patch: Patch, nats: float) -> None:
    """The same noise in each run."""
    generator = np.random.default_rng(0)

    def change(step: Step, outputs: list[Any]) -> bool:
        raw = outputs[0]
        moved = raw + generator.standard_normal(raw.shape) * (nats / step.engine.info.logits_scale)
        top = np.iinfo(raw.dtype).max if raw.dtype.kind == "u" else np.inf
        raw[:] = np.clip(np.rint(moved), 0, top).astype(raw.dtype)
        return True

    after(patch, change)


@fault("every eleventh step of decode gives the logits of the step before")
def logits_of_the_last_step(patch: Patch) -> None:
    count, last = 0, None

    def change(step: Step, outputs: list[Any]) -> bool:
        nonlocal count, last
        if step.graph != DECODE:
            return False
        count += 1
        late = count % 11 == 0 and last is not None
        if late:
            outputs[0][:] = last
        else:
            last = outputs[0].copy()
        return late

    after(patch, change)


def first_row_from(patch: Patch, row: Callable[[Any, int], Any]) -> None:
    """The reply's first token comes from another row of the prompt's last block; `row`: logits [AR,V], rows → [V]."""
    executed: list[Any] = [None, 0]

    @patch.around("harness.runtime.session", "Session.execute")
    def execute(original: Any, session: Any, graph: Any, tokens: Sequence[int], **more: Any) -> Any:
        output = original(session, graph, tokens, **more)
        executed[:] = [output.logits, len(tokens)]
        return output

    @patch.around("harness.runtime.session", "Session.feed")
    def feed(original: Any, session: Any, tokens: Sequence[int], **more: Any) -> Any:
        found = original(session, tokens, **more)
        logits, count = executed
        if len(logits) == 1 or more.get("on_rows") is not None or more.get("graph") is not None:
            return found
        other = row(logits, count)
        if not np.array_equal(other, found):
            patch.strike()
        return other.copy()


@fault("the first token comes from the row before the last", modes=BLOCKS)
def first_token_a_row_early(patch: Patch) -> None:
    first_row_from(patch, lambda logits, count: logits[max(count - 2, 0)])


@fault("the first token comes from the block's last row, padding or not", modes=BLOCKS)
def first_token_from_padding(patch: Patch) -> None:
    first_row_from(patch, lambda logits, _count: logits[-1])


# Choice


def choose_otherwise(patch: Patch, choose: Callable[[Any, int, int], int]) -> None:
    """Another greedy choice; `choose`: raw logits [V], the right token, how many were chosen → token."""
    count = 0

    @patch.around("harness.runtime.sampling", "greedy")
    def greedy(original: Any, raw: Any) -> int:
        nonlocal count
        count += 1
        right = original(raw)
        other = choose(raw, right, count)
        if other != right:
            patch.strike()
        return other


def second_best(raw: Any) -> int:
    """The token that is second."""
    return int(np.argsort(-raw.astype(np.int64), kind="stable")[1])


@fault("the second-best token is taken")
def second_best_token(patch: Patch) -> None:
    choose_otherwise(patch, lambda raw, _right, _count: second_best(raw))


@fault("the second-best token is taken every seventh time")
def second_best_at_times(patch: Patch) -> None:
    choose_otherwise(patch, lambda raw, right, count: right if count % 7 else second_best(raw))


@fault("the second-best token is taken once, at the 20th")
def second_best_once(patch: Patch) -> None:
    choose_otherwise(patch, lambda raw, right, count: second_best(raw) if count == 20 else right)


@fault("of equal logits, the last one is taken")
def ties_to_the_last(patch: Patch) -> None:
    choose_otherwise(patch, lambda raw, _right, _count: len(raw) - 1 - int(np.argmax(raw[::-1])))


@fault("the choice sees the upper 8 bits of the logits alone")
def choice_in_8_bits(patch: Patch) -> None:
    choose_otherwise(patch, lambda raw, _right, _count: int(np.argmax(raw >> 8)))


@fault("temperature 0 is taken for 1")
def temperature_of_one(patch: Patch) -> None:
    @patch.around("harness.runtime.sampling", "sampler")
    def sampler(original: Any, temperature: float, *rest: Any, **more: Any) -> Any:
        patch.strike()
        return original(temperature or 1.0, *rest, **more)


@fault("a token that was said is less likely to be said again")
def repetition_penalty(patch: Patch) -> None:
    said: list[int] = []

    def choose(raw: Any, _right: int, _count: int) -> int:
        weighed = raw.astype(np.float64)
        weighed[sorted(set(said[-16:]))] *= 0.98
        said.append(int(np.argmax(weighed)))
        return said[-1]

    choose_otherwise(patch, choose)


@fault("a temperature is taken for 0", outside="no cell samples")
def temperature_ignored(patch: Patch) -> None:
    @patch.around("harness.runtime.sampling", "sampler")
    def sampler(original: Any, temperature: float, *rest: Any, **more: Any) -> Any:
        if temperature:
            patch.strike()
        return original(0.0, *rest, **more)


@fault("a further turn forgets those before it", ways=("ours",), outside="no cell has a further turn")
def further_turn_forgets(patch: Patch) -> None:
    @patch.around("harness.runtime.generate", "generate")
    def generate(original: Any, session: Any, *rest: Any, **more: Any) -> Any:
        if session.n_past:
            patch.strike()
            session.rewind(0)
        return original(session, *rest, **more)


# The end of a turn


def end_elsewhere(patch: Patch, new_length: Callable[[int, int, int], int]) -> None:
    """Another length of the sequence; `new_length`: asked for, tokens before the reply, context → in force."""

    @patch.around("harness.runtime.generate", "generate")
    def generate(original: Any, session: Any, prompt: Sequence[int], **more: Any) -> Any:
        asked = more["seq_len"]
        begun, context = session.n_past + len(prompt), session.info.context_len
        more["seq_len"] = max(begun + 1, min(context, new_length(asked, begun, context)))
        if more["seq_len"] != asked:
            patch.strike()
        return original(session, prompt, **more)


@fault("generation stops after 3 tokens")
def stops_after_3(patch: Patch) -> None:
    end_elsewhere(patch, lambda asked, begun, _context: min(asked, begun + 3))


@fault("one token too few is generated")
def one_token_fewer(patch: Patch) -> None:
    end_elsewhere(patch, lambda asked, _begun, _context: asked - 1)


@fault("one token too many is generated")
def one_token_more(patch: Patch) -> None:
    end_elsewhere(patch, lambda asked, _begun, _context: asked + 1)


@fault("the context is taken to be 16 tokens shorter than it is")
def context_shorter(patch: Patch) -> None:
    end_elsewhere(patch, lambda asked, _begun, context: min(asked, context - 16))


@fault("EOS does not end a turn", ways=("stock",))
def eos_ends_nothing(patch: Patch) -> None:
    @patch.around("harness.runtime.generate", "generate")
    def generate(original: Any, *arguments: Any, **more: Any) -> Any:
        stop = more.pop("stop", ())
        result = original(*arguments, **more)
        if any(token in stop for token in result.tokens):
            patch.strike()
        return result


@fault("tokens that end nothing end a turn")
def ends_at_any_token(patch: Patch) -> None:
    @patch.around("harness.runtime.generate", "generate")
    def generate(original: Any, session: Any, prompt: Sequence[int], **more: Any) -> Any:
        more["stop"] = frozenset([*more.get("stop", ()), *range(5, session.info.vocab, 7)])
        result = original(session, prompt, **more)
        if result.stopped:
            patch.strike()
        return result


# What is written


def rewrite(patch: Patch, change: Callable[[bytes], bytes]) -> None:
    """Changes outputs.txt when the runner is done."""

    def at_exit(arguments: Sequence[str]) -> None:
        if "--output_path" in arguments:
            path = Path(arguments[list(arguments).index("--output_path") + 1])
            if path.is_file() and (data := path.read_bytes()):
                path.write_bytes(change(data))
                patch.strike()

    @patch.around("harness.runtime.cli", "main")
    def main(original: Any, arguments: Sequence[str]) -> int:
        status: int = original(arguments)
        at_exit(arguments)
        return status


@fault("outputs.txt holds garbage")
def text_is_garbage(patch: Patch) -> None:
    rewrite(patch, lambda _data: b"garbage")


@fault("outputs.txt lacks the prompt")
def text_without_prompt(patch: Patch) -> None:
    rewrite(patch, lambda data: data.partition(b",")[2] or data[len(data) // 4 :])


@fault("outputs.txt lacks the last token")
def text_lacks_a_token(patch: Patch) -> None:
    last: list[int] = [0]

    @patch.around("harness.runtime.generate", "generate")
    def generate(original: Any, *arguments: Any, **more: Any) -> Any:
        emit = more.get("emit")
        pieces: list[tuple[int, int]] = []
        if emit is not None:
            more["emit"] = lambda previous, token: pieces.append((previous, token))
        result = original(*arguments, **more)
        for pair in pieces[:-1]:
            emit(*pair)
        last[0] = len(pieces)
        patch.strike()
        return result


@fault("outputs.txt is UTF-16")
def text_in_utf_16(patch: Patch) -> None:
    rewrite(patch, lambda data: data.decode("utf-8", errors="replace").encode("utf-16"))


@fault("outputs.txt holds the text twice")
def text_twice(patch: Patch) -> None:
    rewrite(patch, lambda data: data + data)


@fault("one letter in the middle of outputs.txt is another one")
def text_with_another_letter(patch: Patch) -> None:
    def change(data: bytes) -> bytes:
        middle = len(data) * 3 // 4
        return data[:middle] + (b"e" if data[middle : middle + 1] != b"e" else b"o") + data[middle + 1 :]

    rewrite(patch, change)


@fault("outputs.txt holds the text of the process before")
def text_of_the_process_before(patch: Patch) -> None:
    kept = patch.folder / "text-before"

    def change(data: bytes) -> bytes:
        before = kept.read_bytes() if kept.is_file() else data
        kept.write_bytes(data)
        return before

    rewrite(patch, change)


@fault("blanks within the text are lost")
def text_without_blanks(patch: Patch) -> None:
    for kind in ("SentencePiece", "HuggingFace", "Llama2c"):

        @patch.around("harness.text.tokenizer", f"{kind}.piece")
        def piece(original: Any, *arguments: Any) -> bytes:
            patch.strike()
            return bytes(original(*arguments).replace(b" ", b""))


@fault("reported tokens are not those that were written", ways=("ours",))
def tokens_misreported(patch: Patch) -> None:
    @patch.around("harness.runtime.generate", "generate")
    def generate(original: Any, session: Any, *rest: Any, **more: Any) -> Any:
        result = original(session, *rest, **more)
        patch.strike()
        *tokens, last = result.tokens
        return dataclasses.replace(result, tokens=(*tokens, (last + 1) % session.info.vocab))


@fault("what is written is another token's every ninth time, what is reported is right")
def another_token_written(patch: Patch) -> None:
    count = 0

    @patch.around("harness.runtime.generate", "generate")
    def generate(original: Any, session: Any, *rest: Any, **more: Any) -> Any:
        if (emit := more.get("emit")) is not None:

            def other(previous: int, token: int) -> None:
                nonlocal count
                count += 1
                if count % 9 == 0:
                    patch.strike()
                    token = (token + 7) % session.info.vocab
                emit(previous, token)

            more["emit"] = other
        return original(session, *rest, **more)


# Speeds


@fault("speeds are reported 1.2 times as high", speed=True)
def speed_inflated(patch: Patch) -> None:
    change_times(patch, lambda ms: ms / 1.2)


@fault("speeds are reported twice as high", speed=True)
def speed_doubled(patch: Patch) -> None:
    change_times(patch, lambda ms: ms / 2)


def change_times(patch: Patch, change: Callable[[float], float]) -> None:
    """Changes all durations since the prompt was read, in the line that the runner reports them by."""

    @patch.around("harness.runtime.stats", "Stats.observer_line")
    def observer_line(original: Any, stats: Any) -> str:
        start = stats.inference_start_ms
        names = ("prompt_eval_end_ms", "first_token_ms", "inference_end_ms")
        moved = {name: round(start + change(getattr(stats, name) - start)) for name in names}
        patch.strike()
        return str(original(dataclasses.replace(stats, **moved)))


@fault("time to first token is reported half as long", speed=True)
def ttft_halved(patch: Patch) -> None:
    @patch.around("harness.runtime.stats", "Stats.observer_line")
    def observer_line(original: Any, stats: Any) -> str:
        half = (stats.first_token_ms - stats.inference_start_ms) // 2
        patch.strike()
        moved = stats.inference_start_ms + half
        return str(original(dataclasses.replace(stats, first_token_ms=moved, prompt_eval_end_ms=moved)))


@fault("ten tokens more are reported than were generated", speed=True)
def more_tokens_reported(patch: Patch) -> None:
    @patch.around("harness.runtime.stats", "Stats.observer_line")
    def observer_line(original: Any, stats: Any) -> str:
        patch.strike()
        return str(original(dataclasses.replace(stats, generated_tokens=stats.generated_tokens + 10)))


@fault(
    "positions off by one, three tokens, half of the prompt, garbage for text and speeds inflated, all at once",
    modes=(KV, HYBRID, LOOKAHEAD),
)
def all_at_once(patch: Patch) -> None:
    position_off(patch)
    stops_after_3(patch)
    feed_another_prompt(patch, lambda prompt: prompt[: (len(prompt) + 1) // 2])
    text_is_garbage(patch)
    speed_inflated(patch)
