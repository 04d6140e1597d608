"""Is the phone's text right? From the bytes it wrote to QDQ's logits, each step held against the next. Pure.

    outputs.txt ── spells ──► tokens ── each the likeliest of ──► the row it was chosen from ── near ──► QDQ's row

so that no link is the runner's word alone. QDQ's rows are the witness's as long as the phone's text is QDQ's own.
Where the two part, QDQ must have found both tokens nearly as likely; what the phone says after that is another text,
which the witness does not have: it is held against QDQ's module where that was kept (`rest`), and else counted as not
judged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.build.witness import COMPARED, Witness, WitnessText
from harness.errors import NotJudgedError
from harness.evaluate.deviations import Deviations, compare_logprobs, compare_rows, row_scale
from harness.evaluate.judge import Verdict, make_check, worst
from harness.evaluate.rules import RULES, CellRules
from harness.results.records import CheckRecord
from harness.runtime.sampling import log_softmax
from harness.runtime.score import TopRows, likeliest
from harness.text.tokenizer import Tokenizer

Logits = Callable[[Sequence[int]], npt.NDArray[np.float64]]
"""Token ids → QDQ's logits [n,V] after each."""


@dataclass(frozen=True)
class Reply:
    """What came of one prompt.

    Attributes:
        shown: the turn's text, as the runner echoes it.
        fed: the tokens that the host's own tokenizer makes of it.
        wanted: how many tokens were asked for; `least` and `most` where a runner may rightly give others.
        written: bytes of outputs.txt.
        said_fed: the tokens that the runner says it fed; None of a runner that does not say.
        counted_fed: how many tokens the runner counted in the prompt.
        counted_new: how many it counted after the first one.
        tokens: the tokens that it says it generated; None of a runner that does not say.
        rows: what each was chosen from; None likewise.
        ends_at_stop: whether the runner ends at a stop token, and so may write less than was asked for.
        steps: executions of the decode graph that it counted, where each gives one token; else None.
    """

    shown: str
    fed: tuple[int, ...]
    wanted: int
    written: bytes
    counted_fed: int
    counted_new: int
    said_fed: tuple[int, ...] | None = None
    tokens: tuple[int, ...] | None = None
    rows: TopRows | None = None
    ends_at_stop: bool = False
    least: int | None = None
    most: int | None = None
    steps: int | None = None

    @property
    def range(self) -> range:
        """The numbers of tokens that are right without a stop token."""
        least = self.wanted if self.least is None else self.least
        return range(least, max(least, self.wanted if self.most is None else self.most) + 1)


def spelled(shown: str, tokens: Sequence[int], tokenizer: Tokenizer) -> bytes:
    """What outputs.txt has to hold: the echoed turn, then a piece a token."""
    pieces = (tokenizer.piece(before, token) for before, token in zip([*tokens[:1], *tokens], tokens, strict=False))
    return shown.encode() + b"".join(pieces)


def read_tokens(reply: Reply, qdq: WitnessText, tokenizer: Tokenizer, rest: Logits | None = None) -> tuple[int, ...]:
    """The tokens behind the bytes that a runner wrote which does not say them.

    At each place the likeliest of QDQ's tokens that spells what is written goes first. The search ends where none does,
    so the tokens may spell less than was written: `written_check` compares.

    Args:
        reply: with `tokens` None.
        qdq: the witness of its prompt.
        tokenizer: the model's.
        rest: QDQ's module, for a text that has left the witness's.
    """
    left = reply.written.removeprefix(reply.shown.encode())
    tokens: list[int] = []
    known = True
    while left and len(tokens) < reply.range[-1]:
        place = qdq.prompt - 1 + len(tokens)
        if known and place < len(qdq.ids):
            choices = qdq.ids[place].tolist()
        elif rest is not None:
            choices = likeliest(rest([*reply.fed, *tokens])[-1:]).ravel().tolist()
        else:
            break
        before = tokens[-1] if tokens else None
        spelling = {token: tokenizer.piece(token if before is None else before, token) for token in choices}
        fit = next((token for token in choices if spelling[token] and left.startswith(spelling[token])), None)
        if fit is None:
            break
        known = known and fit == choices[0]
        tokens.append(fit)
        left = left[len(spelling[fit]) :]
    return tuple(tokens)


def goes_on(reply: Reply, tokens: Sequence[int], qdq: WitnessText, tokenizer: Tokenizer, rest: Logits | None) -> bool:
    """Whether more was written than `read_tokens` could read, because neither witness nor module speaks of it."""
    if (
        reply.tokens is not None
        or rest is not None
        or len(reply.written) <= len(spelled(reply.shown, tokens, tokenizer))
    ):
        return False
    return tuple(tokens) != qdq.continuation[: len(tokens)] or len(tokens) == len(qdq.continuation)


def written_check(
    cell: str,
    replies: Sequence[Reply],
    texts: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    unread: Collection[int] = (),
) -> CheckRecord:
    """The bytes written are the echoed prompt and the pieces of the tokens, to the letter.

    Args:
        unread: numbers of the replies that go on where nothing says which tokens their bytes could be: what comes
            before is held to the letter, and the rest is not judged.
    """
    wrong = []
    for number, (reply, tokens) in enumerate(zip(replies, texts, strict=True)):
        expected = spelled(reply.shown, tokens, tokenizer)
        written = reply.written[: len(expected)] if number in unread else reply.written
        if written != expected:
            place = next(
                (i for i, (a, b) in enumerate(zip(reply.written, expected, strict=False)) if a != b),
                min(len(reply.written), len(expected)),
            )
            wrong.append(
                f"reply {number} parts from its tokens at byte {place}: written "
                f"{reply.written[place : place + 40]!r}, they spell {expected[place : place + 40]!r}"
            )
    text = "; ".join(wrong) or f"{len(replies)} replies are written as their tokens spell, byte by byte"
    if unread:
        text += f"; {len(unread)} go on beyond what the witness knows, where only QDQ's module could read them"
    verdict = Verdict.FAILED if wrong else Verdict.PASSED if replies and not unread else Verdict.NOT_JUDGED
    return make_check(cell, "text_written", verdict, text, float(len(wrong)), 0.0)


def prompt_check(cell: str, replies: Sequence[Reply]) -> CheckRecord:
    """The prompt was fed whole: its tokens, and their number, are the host's own encoding of it."""
    wrong = [
        f"reply {number}: the runner fed {reply.counted_fed} tokens, the prompt has {len(reply.fed)}"
        if reply.counted_fed != len(reply.fed)
        else f"reply {number}: the runner fed other tokens than the prompt's"
        for number, reply in enumerate(replies)
        if reply.counted_fed != len(reply.fed) or reply.said_fed not in (None, reply.fed)
    ]
    text = "; ".join(wrong) or f"{len(replies)} prompts were fed whole"
    verdict = Verdict.FAILED if wrong else Verdict.PASSED if replies else Verdict.NOT_JUDGED
    return make_check(cell, "prompt_fed", verdict, text, float(len(wrong)), 0.0)


def count_check(
    cell: str,
    replies: Sequence[Reply],
    texts: Sequence[Sequence[int]],
    stop: frozenset[int],
    unread: Collection[int] = (),
) -> CheckRecord:
    """As many tokens as were asked for, or an end at a stop token; as many as the runner counted, and stepped for."""
    wrong = []
    for number, (reply, tokens) in enumerate(zip(replies, texts, strict=True)):
        # Where the bytes go on beyond what can be read, the runner's word is all there is.
        count = reply.counted_new + 1 if number in unread else len(tokens)
        ended = reply.ends_at_stop and bool(tokens) and tokens[-1] in stop and count < reply.range.stop
        if count not in reply.range and not ended:
            wrong.append(f"reply {number} has {count} tokens of {reply.wanted} that were asked for")
        elif count != reply.counted_new + 1:
            wrong.append(f"reply {number} has {len(tokens)} tokens, the runner counted {reply.counted_new + 1}")
        elif reply.steps not in (None, count - 1):
            wrong.append(
                f"reply {number} has {count} tokens, the runner took {reply.steps} steps for all but the first"
            )
    text = "; ".join(wrong) or f"{sum(len(tokens) for tokens in texts)} tokens, as many as were asked for"
    verdict = Verdict.FAILED if wrong else Verdict.PASSED if replies else Verdict.NOT_JUDGED
    return make_check(cell, "token_count", verdict, text, float(len(wrong)), 0.0)


@dataclass(frozen=True)
class Judged:
    """One reply against QDQ.

    Attributes:
        judged: tokens that were held against QDQ.
        faults: what is wrong, in words.
        ties: tokens that are not QDQ's, but nearly as likely under it.
        parted: number of the first of those; None where the text is QDQ's to the end.
        rows: deviations of the rows that the tokens were chosen from.
    """

    judged: int
    faults: tuple[str, ...]
    ties: int
    parted: int | None
    rows: tuple[Deviations, ...]


def judge_reply(
    number: int,
    reply: Reply,
    tokens: Sequence[int],
    qdq: WitnessText,
    typical: float,
    rest: Logits | None,
    rules: CellRules = RULES,
) -> Judged:
    """Holds one reply's tokens against QDQ.

    Args:
        number: of the reply.
        reply, tokens: it, and its tokens.
        qdq: the witness of its prompt.
        typical: the model's typical spread, nats.
        rest: QDQ's module; None where it was not kept.
        rules: the bounds.
    """
    start = qdq.prompt - 1
    faults = list(_own_choices(number, reply.rows, tokens))
    rows = reply.rows if reply.rows is not None and len(reply.rows) == len(tokens) else None
    same = len(_common(tokens, qdq.continuation))
    covered = min(same + 1, len(tokens), len(qdq.continuation))
    found: list[Deviations] = []
    if rows is not None and covered:
        found.append(compare_rows("kv", f"reply {number}", qdq, start, rows[:covered], typical, rules))
    ties, judged, parted, said = 0, covered, None, ""
    if same < min(len(tokens), len(qdq.continuation)):
        parted, row = same, start + same
        scale = float(row_scale(qdq.spread, typical, rules)[row])
        said = _parting(number, same, tokens[same], qdq.ids[row], qdq.logprobs[row], scale, rules)
        ties, faults = (ties, [*faults, said]) if said else (1, faults)
    if rest is not None and not said and covered < len(tokens):
        more = _judge_rest(number, reply.fed, rows, tokens, covered, typical, rest, rules)
        found += more.rows
        faults += more.faults
        ties, judged = ties + more.ties, judged + more.judged
    return Judged(judged, tuple(faults), ties, parted, tuple(found))


def _judge_rest(
    number: int,
    fed: Sequence[int],
    own: TopRows | None,
    tokens: Sequence[int],
    first: int,
    typical: float,
    rest: Logits,
    rules: CellRules,
) -> Judged:
    """The tokens from `first` on against QDQ's module, given the phone's own text before each; `own`: its rows."""
    values = log_softmax(rest([*fed, *tokens[:-1]])[len(fed) - 1 + first :])
    ids = likeliest(values)
    logprobs = np.take_along_axis(values, ids, axis=1)
    scale = np.full(len(ids), rules.floor * typical)
    rows: tuple[Deviations, ...] = ()
    if own is not None:
        where = f"reply {number} from token {first} on"
        near = (ids[:, :COMPARED], logprobs[:, :COMPARED])
        rows = (compare_logprobs("kv", where, *near, scale, own[first:]),)
    faults, ties = [], 0
    for place, token in enumerate(tokens[first:]):
        if token != ids[place, 0]:
            said = _parting(number, first + place, token, ids[place], logprobs[place], float(scale[place]), rules)
            faults += [said] if said else []
            ties += not said
    return Judged(len(tokens) - first, tuple(faults), ties, None, rows)


def _own_choices(number: int, rows: TopRows | None, tokens: Sequence[int]) -> list[str]:
    """Greedy: each token is the likeliest of the row it was chosen from."""
    if rows is None:
        return []
    if len(rows) != len(tokens):
        return [f"reply {number} has {len(tokens)} tokens chosen from {len(rows)} rows"]
    wrong = [place for place, token in enumerate(tokens) if rows.ids[place, 0] != token]
    if not wrong:
        return []
    place = wrong[0]
    return [
        f"reply {number}: {len(wrong)} tokens are not the likeliest by the runner's own logits: token {place} is "
        f"{tokens[place]}, they say {int(rows.ids[place, 0])}"
    ]


def _parting(
    number: int,
    place: int,
    token: int,
    ids: npt.NDArray[np.int64],
    logprobs: npt.NDArray[np.float64],
    scale: float,
    rules: CellRules,
) -> str:
    """Why a token other than QDQ's is wrong; empty where QDQ finds it nearly as likely."""
    at = np.flatnonzero(ids == token)
    gap = float(logprobs[0] - (logprobs[at[0]] if len(at) else logprobs[-1]))
    if len(at) and gap <= rules.tie * scale:
        return ""
    least = "" if len(at) else "at least "
    return (
        f"reply {number}, token {place}: the phone chose {token}, QDQ {int(ids[0])}, which is {least}{gap:.3f} nats "
        f"likelier (a near tie: {rules.tie * scale:.3f})"
    )


def _common(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """The tokens that two texts begin with alike."""
    found = []
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        found.append(a)
    return found


def witness_of(witness: Witness, reply: Reply) -> WitnessText:
    """QDQ's text of a reply's prompt.

    Raises:
        NotJudgedError: the witness has none: the artifact was built with other prompts.
    """
    if (text := witness.prompts.get(reply.fed)) is None:
        raise NotJudgedError(
            f"the witness does not know the prompt {reply.shown[:60]!r}",
            where="witness",
            remedy="compile again: the model's prompts have changed since",
        )
    return text


def first_tokens_check(
    cell: str, found: Sequence[tuple[int, int]], witness: Witness, rules: CellRules = RULES
) -> CheckRecord:
    """The first token after prompts of many lengths, which are the held-out text's beginning: QDQ's, or a near tie.

    Args:
        cell: its id.
        found: length of each prompt in tokens, and the token that came.
        witness: what QDQ says.
        rules: the bounds.
    """
    text, faults, judged = witness.held_out[0], [], 0
    for length, token in found:
        if length > len(text.inputs):
            continue
        judged, row = judged + 1, length - 1
        if token != text.ids[row, 0]:
            scale = float(row_scale(text.spread[row : row + 1], witness.typical_spread, rules)[0])
            said = _parting(0, 0, token, text.ids[row], text.logprobs[row], scale, rules)
            faults += [f"after {length} tokens: {said}"] if said else []
    words = "; ".join(faults) or f"the first tokens after {judged} prompts are QDQ's, or nearly as likely"
    verdict = Verdict.FAILED if faults else Verdict.PASSED if judged else Verdict.NOT_JUDGED
    return make_check(cell, "first_tokens", verdict, words, float(len(faults)), 0.0)


def text_check(cell: str, replies: Sequence[Judged], count: int) -> CheckRecord:
    """All replies against QDQ, together; `count`: their tokens."""
    faults = [fault for reply in replies for fault in reply.faults]
    judged = sum(reply.judged for reply in replies)
    ties = sum(reply.ties for reply in replies)
    text = f"{judged} of {count} greedy tokens held against QDQ, {ties} of them near ties"
    if judged < count:
        text += f"; the other {count - judged} are of a text that the witness has not: only QDQ's module could speak"
    verdicts = [
        Verdict.FAILED if reply.faults else Verdict.PASSED if reply.judged else Verdict.NOT_JUDGED for reply in replies
    ]
    return make_check(cell, "text_as_qdq", worst(verdicts), "; ".join(faults) or text, float(len(faults)), 0.0)


def texts_of(
    replies: Sequence[Reply], witness: Witness, tokenizer: Tokenizer, rest: Logits | None
) -> list[tuple[int, ...]]:
    """Each reply's tokens: said, or read from what was written. Errors as `witness_of`."""
    return [
        reply.tokens if reply.tokens is not None else read_tokens(reply, witness_of(witness, reply), tokenizer, rest)
        for reply in replies
    ]


def text_checks(
    cell: str,
    replies: Sequence[Reply],
    witness: Witness,
    tokenizer: Tokenizer,
    stop: frozenset[int],
    rest: Logits | None,
    rules: CellRules = RULES,
) -> tuple[list[CheckRecord], list[Judged], list[tuple[int, ...]]]:
    """Every check of the replies' text; the judgement and the tokens of each.

    Args:
        cell: its id.
        replies: one a prompt.
        witness: what QDQ says.
        tokenizer: the model's.
        stop: tokens that end a turn.
        rest: QDQ's module; None where it was not kept.
        rules: the bounds.

    Raises:
        NotJudgedError: as `witness_of`.
    """
    texts = texts_of(replies, witness, tokenizer, rest)
    typical = witness.typical_spread
    judged = [
        judge_reply(number, reply, tokens, witness_of(witness, reply), typical, rest, rules)
        for number, (reply, tokens) in enumerate(zip(replies, texts, strict=True))
    ]
    unread = {
        number
        for number, (reply, tokens) in enumerate(zip(replies, texts, strict=True))
        if goes_on(reply, tokens, witness_of(witness, reply), tokenizer, rest)
    }
    count = sum(
        reply.counted_new + 1 if number in unread else len(tokens)
        for number, (reply, tokens) in enumerate(zip(replies, texts, strict=True))
    )
    checks = [
        written_check(cell, replies, texts, tokenizer, unread),
        prompt_check(cell, replies),
        count_check(cell, replies, texts, stop, unread),
        text_check(cell, judged, count),
    ]
    return checks, judged, texts
