"""Calibration data: by lm-eval task as upstream collects it, by sample file, by the model's text, by its prompts."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from events import HANG_S

from harness.build.calibration import CalibrationChoice, calibration_sequences, fingerprint
from harness.errors import ConfigError
from harness.models import ModelSpec, load_models
from harness.paths import MODELS, REPOSITORY
from harness.text.lm_tasks import SHIPPED
from harness.text.tokenizer import Tokenizer, load_tokenizer
from harness.toolchain.environment import find_toolchain

CONTEXT = 96


@pytest.fixture(scope="module")
def tiny() -> ModelSpec:
    return load_models(MODELS)["tiny_llama"]


@pytest.fixture(scope="module")
def tokenizer(tiny: ModelSpec) -> Tokenizer:
    return load_tokenizer(tiny.folder / "tokenizer.model")


def write_samples(path: Path, *conversations: list[tuple[str, str]]) -> Path:
    samples = [{"messages": [{"role": r, "content": c} for r, c in said]} for said in conversations]
    jsonl = path.suffix == ".jsonl"
    path.write_text("\n".join(json.dumps(s) for s in samples) if jsonl else json.dumps(samples))
    return path


SAID = [("user", "Who was king of Israel? "), ("assistant", "David was king of Israel, and Solomon after him. " * 8)]


@pytest.mark.slow
def test_tasks_give_upstreams_own_sequences(tiny: ModelSpec, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Held against upstream's `collect_lm_eval_tokens`, `gpt2` being a small model in the current folder."""
    done = subprocess.run(
        [
            *(sys.executable, str(REPOSITORY / "tests" / "host" / "upstream_calibration.py")),
            *(str(CONTEXT), str(tiny.folder / "tokenizer.model"), str(write_samples(tmp_path / "s.json", SAID))),
            *(str(SHIPPED / "htpfarm_text.yaml"), str(SHIPPED / "htpfarm_endings.yaml")),
        ],
        cwd=tmp_path,
        env=find_toolchain().environment(),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("TOKENS ")]
    assert lines, done.stderr[-3000:]
    theirs = json.loads(lines[0].removeprefix("TOKENS "))
    tasks = ("htpfarm_text", "htpfarm_endings")
    choice = CalibrationChoice(tasks=tasks, limit=2, fewshot=1)
    ours = calibration_sequences(tiny, tokenizer, choice, CONTEXT)
    sampled = calibration_sequences(tiny, tokenizer, CalibrationChoice(samples=tmp_path / "s.json"), CONTEXT)
    assert sampled == theirs["samples"]
    # Upstream takes samples first, then tasks.
    assert sampled + ours == theirs["both"]
    both = calibration_sequences(tiny, tokenizer, replace(choice, samples=tmp_path / "s.json"), CONTEXT)
    assert both == theirs["both"]
    # Two chapters in windows, and 2 × 4 endings with an example before each.
    assert sum(len(sequence) == CONTEXT for sequence in ours) > 20
    assert len({len(sequence) for sequence in ours}) > 2


def test_a_task_that_generates_cannot_calibrate(tiny: ModelSpec, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "writes.jsonl").write_text('{"q": "In the beginning", "a": "God"}\n')
    (tmp_path / "writes.yaml").write_text(
        "task: writes\ncustom_dataset: !function harness.text.task_data.load\n"
        "dataset_kwargs: {data_files: {test: writes.jsonl}}\noutput_type: generate_until\ntest_split: test\n"
        'doc_to_text: "{{q}}"\ndoc_to_target: "{{a}}"\nmetric_list: [{metric: bleu}]\n'
    )
    choice = CalibrationChoice(tasks=("writes",), task_folders=(tmp_path,))
    with pytest.raises(ConfigError, match="generates") as caught:
        calibration_sequences(tiny, tokenizer, choice, CONTEXT)
    assert caught.value.where == "writes"


def test_samples_are_split_at_the_context_and_begin_with_bos(
    tiny: ModelSpec, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = tokenizer.encode("".join(text for _, text in SAID), bos=True)
    for name in ("s.json", "s.jsonl"):
        path = write_samples(tmp_path / name, SAID, [("user", "Amen.")])
        *parts, short = calibration_sequences(tiny, tokenizer, CalibrationChoice(samples=path), CONTEXT)
        assert [token for part in parts for token in part] == whole
        assert [len(part) for part in parts[:-1]] == [CONTEXT] * (len(parts) - 1)
        assert short == tokenizer.encode("Amen.", bos=True)


def test_an_instruct_models_samples_go_through_the_chat_template_beside_its_tokenizer(
    tiny: ModelSpec, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from transformers import LlamaTokenizer

    theirs = LlamaTokenizer.from_pretrained(str(tiny.folder))
    theirs.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    theirs.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "tokenizer.json"
    choice = CalibrationChoice(samples=write_samples(tmp_path / "s.json", [("user", "Hi"), ("assistant", "Amen")]))
    (with_template,) = calibration_sequences(replace(tiny, instruct=True), tokenizer, choice, 128, file)
    assert with_template == tokenizer.encode("<user>Hi</user><assistant>Amen</assistant>", bos=True)
    (base,) = calibration_sequences(tiny, tokenizer, choice, 128, file)
    (no_template,) = calibration_sequences(replace(tiny, instruct=True), tokenizer, choice, 128, tmp_path / "none")
    assert base == no_template == tokenizer.encode("HiAmen", bos=True)


def test_blocks_of_text_are_text(tiny: ModelSpec, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    blocks = [{"type": "text", "text": "In the "}, {"type": "text", "text": "beginning"}]
    path.write_text(json.dumps([{"files": [], "messages": [{"role": "user", "content": blocks}]}]))
    (found,) = calibration_sequences(tiny, tokenizer, CalibrationChoice(samples=path), CONTEXT)
    assert found == tokenizer.encode("In the beginning", bos=True)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("s.json", "{not json", "no calibration samples"),
        ("s.json", '{"messages": []}', "list of samples"),
        ("s.json", '[{"messages": []}]', "sample 0 has no list of messages"),
        ("s.json", '[{"message": [{"role": "user", "content": "x"}]}]', "key messages"),
        ("s.json", '[{"messages": [{"content": "x"}]}]', "lacks role"),
        ("s.json", '[{"files": ["a.png"], "messages": [{"role": "user", "content": "x"}]}]', "multimodal"),
        ("s.json", '[{"messages": [{"role": "user", "content": [{"type": "image"}]}]}]', "no text"),
        ("s.jsonl", "[]\n", "sample 0"),
        ("s.json", "[]", "nothing to calibrate"),
        ("s.txt", "", "nothing to calibrate"),
    ],
)
def test_samples_of_another_form_are_refused(
    tiny: ModelSpec, tokenizer: Tokenizer, tmp_path: Path, name: str, content: str, complaint: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ConfigError, match=complaint) as caught:
        calibration_sequences(tiny, tokenizer, CalibrationChoice(samples=path), CONTEXT)
    assert caught.value.where == str(path)


def test_a_samples_file_that_is_not_there_is_refused(tiny: ModelSpec, tokenizer: Tokenizer, tmp_path: Path) -> None:
    choice = CalibrationChoice(samples=tmp_path / "none.json")
    for refuse in (lambda: calibration_sequences(tiny, tokenizer, choice, CONTEXT), lambda: fingerprint(tiny, choice)):
        with pytest.raises(ConfigError, match="cannot read") as caught:
            refuse()
        assert caught.value.where == str(choice.samples)


def test_without_a_choice_the_models_text_or_else_its_prompts(tiny: ModelSpec, tokenizer: Tokenizer) -> None:
    found = calibration_sequences(tiny, tokenizer, CalibrationChoice(), CONTEXT)
    text = tokenizer.encode(tiny.calibration.text.read_text(), bos=False)
    assert len(found) == tiny.calibration.samples
    assert {(sequence[0], len(sequence)) for sequence in found} == {(tokenizer.bos, CONTEXT)}
    assert [token for sequence in found for token in sequence[1:]] == text[: 8 * (CONTEXT - 1)]
    bare = replace(tiny, calibration=None)
    prompts = calibration_sequences(bare, tokenizer, CalibrationChoice(), CONTEXT)
    assert prompts == [tokenizer.encode(prompt, bos=True) for prompt in tiny.prompts]


def test_plain_text_is_taken_as_the_models_own_would_be(tiny: ModelSpec, tokenizer: Tokenizer, tmp_path: Path) -> None:
    copy = tmp_path / "words.txt"
    copy.write_text(tiny.calibration.text.read_text())
    own = calibration_sequences(tiny, tokenizer, CalibrationChoice(), CONTEXT)
    assert calibration_sequences(tiny, tokenizer, CalibrationChoice(samples=copy), CONTEXT) == own


def test_the_fingerprint_changes_with_everything_that_could_change_the_sequences(
    tiny: ModelSpec, tmp_path: Path
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "mine.yaml").write_text("task: mine\ndataset_kwargs: {data_files: {test: ../words.jsonl}}\n")
    data, samples = tmp_path / "words.jsonl", write_samples(tmp_path / "s.json", SAID)
    data.write_text('{"text": "a"}\n')
    mine = CalibrationChoice(tasks=("mine",), task_folders=(folder,))
    choices = [
        CalibrationChoice(),
        CalibrationChoice(samples=samples),
        CalibrationChoice(tasks=("wikitext",)),
        CalibrationChoice(tasks=("wikitext",), limit=2),
        CalibrationChoice(tasks=("wikitext",), fewshot=0),
        CalibrationChoice(tasks=("wikitext", "mine"), task_folders=(folder,)),
        mine,
        replace(mine, samples=samples),
    ]
    before = [fingerprint(tiny, choice) for choice in choices]
    assert len(set(before)) == len(choices)
    assert before == [fingerprint(tiny, choice) for choice in choices]
    data.write_text('{"text": "b"}\n{}\n')
    write_samples(samples, SAID, SAID)
    after = [fingerprint(tiny, choice) for choice in choices]
    changed = [one != other for one, other in zip(before, after, strict=True)]
    assert changed == [False, True, False, False, False, True, True, True]
    # Another place with the same contents is the same calibration.
    elsewhere = tmp_path / "other"
    folder.rename(elsewhere)
    assert fingerprint(tiny, replace(mine, task_folders=(elsewhere,))) == after[6]
    bare = replace(tiny, calibration=None)
    prompts = [fingerprint(bare, CalibrationChoice()), fingerprint(replace(bare, prompts=("x",)), CalibrationChoice())]
    assert len({*prompts, before[0]}) == 3


def test_the_shipped_tasks_data_are_part_of_the_fingerprint(tiny: ModelSpec) -> None:
    from harness.text.task_files import task_files

    names = {path.name for path in task_files([SHIPPED], ["htpfarm_text"])}
    assert {"heldout.txt", "endings_test.jsonl", "htpfarm_text.yaml", "htpfarm_endings.yaml"} <= names
    assert task_files([SHIPPED], ["wikitext"]) == []
