"""The runner's word on times against the host's clock."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from test_farm_failures import GOOD

from harness.conduct.speed_witness import (
    ROUNDING_MS,
    TRIPS,
    Witnessed,
    contradicts,
    explained_ms,
    session_witness,
    speed_check,
    too_short,
)
from harness.errors import FailureClass, ProductError
from harness.farm.failures import classify
from harness.farm.finite import finite_json, refuse_not_finite
from harness.farm.moments import BEGINS, ENDS, FIRST_TOKEN, Arrivals, Claim, Moments
from harness.farm.observer import Observer, parse_observers
from harness.farm.session import SessionResult

RIGHT = Observer(
    prompt_tokens=9,
    generated_tokens=63,
    model_load_start_ms=1_000,
    model_load_end_ms=1_060,
    inference_start_ms=1_100,
    prompt_eval_end_ms=1_768,
    first_token_ms=1_768,
    inference_end_ms=6_430,
)
SEEN = Moments(begins=3_000.0, first_token=3_670.0, ends=8_330.0)


def ended(observer: Observer = RIGHT, moments: Moments = SEEN, seconds: float = 8.6) -> SessionResult:
    return replace(GOOD, observer=observer, moments=moments, seconds=seconds, round_trips=(14.0, 26.0, 15.0))


def check(*results: SessionResult, logs: bool = True) -> tuple[str, str]:
    found = speed_check("c", [session_witness(number, one) for number, one in enumerate(results)], logs=logs)
    assert found.passed is (found.verdict == "PASSED")
    assert (found.cell, found.name) == ("c", "speed_vs_host_clock")
    return found.verdict, found.text


def test_times_as_the_host_saw_them_pass() -> None:
    verdict, text = check(ended(), ended())
    assert verdict == "PASSED"
    assert text.startswith("4 times as this computer's clock saw them; furthest off: TTFT of session 0, 668 ms where")
    found = speed_check("c", [session_witness(0, ended())])
    assert found.value == pytest.approx(2 / 670)
    assert found.bound == pytest.approx(explained_ms(Claim("TTFT", "", 668.0, 670.0, 26.0)) / 670)


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"inference_end_ms": 1_768 + 4_662 / 1.2}, "decode of session 0 is 3885 ms where 4660 ms went by"),
        ({"inference_end_ms": 1_768 + 4_662 / 2}, "decode of session 0 is 2331 ms"),
        ({"inference_end_ms": 1_768 + 4_662 * 1.2}, "934 ms more"),
        ({"inference_start_ms": 1_434}, "TTFT of session 0 is 334 ms where 670 ms went by"),
        ({"first_token_ms": 1_434}, "TTFT of session 0 is 334 ms"),
        ({"prompt_eval_end_ms": 2_600}, "decode of session 0 is 3830 ms"),
        ({"prompt_eval_end_ms": 2_600}, "prefill of session 0 is 1500 ms"),
        ({"model_load_start_ms": -4_000}, "load of session 0 is 5060 ms where 3000 ms went by"),
    ],
)
def test_a_false_time_is_invalid(lie: dict[str, float], words: str) -> None:
    verdict, text = check(ended(replace(RIGHT, **lie)), ended())  # type: ignore[arg-type]
    assert verdict == FailureClass.INVALID
    assert words in text


def test_one_false_session_among_right_ones_is_found() -> None:
    false = ended(replace(RIGHT, inference_end_ms=5_000))
    assert check(ended(), ended(), false, ended())[0] == FailureClass.INVALID
    assert "session 2" in check(ended(), ended(), false, ended())[1]


def test_many_false_times_are_named_worst_first_and_counted() -> None:
    slow, worse = replace(RIGHT, inference_end_ms=5_000), replace(RIGHT, inference_end_ms=2_000)
    verdict, text = check(*(ended(slow) for _ in range(3)), ended(worse))
    assert verdict == FailureClass.INVALID
    assert text.index("session 3") < text.index("session 0")
    assert text.endswith("; 1 more")


@pytest.mark.parametrize("at_most", [False, True])
def test_what_adb_explains_is_the_slowest_round_trip_twice_a_moment_and_a_share(at_most: bool) -> None:
    edge = TRIPS * 30 + ROUNDING_MS + 0.01 * 1_000
    for off, beyond in ((edge - 0.01, False), (edge + 0.01, True)):
        long = Claim("decode", "", 1_000 + off, 1_000, 30, at_most)
        short = Claim("decode", "", 1_000 - off, 1_000, 30, at_most)
        assert contradicts(long) is beyond
        assert contradicts(short) is (beyond and not at_most)


def test_no_claim_that_is_no_number_passes() -> None:
    assert contradicts(Claim("decode", "", math.nan, 1_000, 30))
    assert contradicts(Claim("decode", "", math.inf, 1_000, 30, at_most=True))


def test_what_is_too_short_to_witness_passes_by_its_upper_bound_only() -> None:
    short, long = Claim("TTFT", "of session 0", 10, 40, 26), Claim("TTFT", "of session 0", 140, 40, 26)
    assert too_short(short)
    assert not contradicts(short)
    found = speed_check("c", [Witnessed((short,))])
    assert found.verdict == "PASSED"
    assert found.text.endswith("; 1 too short to witness, and only known not to be longer")
    assert speed_check("c", [Witnessed((long,))]).verdict == FailureClass.INVALID


def test_a_short_claim_for_a_long_time_is_not_too_short_to_witness() -> None:
    assert contradicts(Claim("decode", "", 1, 4_000, 26))


def test_a_runner_that_logs_nothing_is_not_judged_unless_it_is_known_for_that() -> None:
    silent = ended(moments=Moments())
    verdict, text = check(silent)
    assert (verdict, "no clock but its own" in text) == (FailureClass.NOT_JUDGED, True)
    verdict, text = check(silent, logs=False)
    assert (verdict, "may be too short" in text) == ("PASSED", True)
    assert check(ended(moments=Moments(), seconds=4.0), logs=False)[0] == FailureClass.INVALID
    assert speed_check("c", [], logs=False).verdict == FailureClass.NOT_JUDGED


def test_without_the_line_of_the_first_token_all_of_the_generation_is_witnessed() -> None:
    moments = replace(SEEN, first_token=None)
    assert check(ended(moments=moments))[0] == "PASSED"
    verdict, text = check(ended(replace(RIGHT, inference_end_ms=5_000), moments))
    assert (verdict, "generation of session 0 is 3900 ms where 5330 ms" in text) == (FailureClass.INVALID, True)


def test_rates_that_contradict_the_times_they_come_of_are_invalid(tmp_path: Path) -> None:
    decode = 63 * 1000 / 4_662
    right = replace(RIGHT, stated_prefill_tok_s=13.4731, stated_decode_tok_s=float(f"{decode:g}"))
    speed = tmp_path / "inference_speed.txt"
    speed.write_text(f"{63 * 1000 / 5_330:g}")
    good = replace(ended(right), files={"inference_speed.txt": speed})
    assert check(good)[0] == "PASSED"
    false = replace(good, observer=replace(right, stated_decode_tok_s=2 * decode))
    verdict, text = check(false)
    assert (verdict, "decode_token_per_sec is 27.0" in text) == (FailureClass.INVALID, True)
    for wrong in ("23.6", "nan", "fast", ""):
        speed.write_text(wrong)
        verdict, text = check(good)
        assert (verdict, "inference_speed.txt" in text) == (FailureClass.INVALID, True)


def test_lines_are_timed_as_they_arrive_whole_and_once() -> None:
    now = [10.0]
    arrivals = Arrivals(clock=lambda: now[0])
    said = bytearray()
    for seconds, data in (
        (
            11.0,
            b"I 00:00 executorch:runner.cpp:154] creating module\nI 00:00 executorch:prompt_processor.cpp:270] Prompt",
        ),
        (12.0, b" Processor: total 9 prompt tokens (AR-1 * 9 iters)\nI"),
        (12.5, b" executorch:runner.cpp] " + FIRST_TOKEN + b": 3 MiB\n"),
        (14.0, ENDS + b": 4 MiB\n"),
        (15.0, b"more\n"),
    ):
        now[0] = seconds
        said += data
        arrivals.see(said)
    assert arrivals.moments == Moments(2_000.0, 2_500.0, 4_000.0)
    said += BEGINS + b" 9\n"
    arrivals.see(said)
    assert arrivals.moments == Moments(None, 2_500.0, 4_000.0)


# ---- no number ----------------------------------------------------------------------------------------------------


def observer(**values: float) -> Observer:
    data = {
        "prompt_tokens": 9, "generated_tokens": 3, "model_load_start_ms": 1, "model_load_end_ms": 2,
        "inference_start_ms": 3, "inference_end_ms": 9, "prompt_eval_end_ms": 4, "first_token_ms": 4, **values,
    }  # fmt: skip
    (found,) = parse_observers(f"PyTorchObserver {json.dumps(data)}")
    return found


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"inference_end_ms": math.nan}, "inference_end_ms is nan"),
        ({"first_token_ms": math.inf}, "first_token_ms is inf"),
        ({"decode_token_per_sec": math.nan}, "stated_decode_tok_s is nan"),
        ({"prompt_tokens": math.nan}, "-1 prompt tokens"),
        ({"prompt_tokens": 0}, "0 prompt tokens"),
        ({"generated_tokens": -1}, "-1 generated"),
        ({"first_token_ms": 2}, "first_token_ms is 1 ms before inference_start_ms"),
        ({"inference_end_ms": 3}, "inference_end_ms is 1 ms before prompt_eval_end_ms"),
        ({"model_load_end_ms": 0}, "model_load_end_ms is 1 ms before model_load_start_ms"),
    ],
)
def test_times_that_nobody_can_have_measured_are_the_products_fault(values: dict[str, float], words: str) -> None:
    failure = classify(replace(GOOD, observer=observer(**values)))
    assert failure is not None
    assert failure.failure_class is FailureClass.PRODUCT
    assert words in failure.reason


def test_a_clock_that_did_not_move_has_measured_nothing() -> None:
    still = observer(prompt_eval_end_ms=3, first_token_ms=3, inference_end_ms=3)
    assert (still.nonsense, still.prefill_tok_s, still.decode_tok_s) == ("", None, None)
    assert observer(generated_tokens=0).decode_tok_s is None


def test_what_is_not_finite_is_refused_with_its_place() -> None:
    refuse_not_finite({"windows": [{"logprobs": [-1.0, -2.0]}], "n": 3, "none": None}, "x")
    with pytest.raises(ProductError) as caught:
        refuse_not_finite({"windows": [{"logprobs": [-1.0]}, {"logprobs": [0.0, math.nan, -math.inf]}]}, "s: score")
    assert caught.value.what == "the runner says nan for windows.1.logprobs.1 (and 1 more)"
    assert caught.value.where == "s: score"


def test_json_of_a_runner_is_json_with_numbers() -> None:
    assert finite_json('{"turns": [{"ttft_ms": 3}]}', "stats.json") == {"turns": [{"ttft_ms": 3}]}
    for bad in ('{"peak": NaN}', '{"peak": 1e999}', "{", ""):
        with pytest.raises(ProductError) as caught:
            finite_json(bad, "stats.json")
        assert caught.value.where == "stats.json"
