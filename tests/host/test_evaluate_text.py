"""A reply's text, from the bytes that were written to QDQ's logits: what is right passes, and each lie is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_witness import SPREAD, SURE, VOCAB, Floats, ToyQdq, random_window, top_of, toy_witness

from harness.build.testify import greedy_continuation
from harness.build.witness import COMPARED, Witness, WitnessText
from harness.errors import NotJudgedError
from harness.evaluate.rules import RULES, CellRules
from harness.evaluate.text import (
    Judged,
    Logits,
    Reply,
    count_check,
    first_tokens_check,
    judge_reply,
    read_tokens,
    spelled,
    text_checks,
    texts_of,
    witness_of,
    written_check,
)
from harness.results.records import CheckRecord
from harness.runtime.sampling import log_softmax

BOS, STOP = 1, 2
PROMPT = (BOS, 7, 8, 9)
SHOWN = "<|user|>Who?"
NEW = 12
TIE = RULES.tie * SPREAD
"""Nats that make a near tie of the toy's rows."""
PIECES = [
    b"",
    b"<s>",
    b"</s>",
    b"\xc3",
    b"\xa9",
    *(b" " + bytes([97 + i % 26, 97 + i // 26]) for i in range(VOCAB - 5)),
]
"""No piece is another's beginning. Of 3 and 4 an é is spelled, a byte each."""


class ToyTokenizer:
    """Pieces that lose their space after BOS, as SentencePiece's do."""

    kind, bos, eos, size = "toy", BOS, STOP, VOCAB

    def encode(self, text: str, *, bos: bool) -> list[int]:
        raise NotImplementedError

    def piece(self, previous: int, token: int) -> bytes:
        return PIECES[token].removeprefix(b" ") if previous == BOS else PIECES[token]

    def special(self, text: str) -> int | None:
        raise NotImplementedError


TOKENIZER = ToyTokenizer()


def spell(tokens: Sequence[int]) -> bytes:
    """What a runner writes for tokens none of which is BOS."""
    return SHOWN.encode() + b"".join(PIECES[token] for token in tokens)


class Phone:
    """A phone that computes with `logits`, and chooses what it is told or else the likeliest.

    Args:
        logits: its own; QDQ's of a perfect phone.
        chosen: number of the generated token → which of the row's likeliest is taken there.
    """

    def __init__(self, logits: Logits, chosen: dict[int, int] | None = None, count: int = NEW) -> None:
        text = list(PROMPT)
        rows = []
        for number in range(count):
            rows.append(logits(text)[-1])
            text.append(int(np.argsort(-rows[-1], kind="stable")[(chosen or {}).get(number, 0)]))
        self.tokens = tuple(text[len(PROMPT) :])
        self.rows = top_of(np.stack(rows))

    def reply(self, **changes: Any) -> Reply:
        """Of a runner that says its tokens and rows."""
        said = Reply(
            shown=SHOWN,
            fed=PROMPT,
            wanted=len(self.tokens),
            written=spell(self.tokens),
            counted_fed=len(PROMPT),
            counted_new=len(self.tokens) - 1,
            said_fed=PROMPT,
            tokens=self.tokens,
            rows=self.rows,
        )
        return replace(said, **changes)

    def stock(self, **changes: Any) -> Reply:
        """Of the stock runner, which says neither, and ends at a stop token."""
        return replace(self.reply(), said_fed=None, tokens=None, rows=None, ends_at_stop=True, **changes)


def judge(
    reply: Reply, qdq: ToyQdq, rest: Logits | None = None, stop: frozenset[int] = frozenset(), new: int = NEW
) -> dict[str, CheckRecord]:
    """Name of each check → it, of one reply."""
    witness = toy_witness(qdq, prompts=[PROMPT], new=new)
    checks, _, _ = text_checks("cell", [reply], witness, TOKENIZER, stop, rest)
    return {check.name: check for check in checks}


def failed(checks: dict[str, CheckRecord]) -> dict[str, str]:
    """Those that did not pass."""
    return {name: check.verdict for name, check in checks.items() if not check.passed}


QDQ = ToyQdq()
RIGHT = Phone(QDQ)


@pytest.mark.parametrize("reply", [RIGHT.reply(), RIGHT.stock(), RIGHT.reply(said_fed=None)])
@pytest.mark.parametrize("rest", [None, QDQ])
def test_the_right_text_passes_every_check(reply: Reply, rest: Logits | None) -> None:
    checks = judge(reply, QDQ, rest)
    assert list(checks) == ["text_written", "prompt_fed", "token_count", "text_as_qdq"]
    assert not failed(checks)
    assert {check.value for check in checks.values()} == {0.0}
    assert {check.bound for check in checks.values()} == {0.0}
    assert "12 of 12 greedy tokens held against QDQ, 0 of them near ties" in checks["text_as_qdq"].text
    assert "only QDQ's module" not in checks["text_as_qdq"].text
    assert [check.text for check in checks.values()][:3] == [
        "1 replies are written as their tokens spell, byte by byte",
        "1 prompts were fed whole",
        "12 tokens, as many as were asked for",
    ]


def test_no_reply_is_no_pass() -> None:
    checks, judged, texts = text_checks("cell", [], toy_witness(QDQ, prompts=[PROMPT]), TOKENIZER, frozenset(), None)
    assert [check.verdict for check in checks] == ["NOT_JUDGED"] * 4
    assert (judged, texts) == ([], [])


# What was written.


def test_the_tokens_spell_pieces_after_each_other_and_the_first_after_itself() -> None:
    assert spelled("é?", [7, 3, 4], TOKENIZER) == "é?".encode() + PIECES[7] + "é".encode()
    # A runner writes the first token's piece as if it followed itself: after a BOS the space is gone.
    assert spelled("", [BOS, 7, 8], TOKENIZER) == b"<s>" + PIECES[7][1:] + PIECES[8]
    assert spelled("x", [], TOKENIZER) == b"x"


@pytest.mark.parametrize("make", [Phone.reply, Phone.stock])
@pytest.mark.parametrize(
    ("written", "place"),
    [
        (spell(RIGHT.tokens)[:-1] + b"!", len(spell(RIGHT.tokens)) - 1),
        (spell(RIGHT.tokens)[:-1], len(spell(RIGHT.tokens)) - 1),
        (spell(RIGHT.tokens) + b"!", len(spell(RIGHT.tokens))),
        (spell(RIGHT.tokens)[len(SHOWN) :], 0),
        (b"!" + spell(RIGHT.tokens)[1:], 0),
        (b"garbage", 0),
        (b"", 0),
    ],
)
def test_bytes_that_are_not_the_tokens_are_found_and_placed(make: Any, written: bytes, place: int) -> None:
    check = judge(make(RIGHT, written=written), QDQ, QDQ)["text_written"]
    assert (check.verdict, check.value) == ("FAILED", 1.0)
    if make is Phone.reply:
        assert f"reply 0 parts from its tokens at byte {place}: written {written[place : place + 40]!r}" in check.text
        assert f"they spell {spell(RIGHT.tokens)[place : place + 40]!r}" in check.text


def test_a_runner_that_says_its_tokens_may_write_nothing_beyond_them() -> None:
    longer = RIGHT.reply(written=RIGHT.reply().written + b"!")
    assert failed(judge(longer, QDQ, None)) == {"text_written": "FAILED"}


def test_each_reply_is_held_to_its_own_tokens() -> None:
    for check in (
        lambda: written_check("c", [RIGHT.reply()], [], TOKENIZER),
        lambda: count_check("c", [RIGHT.reply()], [], frozenset()),
    ):
        with pytest.raises(ValueError, match="zip"):
            check()


def test_each_reply_is_held_to_its_own_bytes() -> None:
    bad = RIGHT.reply(written=b"x")
    witness = toy_witness(QDQ, prompts=[PROMPT])
    checks, _, _ = text_checks("cell", [RIGHT.reply(), bad, bad], witness, TOKENIZER, frozenset(), None)
    assert checks[0].value == 2
    assert "reply 1 parts" in checks[0].text
    assert "; reply 2 parts" in checks[0].text
    assert "reply 0" not in checks[0].text


# What was fed.


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"counted_fed": 3}, "the runner fed 3 tokens, the prompt has 4"),
        ({"counted_fed": 5}, "the runner fed 5 tokens, the prompt has 4"),
        ({"said_fed": (STOP, *PROMPT[1:])}, "the runner fed other tokens than the prompt's"),
        ({"said_fed": PROMPT[:-1]}, "the runner fed other tokens than the prompt's"),
        ({"said_fed": (), "counted_fed": 4}, "the runner fed other tokens than the prompt's"),
        ({"said_fed": PROMPT[1:], "counted_fed": 3}, "the runner fed 3 tokens, the prompt has 4"),
    ],
)
def test_a_prompt_that_was_not_fed_whole_fails(changes: dict[str, Any], said: str) -> None:
    checks = judge(RIGHT.reply(**changes), QDQ)
    assert failed(checks) == {"prompt_fed": "FAILED"}
    assert checks["prompt_fed"].text == f"reply 0: {said}"
    assert checks["prompt_fed"].value == 1.0


# How many tokens.


def cut(count: int, **changes: Any) -> Reply:
    """A runner that stops after so many of the tokens, and is honest about it."""
    reply = Phone(QDQ, count=count).reply(**{"wanted": NEW, **changes})
    return reply if "counted_new" in changes else replace(reply, counted_new=count - 1)


@pytest.mark.parametrize("count", [1, 3, NEW - 1, NEW + 1])
def test_fewer_or_more_tokens_than_asked_for_fail(count: int) -> None:
    checks = judge(cut(count), QDQ, new=NEW + 2)
    assert failed(checks) == {"token_count": "FAILED"}
    assert checks["token_count"].text == f"reply 0 has {count} tokens of 12 that were asked for"


@pytest.mark.parametrize("counted", [NEW - 2, NEW])
def test_a_runner_that_miscounts_fails(counted: int) -> None:
    for reply in (RIGHT.reply(counted_new=counted), RIGHT.stock(counted_new=counted)):
        checks = judge(reply, QDQ)
        assert failed(checks) == {"token_count": "FAILED"}
        assert checks["token_count"].text == f"reply 0 has 12 tokens, the runner counted {counted + 1}"


def test_only_a_runner_that_ends_at_stop_tokens_may_write_less() -> None:
    short, stop = Phone(QDQ, count=5), frozenset({RIGHT.tokens[4]})
    for ends, tokens, verdict in (
        (True, stop, {}),
        (False, stop, {"token_count": "FAILED"}),
        (True, frozenset(), None),
    ):
        for reply in (short.reply(), short.stock()):
            reply = replace(reply, wanted=NEW, ends_at_stop=ends)
            found = failed(judge(reply, QDQ, stop=tokens))
            assert not Reply("", (), 1, b"", 0, 0).ends_at_stop
            assert found == ({"token_count": "FAILED"} if verdict is None else verdict)


def test_a_stop_token_excuses_no_token_too_many_and_no_wrong_count() -> None:
    long = Phone(QDQ, count=NEW + 1)
    stop = frozenset({long.tokens[-1]})
    assert failed(judge(long.reply(wanted=NEW, ends_at_stop=True), QDQ, stop=stop, new=20)) == {"token_count": "FAILED"}
    short = Phone(QDQ, count=5).stock(wanted=NEW, counted_new=5)
    assert failed(judge(short, QDQ, stop=frozenset({RIGHT.tokens[4]}))) == {"token_count": "FAILED"}
    within = Phone(QDQ, count=5).stock(wanted=NEW)  # a stop token that is not the last one ended nothing
    assert failed(judge(within, QDQ, stop=frozenset({RIGHT.tokens[3]}))) == {"token_count": "FAILED"}


def test_no_tokens_at_all_fail() -> None:
    nothing = RIGHT.reply(tokens=(), rows=RIGHT.rows[:0], written=SHOWN.encode(), ends_at_stop=True)
    assert failed(judge(nothing, QDQ, stop=frozenset(range(VOCAB)))) == {
        **{"token_count": "FAILED", "text_as_qdq": "NOT_JUDGED"}
    }
    assert "token_count" in failed(judge(replace(nothing, tokens=None, rows=None), QDQ))


@pytest.mark.parametrize(
    ("least", "most", "counts"),
    [(None, None, [12]), (10, None, [10, 11, 12]), (None, 14, [12, 13, 14]), (11, 13, [11, 12, 13]), (13, 5, [13])],
)
def test_how_many_tokens_may_come(least: int | None, most: int | None, counts: list[int]) -> None:
    assert list(RIGHT.reply(least=least, most=most).range) == counts
    passed = [n for n in range(9, 16) if not failed(judge(cut(n, least=least, most=most), QDQ, new=20))]
    assert passed == counts


# Against QDQ.


@pytest.mark.parametrize("make", [Phone.reply, Phone.stock])
@pytest.mark.parametrize("rest", [None, QDQ])
@pytest.mark.parametrize("place", [0, 5, NEW - 1])
def test_the_second_best_token_at_a_sure_place_fails(make: Any, rest: Logits | None, place: int) -> None:
    wrong = Phone(QDQ, {place: 1})
    check = judge(make(wrong), QDQ, rest)["text_as_qdq"]
    assert check.verdict == "FAILED"
    said = f"reply 0, token {place}: the phone chose {wrong.tokens[place]}, QDQ {RIGHT.tokens[place]}, which is 3.000"
    assert f"{said} nats likelier (a near tie: {TIE:.3f})" in check.text


def honest(place: int, gap: float) -> tuple[ToyQdq, Phone]:
    """QDQ with a gap at a place, and a phone whose noise turns it: it takes the second token, and says so."""
    qdq = ToyQdq({len(PROMPT) + place: gap})

    def noisy(text: Sequence[int]) -> Floats:
        rows = qdq(text)
        if len(text) == len(PROMPT) + place:
            rows[-1, np.argmax(rows[-1])] -= gap + 0.01
        return rows

    return qdq, Phone(noisy)


@pytest.mark.parametrize("share", [0.5, 0.99, 1.01])
def test_a_second_token_passes_within_a_near_tie(share: float) -> None:
    for place in (0, 6, NEW - 1):
        qdq, phone = honest(place, share * TIE)
        assert phone.tokens[place] != Phone(qdq).tokens[place]
        checks = judge(phone.reply(), qdq, qdq)
        assert failed(checks) == ({} if share < 1 else {"text_as_qdq": "FAILED"})
        if share < 1:
            assert "12 of 12 greedy tokens held against QDQ, 1 of them near ties" in checks["text_as_qdq"].text


def test_a_near_tie_is_as_wide_as_its_row_is_noisy() -> None:
    qdq, phone = honest(4, 0.3)
    witness = toy_witness(qdq, prompts=[PROMPT])
    text = witness.prompts[PROMPT]
    row = len(PROMPT) - 1 + 4
    for spread, width, tie in ((0.05, 5, False), (0.07, 5, True), (0.05, 7, True)):
        spreads = np.full(len(text.inputs), 0.01)
        spreads[row] = spread
        own = replace(text, spread=spreads)
        found = judge_reply(0, phone.reply(), phone.tokens, own, 0.001, None, CellRules(tie=width))
        assert (found.faults == (), found.ties, found.parted) == (tie, int(tie), 4)
    low = judge_reply(0, phone.reply(), phone.tokens, replace(text, spread=np.zeros(len(text.inputs))), 0.1, None)
    assert not low.faults  # the typical spread is granted to a row that has less


def test_a_token_that_qdq_hardly_knows_fails_however_wide_a_tie_is() -> None:
    wrong = Phone(QDQ, {3: VOCAB - 1})
    for rest in (None, QDQ):
        found = judge_reply(0, wrong.reply(), wrong.tokens, witness_of_right(), SPREAD, rest, CellRules(tie=1e6))
        assert len(found.faults) == 2
        least = witness_of_right().logprobs[len(PROMPT) - 1 + 3]
        assert f"which is at least {least[0] - least[-1]:.3f} nats likelier" in found.faults[1]


def witness_of_right() -> WitnessText:
    """QDQ's own text after the prompt."""
    return toy_witness(QDQ, prompts=[PROMPT]).prompts[PROMPT]


def test_a_tie_that_is_just_as_wide_as_allowed_passes() -> None:
    text = text_after(QDQ)
    logprobs = text.logprobs.copy()
    row = len(PROMPT) - 1
    logprobs[row, :2] = [-0.5, -1.0]
    second = Phone(QDQ, {0: 1}, 1)
    for tie, faults in ((5.0, 0), (4.99, 1)):
        known = replace(text, logprobs=logprobs)
        rules = CellRules(tie=tie)
        assert len(judge_reply(0, second.reply(rows=None), second.tokens, known, SPREAD, None, rules).faults) == faults


@pytest.mark.parametrize("count", [0, 1, 3])
def test_only_tokens_that_came_are_judged(count: int) -> None:
    found = judge_reply(0, RIGHT.reply(rows=RIGHT.rows[:count]), RIGHT.tokens[:count], text_after(QDQ), SPREAD, None)
    assert (found.judged, found.faults, found.parted) == (count, (), None)
    assert [len(part) for part in found.rows] == ([count] if count else [])


def test_tokens_that_are_not_the_likeliest_of_their_own_rows_fail() -> None:
    """The text is QDQ's, the rows are another computation's: the runner lies about one of them."""
    other = Phone(ToyQdq(seed=1)).rows
    check = judge(RIGHT.reply(rows=other), QDQ)["text_as_qdq"]
    assert check.verdict == "FAILED"
    wrong = sum(int(row[0]) != token for row, token in zip(other.ids, RIGHT.tokens, strict=True))
    assert (
        f"{wrong} tokens are not the likeliest by the runner's own logits: token 0 is {RIGHT.tokens[0]}, they say"
        in (check.text)
    )
    second = Phone(QDQ, {7: 1})
    said = judge(second.reply(), ToyQdq({len(PROMPT) + 7: 0.1}))["text_as_qdq"].text
    assert f"token 7 is {second.tokens[7]}, they say {int(second.rows.ids[7, 0])}" in said


@pytest.mark.parametrize("rest", [None, QDQ])
@pytest.mark.parametrize("count", [0, 5, NEW - 1])
def test_a_row_is_there_for_each_token(rest: Logits | None, count: int) -> None:
    qdq, phone = honest(4, 0.5 * TIE)
    for of, against in ((RIGHT, QDQ), (phone, qdq)):
        checks = judge(of.reply(rows=of.rows[:count]), against, None if rest is None else against)
        assert failed(checks) == {"text_as_qdq": "FAILED"}
        assert f"reply 0 has 12 tokens chosen from {count} rows" in checks["text_as_qdq"].text


def test_after_a_near_tie_qdqs_module_judges_and_the_witness_does_not() -> None:
    qdq, phone = honest(4, 0.5 * TIE)
    good = judge(phone.reply(), qdq, None)["text_as_qdq"]
    assert good.passed
    assert "5 of 12 greedy tokens held against QDQ, 1 of them near ties; the other 7" in good.text
    # What comes after the tie may be anything: the rows say so, and the bytes.
    wild = Phone(lambda text: (phone_logits(qdq) if len(text) <= len(PROMPT) + 4 else ToyQdq(seed=9))(text))
    assert wild.tokens[:5] == phone.tokens[:5]
    assert wild.tokens != phone.tokens
    assert not failed(judge(wild.reply(), qdq, None))
    found = judge(wild.reply(), qdq, qdq)
    assert failed(found) == {"text_as_qdq": "FAILED"}
    assert found["text_as_qdq"].value == len([t for t in found["text_as_qdq"].text.split("; ") if "QDQ" in t])
    assert "reply 0, token 5: the phone chose" in found["text_as_qdq"].text


def phone_logits(qdq: ToyQdq) -> Logits:
    """QDQ whose second token at place 4 is a little likelier than the first."""

    def noisy(text: Sequence[int]) -> Floats:
        rows = qdq(text)
        if len(text) == len(PROMPT) + 4:
            rows[-1, np.argmax(rows[-1])] -= 0.5 * TIE + 0.01
        return rows

    return noisy


def test_near_ties_after_a_near_tie_are_counted_too() -> None:
    gaps = {len(PROMPT) + place: 0.5 * TIE for place in (2, 5, 9)}
    qdq = ToyQdq(gaps)
    phone = Phone(qdq, {2: 1, 5: 1, 9: 1})
    found = judge_reply(0, phone.reply(rows=None), phone.tokens, text_after(qdq), SPREAD, qdq)
    assert (found.judged, found.faults, found.ties, found.parted) == (12, (), 3, 2)
    stricter = judge_reply(3, phone.reply(rows=None), phone.tokens, text_after(qdq), 0.4 * SPREAD, qdq)
    assert len(stricter.faults) == 2  # the first place has its row's spread, those after it the typical one
    assert "reply 3, token 5" in stricter.faults[0]


def text_after(qdq: Logits) -> WitnessText:
    """The witness of the prompt."""
    return toy_witness(qdq, prompts=[PROMPT]).prompts[PROMPT]


def test_a_wrong_token_ends_the_comparison() -> None:
    wrong = Phone(QDQ, {4: 1})
    asked = ToyQdq()
    found = judge_reply(0, wrong.reply(rows=None), wrong.tokens, text_after(QDQ), SPREAD, asked)
    assert (found.judged, len(found.faults), found.parted, found.ties, asked.calls) == (5, 1, 4, 0, 0)


@pytest.mark.parametrize("extra", [0, 1, 3])
def test_more_tokens_than_the_witness_has_are_the_modules_to_judge(extra: int) -> None:
    phone, text = Phone(QDQ, count=NEW + extra), text_after(QDQ)
    with_module = judge_reply(0, phone.reply(), phone.tokens, text, SPREAD, QDQ)
    without = judge_reply(0, phone.reply(), phone.tokens, text, SPREAD, None)
    assert (with_module.judged, without.judged) == (NEW + extra, NEW)
    assert (with_module.faults, without.faults, with_module.parted) == ((), (), None)
    assert sum(len(part) for part in with_module.rows) == NEW + extra
    asked = ToyQdq()
    judge_reply(0, RIGHT.reply(), RIGHT.tokens, text, SPREAD, asked)
    read_tokens(RIGHT.stock(most=NEW + 4), text, TOKENIZER, asked)
    assert asked.calls == 0  # the witness knows all of it
    wrong = Phone(QDQ, {NEW: 1}, NEW + extra)
    assert len(judge_reply(0, wrong.reply(rows=None), wrong.tokens, text, SPREAD, QDQ).faults) == (extra > 0)


def test_the_rows_of_a_reply_are_compared_at_their_places() -> None:
    added = np.random.default_rng(1).normal(0, 0.05, (NEW, VOCAB))
    logits = QDQ([*PROMPT, *RIGHT.tokens[:-1]])[len(PROMPT) - 1 :] + added
    reply = RIGHT.reply(rows=top_of(logits))
    (part,) = judge_reply(2, reply, RIGHT.tokens, text_after(QDQ), SPREAD, None).rows
    values, qdq = log_softmax(logits), log_softmax(logits - added)
    ids = np.argsort(-qdq, axis=1)[:, :COMPARED]
    off = np.take_along_axis(values - qdq, ids, axis=1)
    assert part.top.tolist() == pytest.approx(np.sqrt((off**2).mean(axis=1)).tolist())
    assert (part.graph, part.where, set(part.scale)) == ("kv", "reply 2", {SPREAD * max(1, RULES.floor)})
    assert judge_reply(2, RIGHT.reply(rows=None), RIGHT.tokens, text_after(QDQ), SPREAD, None).rows == ()


def test_the_rows_after_a_near_tie_are_compared_with_the_modules() -> None:
    qdq, phone = honest(4, 0.5 * TIE)
    rules = CellRules(tie=RULES.tie, floor=1.5)
    first, second = judge_reply(1, phone.reply(), phone.tokens, text_after(qdq), 2 * SPREAD, qdq, rules).rows
    assert (len(first), len(second)) == (5, 7)
    assert second.where == "reply 1 from token 5 on"
    assert second.graph == "kv"
    assert second.top.max() < 1e-9
    assert set(second.scale) == {1.5 * 2 * SPREAD}
    assert first.top[:4].max() < 1e-9 < first.top[4]


def test_what_is_judged_is_said_with_the_tokens_and_the_verdicts() -> None:
    witness = toy_witness(QDQ, prompts=[PROMPT])
    checks, judged, texts = text_checks(
        "cell", [RIGHT.reply(), RIGHT.stock()], witness, TOKENIZER, frozenset(), None, CellRules(tie=2)
    )
    assert texts == [RIGHT.tokens, RIGHT.tokens]
    assert [one.judged for one in judged] == [12, 12]
    assert isinstance(judged[0], Judged)
    assert "24 of 24 greedy tokens" in checks[3].text
    qdq, phone = honest(4, 3 * SPREAD)
    for rules, verdict in ((CellRules(tie=3.1), "PASSED"), (CellRules(tie=2.9), "FAILED")):
        known = toy_witness(qdq, prompts=[PROMPT])
        checks, _, _ = text_checks("cell", [phone.reply()], known, TOKENIZER, frozenset(), qdq, rules)
        assert checks[3].verdict == verdict


def test_a_prompt_that_the_witness_does_not_know_is_not_judged() -> None:
    witness = toy_witness(QDQ, prompts=[(BOS, 5)])
    for reply in (RIGHT.reply(), RIGHT.stock()):
        with pytest.raises(NotJudgedError, match="does not know the prompt '<\\|user\\|>Who\\?'"):
            text_checks("cell", [reply], witness, TOKENIZER, frozenset(), None)
    with pytest.raises(NotJudgedError) as caught:
        witness_of(Witness((), {}), RIGHT.reply(shown="x" * 99))
    assert f"'{'x' * 60}'" in str(caught.value)
    assert "compile again" in caught.value.remedy


# Bytes → tokens.


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_tokens_of_any_text_are_read_back_from_its_bytes(seed: int) -> None:
    qdq = ToyQdq(seed=seed)
    phone = Phone(qdq)
    assert read_tokens(phone.stock(), text_after(qdq), TOKENIZER) == phone.tokens
    assert read_tokens(phone.stock(), text_after(qdq), TOKENIZER, qdq) == phone.tokens


def test_a_letter_of_two_bytes_may_be_two_tokens() -> None:
    qdq = Spelling([7, 3, 4, 8, 3, 4])
    tokens = greedy_continuation(qdq, PROMPT, 6)
    reply = Phone(qdq, count=6).stock()
    assert reply.written.decode() == f"{SHOWN} caé daé"
    assert read_tokens(reply, toy_witness(qdq, prompts=[PROMPT], new=6).prompts[PROMPT], TOKENIZER) == tokens


class Spelling(ToyQdq):
    """QDQ whose text after the prompt is given."""

    def __init__(self, tokens: Sequence[int], seconds: dict[int, int] | None = None) -> None:
        super().__init__()
        self.tokens, self.seconds = tokens, seconds or {}

    def __call__(self, tokens: Sequence[int]) -> Floats:
        rows = super().__call__(tokens)
        for number, token in enumerate(self.tokens):
            if len(PROMPT) - 1 + number < len(tokens):
                rows[len(PROMPT) - 1 + number, token] = 9.0
                if number in self.seconds:
                    rows[len(PROMPT) - 1 + number, self.seconds[number]] = 9.0 - 0.5 * TIE
        return rows


def test_a_piece_is_read_as_it_is_spelled_after_the_one_before() -> None:
    qdq = Spelling([BOS, 7, 8])
    reply = Phone(qdq, count=3).stock()
    known = toy_witness(qdq, prompts=[PROMPT], new=3).prompts[PROMPT]
    spaced = replace(reply, written=SHOWN.encode() + b"<s>" + PIECES[7] + PIECES[8])
    joined = replace(reply, written=SHOWN.encode() + b"<s>" + PIECES[7][1:] + PIECES[8])
    assert read_tokens(joined, known, TOKENIZER) == (BOS, 7, 8)
    assert read_tokens(spaced, known, TOKENIZER) == (BOS,)


def test_of_tokens_that_spell_the_same_the_likelier_is_read() -> None:
    pieces = {20: b" same", 21: b" same", 22: b" same"}

    class Ambiguous(ToyTokenizer):
        def piece(self, previous: int, token: int) -> bytes:
            return pieces.get(token, super().piece(previous, token))

    qdq = Spelling([7, 21, 8], {1: 22})
    reply = replace(Phone(qdq, count=3).stock(), written=SHOWN.encode() + PIECES[7] + b" same" + PIECES[8])
    known = toy_witness(qdq, prompts=[PROMPT], new=3).prompts[PROMPT]
    assert read_tokens(reply, known, Ambiguous()) == (7, 21, 8)


def test_a_token_that_spells_nothing_is_never_read() -> None:
    qdq = Spelling([7, 0, 8])
    reply = Phone(qdq, count=3).stock()
    assert PIECES[0] == b""
    read = read_tokens(reply, toy_witness(qdq, prompts=[PROMPT], new=3).prompts[PROMPT], TOKENIZER)
    assert read[0] == 7
    assert 0 not in read


def test_no_more_tokens_are_read_than_may_have_come() -> None:
    phone = Phone(QDQ)
    known = text_after(QDQ)
    for most, count in ((None, 8), (10, 10)):
        assert read_tokens(phone.stock(wanted=8, most=most), known, TOKENIZER) == phone.tokens[:count]


def test_after_a_near_tie_the_bytes_are_read_with_the_module() -> None:
    for place in (0, 4):
        qdq, phone = honest(place, 0.5 * TIE)
        checks = judge(phone.stock(), qdq, qdq)
        assert not failed(checks)
        assert "12 of 12 greedy tokens held against QDQ, 1 of them near ties" in checks["text_as_qdq"].text
        cheat = phone.stock(written=phone.stock().written[:-1] + b"!")
        assert failed(judge(cheat, qdq, qdq))["text_written"] == "FAILED"


def test_without_the_module_bytes_after_a_near_tie_are_not_judged_and_those_before_are() -> None:
    qdq, phone = honest(4, 0.5 * TIE)
    checks = judge(phone.stock(), qdq, None)
    assert failed(checks) == {"text_written": "NOT_JUDGED"}
    assert "1 go on beyond what the witness knows" in checks["text_written"].text
    assert "5 of 12 greedy tokens held against QDQ, 1 of them near ties; the other 7" in checks["text_as_qdq"].text
    written = phone.stock().written
    for changes, found in (
        ({"written": b"!" + written[1:]}, "text_written"),
        ({"counted_new": NEW}, "token_count"),
        ({"counted_new": NEW - 2}, "token_count"),
    ):
        assert failed(judge(phone.stock(**changes), qdq, None))[found] == "FAILED"
    # It ended right at the tie: all that was written is read.
    short = replace(phone.stock(), wanted=5, counted_new=4, written=spell(phone.tokens[:5]))
    assert not failed(judge(short, qdq, None))


def test_without_the_module_bytes_beyond_the_witness_are_not_judged() -> None:
    phone = Phone(QDQ, count=NEW + 2)
    reply = phone.stock(wanted=NEW, most=NEW + 4)
    assert failed(judge(reply, QDQ, None)) == {"text_written": "NOT_JUDGED"}
    assert not failed(judge(reply, QDQ, QDQ))
    assert not failed(judge(RIGHT.stock(most=NEW + 4), QDQ, None))


def test_what_a_wrong_token_is_followed_by_is_not_excused() -> None:
    """Bytes that none of QDQ's likeliest tokens spells: there the search ends, and so does the text."""
    garbage = spell(RIGHT.tokens[:4]) + b"@@@@"
    for rest in (None, QDQ):
        found = failed(judge(RIGHT.stock(written=garbage), QDQ, rest))
        assert found == {"text_written": "FAILED", "token_count": "FAILED"}
    assert read_tokens(RIGHT.stock(written=garbage), text_after(QDQ), TOKENIZER) == RIGHT.tokens[:4]


def test_a_runner_that_says_its_tokens_is_taken_at_its_word_and_at_its_bytes() -> None:
    lie = RIGHT.reply(tokens=Phone(ToyQdq(seed=3)).tokens, rows=None)
    assert texts_of([lie], toy_witness(QDQ, prompts=[PROMPT]), TOKENIZER, None) == [lie.tokens]
    assert failed(judge(lie, QDQ)) == {"text_written": "FAILED", "text_as_qdq": "FAILED"}


def test_the_toy_is_as_sure_as_the_tests_take_it_to_be() -> None:
    values = -np.sort(-QDQ([*PROMPT, *RIGHT.tokens]), axis=1)
    assert (values[:, 0] - values[:, 1]).tolist() == pytest.approx([SURE] * 16)
    assert TIE < SURE
    assert not {0, BOS} & set(RIGHT.tokens)


def test_a_step_that_is_not_taken_or_not_counted_is_found() -> None:
    replies = [replace(Phone(QDQ).reply(), steps=steps) for steps in (None, NEW - 1, NEW, NEW - 2)]
    texts = [reply.tokens or () for reply in replies]
    for reply, tokens, good in zip(replies, texts, (True, True, False, False), strict=True):
        found = count_check("c", [reply], [tokens], frozenset())
        assert found.passed is good, found.text
        assert good or f"took {reply.steps} steps" in found.text


def test_the_first_token_after_prompts_of_every_length_is_qdqs_or_nearly_as_likely() -> None:
    window = random_window(20, 5)
    witness = toy_witness(QDQ, [window])
    text = witness.held_out[0]
    right = [(length, int(text.ids[length - 1, 0])) for length in (1, 5, 20)]
    good = first_tokens_check("c", [*right, (21, 0)], witness)
    assert (good.name, good.verdict) == ("first_tokens", "PASSED")
    assert "after 3 prompts" in good.text  # what the witness does not have is not counted
    wrong = first_tokens_check("c", [*right, (7, int(text.ids[6, -1]))], witness)
    assert (wrong.verdict, wrong.value) == ("FAILED", 1.0)
    assert "after 7 tokens" in wrong.text
    gap = float(text.logprobs[6, 0] - text.logprobs[6, 1])
    second = [(7, int(text.ids[6, 1]))]
    for spread, verdict in ((gap / RULES.tie * 0.9, "FAILED"), (gap / RULES.tie * 1.1, "PASSED")):
        noisy = replace(witness, held_out=(replace(text, spread=np.full(20, spread)),))
        assert first_tokens_check("c", second, noisy).verdict == verdict
    assert first_tokens_check("c", [], witness).verdict == "NOT_JUDGED"
