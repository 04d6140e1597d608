"""lm-eval tasks by name over the float graph: those that ship, the user's own, and those without data."""

from __future__ import annotations

import json
import random
import runpy
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ConfigError, HarnessError, ProductError
from harness.evaluate.host_scorer import HostScorer
from harness.evaluate.tasks import SEED, metrics_of, run_tasks
from harness.models import load_models
from harness.paths import MODELS
from harness.runtime.score import WindowScore
from harness.text import lm_tasks
from harness.text.lm_tasks import SHIPPED, load_tasks, settled
from harness.text.task_data import load
from harness.text.tokenizer import Tokenizer, load_tokenizer
from harness.text.windows import Window

LOADER = "custom_dataset: !function harness.text.task_data.load"
QUESTIONS = [{"q": f"{word} is the king of", "choices": ["Israel", "the cakes"], "label": 0} for word in "ABC"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(load_models(MODELS)["tiny_llama"].folder / "tokenizer.model")


@pytest.fixture(scope="module")
def fp(runtime_artifacts: dict[str, Path]) -> HostScorer:
    return HostScorer(runtime_artifacts["fp"])


class Uniform:
    """Every token is as likely as any other: what is asked can be counted, and no graph is needed."""

    context, vocab = 128, 1024

    def __init__(self) -> None:
        self.windows: list[Window] = []

    def score(self, windows: Sequence[Window]) -> list[WindowScore]:
        self.windows += windows
        return [WindowScore((-1.0,) * len(w.targets), (False,) * len(w.targets), 2, 0.0) for w in windows]

    def generate(self, prompt: Sequence[int], max_new: int, stop: Any) -> list[int]:
        return []


def write_choices(folder: Path, name: str = "mine", data: str = "mine.jsonl", more: str = "") -> None:
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\n{LOADER}\ndataset_kwargs: {{data_files: {{test: {data}}}}}\noutput_type: multiple_choice\n"
        f'test_split: test\ndoc_to_text: "{{{{q}}}}"\ndoc_to_target: "{{{{label}}}}"\ndoc_to_choice: choices\n'
        f"metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]\n{more}"
    )
    if data.endswith(".jsonl"):
        (folder / data).write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))


@pytest.mark.slow
def test_shipped_tasks_run_and_leave_lm_evals_json(
    fp: HostScorer, tokenizer: Tokenizer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run" / "lm-eval.json"
    text, endings = run_tasks(fp, tokenizer, ["htpfarm_text", "htpfarm_endings"], seed=7, output=output)
    captured = capfd.readouterr()
    assert "it/s" not in captured.err
    assert not captured.out
    assert (text.task, text.samples, endings.task, endings.samples) == ("htpfarm_text", 16, "htpfarm_endings", 48)
    assert set(text.metrics) == {"word_perplexity", "byte_perplexity", "bits_per_byte"}
    assert set(endings.metrics) == {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"}
    # 15,773 tokens in windows of 128, each chapter with a last window of its own; a window an ending.
    assert 15_773 / 128 < text.steps <= 15_773 / 128 + 16
    assert endings.steps == 48 * 4
    assert text.seconds > 0
    assert text.truncated == endings.truncated == 0
    # The model has learnt something: chance is 0.25 ± 0.06.
    assert endings.metrics["acc"] > 0.4
    assert endings.metrics["acc_norm"] > 0.4
    assert 80 < text.metrics["word_perplexity"] < 150
    theirs = json.loads(output.read_text())
    assert theirs["results"]["htpfarm_text"]["word_perplexity,none"] == text.metrics["word_perplexity"]
    assert theirs["results"]["htpfarm_endings"]["acc_norm,none"] == endings.metrics["acc_norm"]
    seeds = ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")
    assert [theirs["config"][key] for key in seeds] == [7] * 4
    assert theirs["config"]["max_length"] == 128
    assert theirs["n-samples"]["htpfarm_text"]["effective"] == 16
    assert [path.name for path in output.parent.iterdir()] == ["lm-eval.json"]


def test_limit_and_fewshot_are_lm_evals(tokenizer: Tokenizer) -> None:
    scorer = Uniform()
    (bare,) = run_tasks(scorer, tokenizer, ["htpfarm_endings"], limit=3)
    short = sum(len(window.inputs) for window in scorer.windows)
    scorer = Uniform()
    (shot,) = run_tasks(scorer, tokenizer, ["htpfarm_endings"], limit=3, fewshot=1)
    assert (bare.samples, bare.steps, shot.samples, shot.steps) == (3, 24, 3, 24)
    assert sum(len(window.inputs) for window in scorer.windows) > 1.5 * short
    (many,) = run_tasks(Uniform(), tokenizer, ["htpfarm_endings"], limit=3, fewshot=4)
    assert many.truncated == 12


def test_the_seed_chooses_the_examples(tokenizer: Tokenizer) -> None:
    asked = []
    for seed in (1, 1, 2):
        scorer = Uniform()
        run_tasks(scorer, tokenizer, ["htpfarm_endings"], limit=2, fewshot=1, seed=seed)
        asked.append(scorer.windows)
    assert asked[0] == asked[1]
    assert asked[0] != asked[2]
    assert SEED == 1234


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [({"limit": 0}, "limit is 0"), ({"limit": -1}, "limit"), ({"fewshot": -1}, "fewshot is -1")],
)
def test_a_limit_that_would_mean_no_limit_is_refused(
    tokenizer: Tokenizer, settings: dict[str, int], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        run_tasks(Uniform(), tokenizer, ["htpfarm_endings"], **settings)  # type: ignore[arg-type]


def test_no_task_and_a_task_twice_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no task"):
        run_tasks(Uniform(), tokenizer, [])
    write_choices(tmp_path)
    (tmp_path / "group.yaml").write_text("group: both\ntask: [mine]\n")
    with pytest.raises(ConfigError, match="Duplicate task 'mine'"):
        run_tasks(Uniform(), tokenizer, ["mine", "both"], task_folders=[tmp_path])


def test_an_unknown_task_is_refused_with_near_ones(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The first look into lm-eval's own tasks, of which there are thousands."""
    with pytest.raises(ConfigError, match="unknown lm-eval task 'hellaswagg'") as caught:
        run_tasks(Uniform(), tokenizer, ["hellaswagg"])
    assert "hellaswag" in caught.value.remedy
    with pytest.raises(ConfigError) as caught:
        run_tasks(Uniform(), tokenizer, ["htpfarm_txt"])
    assert "htpfarm_text" in caught.value.remedy
    with pytest.raises(ConfigError) as caught:
        run_tasks(Uniform(), tokenizer, ["qqqqqqqqqqqqqqqqqqqqqqqqqqqq"])
    assert "htpfarm_endings, htpfarm_text" in caught.value.remedy


@pytest.mark.parametrize("task", ["hellaswag", "wikitext"])
def test_a_task_without_data_is_refused_without_asking_the_hub(
    tokenizer: Tokenizer, task: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    asked: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        asked.append(arguments)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(ConfigError, match="is not on this machine") as caught:
        run_tasks(Uniform(), tokenizer, [task])
    assert caught.value.where == task
    assert "load_dataset('" in caught.value.remedy
    assert "htpfarm_text" in caught.value.remedy
    assert not asked


def test_a_users_folder_comes_first_and_may_hold_groups(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    write_choices(folder)
    write_choices(folder, "htpfarm_text")
    (folder / "group.yaml").write_text(
        "group: both\ntask: [mine, htpfarm_text]\n"
        "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n"
    )
    # Its data are found wherever the program was started.
    monkeypatch.chdir(tmp_path)
    (alone,) = run_tasks(Uniform(), tokenizer, ["htpfarm_text"], task_folders=[Path("own")])
    assert (alone.samples, set(alone.metrics)) == (3, {"acc", "acc_stderr"})
    results = {r.task: r for r in run_tasks(Uniform(), tokenizer, ["both"], limit=2, task_folders=[folder])}
    assert set(results) == {"both", "mine", "htpfarm_text"}
    assert (results["both"].samples, results["both"].steps) == (4, 16)
    assert results["both"].metrics["acc"] == results["mine"].metrics["acc"]


def test_an_edited_task_is_read_again(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_choices(tmp_path)
    assert run_tasks(Uniform(), tokenizer, ["mine"], task_folders=[tmp_path])[0].samples == 3
    (tmp_path / "mine.jsonl").write_text(json.dumps(QUESTIONS[0]) + "\n")
    assert run_tasks(Uniform(), tokenizer, ["mine"], task_folders=[tmp_path])[0].samples == 1


@pytest.mark.parametrize(
    ("data", "content", "complaint"),
    [
        ("gone.json", None, "cannot read the task's data"),
        ("bad.json", "{", "cannot read the task's data"),
        ("bad.json", "{}", "expected JSON objects"),
        ("bad.json", "[]", "holds no document"),
        ("bad.csv", "a,b\n", "'.csv' are not known"),
    ],
)
def test_a_users_task_with_bad_data_names_its_yaml(
    tokenizer: Tokenizer, tmp_path: Path, data: str, content: str | None, complaint: str
) -> None:
    write_choices(tmp_path, data=data)
    if content is not None:
        (tmp_path / data).write_text(content)
    with pytest.raises(ConfigError, match=complaint) as caught:
        run_tasks(Uniform(), tokenizer, ["mine"], task_folders=[tmp_path])
    assert caught.value.where == str(tmp_path / "mine.yaml")


def test_lm_evals_own_local_data_are_explained(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: mine.jsonl}}\n"
        'output_type: loglikelihood_rolling\ntest_split: test\ndoc_to_text: ""\ndoc_to_target: "{{q}}"\n'
    )
    with pytest.raises(ConfigError, match="data files are not there") as caught:
        run_tasks(Uniform(), tokenizer, ["mine"], task_folders=[tmp_path])
    assert caught.value.where == "mine"
    assert "harness.text.task_data.load" in caught.value.remedy


def test_a_task_that_does_not_load_says_why(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_choices(tmp_path, more="output_type: guess\n")
    with pytest.raises(ConfigError, match="cannot load") as caught:
        run_tasks(Uniform(), tokenizer, ["mine"], task_folders=[tmp_path])
    assert caught.value.where == "mine"
    assert "guess" in caught.value.evidence


def test_a_broken_yaml_is_named_where_its_task_is_missed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: mine\n  output_type: [")
    with pytest.raises(ConfigError, match="unknown lm-eval task 'mine'") as caught:
        run_tasks(Uniform(), tokenizer, ["mine"], task_folders=[tmp_path])
    assert str(tmp_path / "mine.yaml") in caught.value.evidence
    with pytest.raises(ConfigError, match="no such task folder"):
        run_tasks(Uniform(), tokenizer, ["mine"], task_folders=[tmp_path / "none"])


def test_a_task_that_runs_the_models_code_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_choices(tmp_path, more="unsafe_code: true\n")
    with pytest.raises(ConfigError, match="runs code"):
        run_tasks(Uniform(), tokenizer, ["mine"], task_folders=[tmp_path])


def test_the_scorers_own_errors_come_through(tokenizer: Tokenizer, tmp_path: Path) -> None:
    class Broken(Uniform):
        def score(self, windows: Sequence[Window]) -> list[WindowScore]:
            raise ProductError("the runner aborted", where="phone s24")

    output = tmp_path / "lm-eval.json"
    with pytest.raises(HarnessError) as caught:
        run_tasks(Broken(), tokenizer, ["htpfarm_endings"], limit=1, output=output)
    assert type(caught.value) is ProductError
    assert not output.exists()


def test_a_choice_that_does_not_fit_the_model_names_the_task(tokenizer: Tokenizer) -> None:
    scorer = Uniform()
    scorer.context = 4
    with pytest.raises(ConfigError, match="does not fit the context of 4") as caught:
        run_tasks(scorer, tokenizer, ["htpfarm_endings"], limit=1)
    assert caught.value.where == "htpfarm_endings"


def test_settings_of_the_process_are_given_back(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub
    import tqdm

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    before = tqdm.tqdm.__init__
    with settled(), settled():
        assert huggingface_hub.constants.HF_HUB_OFFLINE
        assert tqdm.tqdm(range(1)).disable
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE
    assert tqdm.tqdm.__init__ is before
    # Without a name of lm-eval's the thousands are not indexed.
    manager, tasks = load_tasks(["htpfarm_text"])
    assert set(manager.all_tasks) == {"htpfarm_text", "htpfarm_endings"}
    assert len(tasks) == 1


def test_only_numbers_are_metrics() -> None:
    row = {"alias": "x", "sample_len": 3, "acc,none": 1, "acc_stderr,none": "N/A", "em,strict": 0.5, "ok,none": True}
    assert metrics_of(row) == {"acc": 1.0, "em,strict": 0.5}


def test_documents_of_a_text_are_its_chapters() -> None:
    yaml = str(SHIPPED / "htpfarm_text.yaml")
    chapters = load({"test": "../models/tiny_llama/heldout.txt"}, yaml)["test"]["text"]
    text = (MODELS / "tiny_llama" / "heldout.txt").read_text()
    assert len(chapters) == 16
    assert "\n\n".join(chapters) + "\n" == text


def test_the_endings_can_be_made_again(tmp_path: Path) -> None:
    state = random.getstate()
    runpy.run_path(str(SHIPPED / "make_endings.py"))["main"](tmp_path)
    assert random.getstate() == state
    for split in ("test", "train"):
        made, kept = (folder / f"endings_{split}.jsonl" for folder in (tmp_path, SHIPPED))
        assert made.read_bytes() == kept.read_bytes()
        for document in map(json.loads, kept.read_text().splitlines()):
            assert len({*document["endings"]}) == 4
            # As the text has it; there are line ends in it.
            sentence = f"{document['beginning']} {document['endings'][document['label']]}"
            name = "heldout.txt" if split == "test" else "calibration.txt"
            assert sentence in " ".join((MODELS / "tiny_llama" / name).read_text().split())
    labels = [json.loads(line)["label"] for line in (SHIPPED / "endings_test.jsonl").read_text().splitlines()]
    assert all(labels.count(place) > 6 for place in range(4))
    assert lm_tasks.task_folders() == (SHIPPED,)
