"""What follows a failure, which phones a cell may use, builds that processes wait for, the live log."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from events import HANG_S

from harness.build.cache import Artifact
from harness.conduct.builds import build_file, wait_for_artifact
from harness.conduct.live import Follower, LiveLog
from harness.conduct.plan import phone_wish, plan, read_choice
from harness.conduct.retry import again, crashed_on, undecided, verdict_class
from harness.errors import BuildError, ConfigError, FailureClass, InfraError
from harness.farm.failures import Failure
from harness.farm.select import Wish
from harness.model_file import Lengths, Mode
from harness.paths import REPOSITORY
from harness.pytest_plugin import asks_for_cells
from harness.target import Target

RACK = REPOSITORY / "devices.yaml"
INFRA, CRASH, PRODUCT, ENV = FailureClass.INFRA, FailureClass.CRASH, FailureClass.PRODUCT, FailureClass.ENV


@pytest.mark.parametrize(
    ("failures", "more"),
    [
        ([PRODUCT], False),
        ([FailureClass.BUILD], False),
        ([FailureClass.CONFIG], False),
        ([INFRA], True),
        ([INFRA, INFRA], True),
        ([INFRA, INFRA, INFRA], False),
        ([CRASH], True),
        ([CRASH, CRASH], False),
        ([CRASH, INFRA, CRASH], False),
        ([INFRA, CRASH], True),
        ([INFRA, INFRA, CRASH], True),
        ([CRASH, INFRA], True),
        ([CRASH, INFRA, INFRA], False),
        ([INFRA, PRODUCT], False),
        ([ENV], True),
        ([ENV, ENV], True),
        ([ENV, ENV, ENV], False),
        ([INFRA, ENV], True),
        ([INFRA, ENV, INFRA], False),
        ([ENV, INFRA, ENV], False),
        ([FailureClass.PERF], False),
        ([FailureClass.UNSUPPORTED], False),
        ([FailureClass.NOT_JUDGED], False),
        ([FailureClass.INCONCLUSIVE], False),
        ([FailureClass.INVALID], False),
    ],
)
def test_what_is_tried_again(failures: list[FailureClass], more: bool) -> None:
    assert again(failures) is more


@pytest.mark.parametrize(
    ("expression", "asked"),
    [("device", True), ("device and not slow", True), ("", False), ("not device", False), ("not slow", False)],
)
def test_cells_run_only_where_device_tests_are_asked_for_by_name(expression: str, asked: bool) -> None:
    assert asks_for_cells(expression) is asked


def test_a_second_crash_is_the_products_only_on_another_phone() -> None:
    assert verdict_class([CRASH, CRASH], ["a", "b"]) is PRODUCT
    assert verdict_class([CRASH, CRASH], ["a", "a"]) is CRASH
    assert verdict_class([CRASH, CRASH], ["a", None]) is CRASH
    assert verdict_class([CRASH, INFRA, CRASH], ["a", "b", "a"]) is CRASH
    assert verdict_class([CRASH], ["a"]) is CRASH
    assert verdict_class([CRASH, INFRA, INFRA], ["a", "b", "c"]) is INFRA
    assert verdict_class([CRASH, CRASH, INFRA], ["a", "b", "c"]) is INFRA
    assert verdict_class([INFRA, PRODUCT], ["a", "b"]) is PRODUCT
    assert crashed_on([CRASH, INFRA, CRASH], ["a", "b", None]) == {"a"}
    with pytest.raises(ValueError, match="shorter"):  # an attempt without a place is a mistake of the caller's
        crashed_on([CRASH, CRASH], ["a"])


def test_crashes_of_one_phone_say_that_they_decide_nothing_and_what_would() -> None:
    failure = undecided(Failure(CRASH, "the phone rebooted", "see its log", "evidence"), ["lab", None])
    assert failure.failure_class is CRASH
    assert "each time on the same phone: the product or lab" in failure.reason
    assert "run the cell on another phone" in failure.remedy
    assert failure.remedy.endswith("if not, lab; see its log")
    assert failure.evidence == "evidence"
    assert "the product or lab" in undecided(Failure(CRASH, "x"), ["attic", "lab", None]).reason  # where it was last
    nowhere = undecided(Failure(CRASH, "the phone rebooted"), [None])
    assert nowhere.reason.endswith("the product or it is at fault")
    assert nowhere.remedy.endswith("it is the product; if not, it")


def test_the_default_plan_is_twelve_cells_on_four_phones() -> None:
    choice = read_choice(RACK, "tiny_llama", None, None)
    planned = plan(choice, choice.inventory.phones, Target.SIM)
    assert [p.cell.id for p in planned] == [
        "tiny_llama-kv-SM8550",
        "tiny_llama-kv-SM8650@oneplus12",
        "tiny_llama-kv-SM8650@s24",
        "tiny_llama-kv-SM8750",
        "tiny_llama-hybrid-SM8550",
        "tiny_llama-hybrid-SM8650@oneplus12",
        "tiny_llama-hybrid-SM8650@s24",
        "tiny_llama-hybrid-SM8750",
        "tiny_llama-lookahead-SM8550",
        "tiny_llama-lookahead-SM8650@oneplus12",
        "tiny_llama-lookahead-SM8650@s24",
        "tiny_llama-lookahead-SM8750",
    ]
    assert all(p.verdict.run for p in planned)
    assert {p.phones for p in planned} == {("s23",), ("s24",), ("oneplus12",), ("s25",)}


def test_an_unlisted_mode_is_skipped_with_a_reason() -> None:
    choice = read_choice(RACK, "tiny_llama", "lookahead", None)
    models = tuple(replace(model, modes=(Mode.KV,)) for model in choice.models)
    planned = plan(replace(choice, models=models), choice.inventory.phones, Target.SIM)
    assert planned
    assert all(not p.verdict.run and p.verdict.reason and p.verdict.remedy for p in planned)


def test_sizes_of_the_command_line_replace_the_models_own() -> None:
    sizes = {"max_seq_len": 256, "ngram": 4, "window": 6, "gcap": 4}
    (model,) = read_choice(RACK, "tiny_llama", None, None, lengths=sizes).models
    assert model.lengths == Lengths(256, 32, 4, 6, 4)


@pytest.mark.parametrize(
    ("modes", "sizes", "words"),
    [
        (None, {"max_seq_len": 32}, "max_new_tokens|prefill_ar_len"),
        ("hybrid", {"prefill_ar_len": 128}, "--prefill-ar-len 128: tiny_llama in hybrid mode"),
        ("hybrid", {"prefill_ar_len": 0}, "from 1 to max_seq_len"),
        ("kv", {"max_seq_len": 1}, "at least 2"),
        ("lookahead", {"ngram": 1}, "ngram .1. must be at least 2"),
        ("lookahead", {"ngram": 5, "window": 16, "gcap": 16}, "make a step of 128 tokens"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(modes: str | None, sizes: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_choice(RACK, "tiny_llama", modes, None, lengths=sizes)


@pytest.mark.parametrize(
    ("models", "modes", "socs", "word"),
    [
        ("tiny_lama", None, None, "tiny_llama"),
        ("", None, None, "model"),
        ("tiny_llama", "kw", None, "kv"),
        ("tiny_llama", None, "SM8651", "SM8650"),
    ],
)
def test_unknown_names_are_refused_with_a_suggestion(
    models: str, modes: str | None, socs: str | None, word: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_choice(RACK, models, modes, socs)
    assert word in str(caught.value)


def artifact(folder: Path) -> Artifact:
    return Artifact("k", folder / "model.pte", folder / "reference", {})


def test_a_cell_waits_for_its_build(tmp_path: Path) -> None:
    path = build_file(tmp_path, "k")

    waiter = threading.Thread(target=wait_for_artifact, args=(tmp_path, artifact(tmp_path), HANG_S))
    waiter.start()
    waiter.join(0.3)
    assert waiter.is_alive()
    path.parent.mkdir()
    path.write_text("null")
    waiter.join(HANG_S)
    assert not waiter.is_alive()


def test_a_cell_gets_its_builds_error(tmp_path: Path) -> None:
    path = build_file(tmp_path, "k")
    path.parent.mkdir()
    said = {"class": "BUILD", "what": "lowering failed", "where": "x", "remedy": "read it", "evidence": "op"}
    path.write_text(json.dumps(said))
    with pytest.raises(BuildError, match="lowering failed") as caught:
        wait_for_artifact(tmp_path, artifact(tmp_path))
    assert caught.value.evidence == "op"


def test_waiting_for_a_build_has_an_end(tmp_path: Path) -> None:
    with pytest.raises(InfraError, match="no build"):
        wait_for_artifact(tmp_path, artifact(tmp_path), timeout_s=0.3)


def test_the_live_log_shows_every_line_once(tmp_path: Path) -> None:
    log, seen = LiveLog(tmp_path), list[str]()
    follower = Follower(log, seen.append)
    follower.start()
    threads = [
        threading.Thread(target=lambda n=n: [log.say(f"p{n}", f"line\n{i}") for i in range(50)]) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    follower.stop()
    assert len(seen) == 200
    assert {line.split(" ", 1)[1].split()[0] for line in seen} == {"p0", "p1", "p2", "p3"}
    assert all(line.split()[2] == "line" for line in seen)


def test_phones_are_chosen_by_name_arch_and_words_of_the_racks_file(tmp_path: Path) -> None:
    rack = tmp_path / "devices.yaml"
    rack.write_text(
        "version: 1\nphones:\n  - {name: a, virtual: galaxy_s24, labels: [shelf]}\n"
        "  - {name: b, virtual: oneplus_12, capabilities: [meter]}\n"
    )
    choice = read_choice(rack, "tiny_llama", None, None, wish=phone_wish("a, b", 75, "", "meter"))
    assert choice.wish == Wish(arch=75, phones=frozenset("ab"), capabilities=frozenset({"meter"}))
    for wish, complaint in (
        (phone_wish("c", None, "", ""), "--phones.*'c'"),
        (phone_wish("", None, "shef", ""), "--labels.*'shef'"),
        (phone_wish("", None, "", "shelf"), "--capabilities.*'shelf'"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            read_choice(rack, "tiny_llama", None, None, wish=wish)
