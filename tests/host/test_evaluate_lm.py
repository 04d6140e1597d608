"""Our lm-eval model over the float graph against lm-eval's own HFLM over Hugging Face's model of the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hugging_face
import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from harness.build.checkpoint import interleave
from harness.errors import ConfigError
from harness.evaluate.host_scorer import HostScorer
from harness.evaluate.lm import ScorerLM
from harness.models import ModelSpec, load_models
from harness.paths import MODELS
from harness.runtime.score import WindowScore
from harness.text import lm_tasks
from harness.text.tokenizer import Tokenizer, load_tokenizer
from harness.text.windows import Window

pytestmark = pytest.mark.slow  # the float graph is made where the artifacts are

CONTEXT = 128
DIGITS = 1e-4


class Recorder:
    """A scorer that also keeps what it was asked."""

    def __init__(self, scorer: HostScorer) -> None:
        self.scorer = scorer
        self.context, self.vocab = scorer.context, scorer.vocab
        self.scored: list[list[Window]] = []
        self.generated: list[tuple[list[int], int, frozenset[int]]] = []

    def score(self, windows: Sequence[Window]) -> list[WindowScore]:
        self.scored.append(list(windows))
        return self.scorer.score(windows)

    def generate(self, prompt: Sequence[int], max_new: int, stop: Any) -> list[int]:
        self.generated.append((list(prompt), max_new, frozenset(stop)))
        return self.scorer.generate(prompt, max_new, stop)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return load_models(MODELS)["tiny_llama"]


@pytest.fixture(scope="module")
def tokenizer(spec: ModelSpec) -> Tokenizer:
    return load_tokenizer(spec.folder / "tokenizer.model")


@pytest.fixture(scope="module")
def fp(runtime_artifacts: dict[str, Path]) -> HostScorer:
    return HostScorer(runtime_artifacts["fp"])


@pytest.fixture(scope="module")
def theirs(spec: ModelSpec) -> Any:
    return hugging_face.hflm(spec, CONTEXT)


@pytest.fixture
def recorder(fp: HostScorer) -> Recorder:
    return Recorder(fp)


@pytest.fixture
def ours(recorder: Recorder, tokenizer: Tokenizer) -> ScorerLM:
    return ScorerLM(recorder, tokenizer)


def request(kind: str, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0, metadata=("a_task", 0, 1))


def test_half_split_undoes_interleave() -> None:
    weight = torch.arange(6 * 8 * 3.0).reshape(48, 3)
    assert torch.equal(hugging_face.half_split(interleave(weight, 6), 6), weight)
    assert not torch.equal(hugging_face.half_split(weight, 6), weight)


@pytest.mark.parametrize("add_bos", [False, True])
def test_word_perplexity_is_hflms_to_four_digits(
    spec: ModelSpec, fp: HostScorer, tokenizer: Tokenizer, add_bos: bool
) -> None:
    """All 16 chapters of the held-out text where no BOS is added, as everywhere else; four where one is."""
    results = []
    for model in (ScorerLM(fp, tokenizer, add_bos=add_bos), hugging_face.hflm(spec, CONTEXT, add_bos=add_bos)):
        manager, tasks = lm_tasks.load_tasks(["htpfarm_text"])
        limit = 4 if add_bos else None
        results.append(lm_tasks.run(model, manager, tasks, limit=limit)["results"]["htpfarm_text"])
    assert results[0]["sample_len"] == (4 if add_bos else 16)
    for metric in ("word_perplexity,none", "byte_perplexity,none", "bits_per_byte,none"):
        assert results[0][metric] == pytest.approx(results[1][metric], rel=DIGITS / 10)
    assert 20 < results[0]["word_perplexity,none"] < 400


def test_choices_are_scored_as_by_hflm_also_where_the_context_is_cut(ours: ScorerLM, theirs: Any) -> None:
    _, tasks = lm_tasks.load_tasks(["htpfarm_endings"])
    with lm_tasks.settled():
        tasks[0].set_config("num_fewshot", 3)
        tasks[0].set_fewshot_seed(1)
        tasks[0].build_all_requests(limit=4)
    asked = tasks[0].instances
    one, other = ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True)
    assert len(one) == 16
    np.testing.assert_allclose([a for a, _ in one], [b for b, _ in other], atol=2e-3)
    assert [hit for _, hit in one] == [hit for _, hit in other]
    work = ours.work["htpfarm_endings"]
    assert (work.steps, work.truncated) == (16, 12)
    assert work.seconds > 0


def test_an_empty_context_is_bos_and_greedy_is_said(ours: ScorerLM, theirs: Any, recorder: Recorder) -> None:
    asked = [
        request("loglikelihood", "", "In the beginning"),
        request("loglikelihood", "Then the king of Babyl", "on"),
        request("loglikelihood", "Then the king of Babyl", "ish"),
    ]
    one, other = ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True)
    np.testing.assert_allclose([a for a, _ in one], [b for b, _ in other], atol=2e-3)
    hits = [hit for _, hit in one]
    assert hits == [hit for _, hit in other]
    assert hits == [False, True, False]
    assert recorder.scored[0][0].inputs[0] == 1


def test_all_windows_of_a_task_go_to_the_scorer_at_once(ours: ScorerLM, recorder: Recorder) -> None:
    asked = [request("loglikelihood_rolling", "And it came to pass. " * 40) for _ in range(2)]
    ours.loglikelihood_rolling(asked)
    assert len(recorder.scored) == 1
    assert len(recorder.scored[0]) == ours.work["a_task"].steps > 4
    # A short last window is widened to the left, as lm-eval does it.
    assert {len(window.inputs) for window in recorder.scored[0]} == {CONTEXT}


def test_each_task_has_its_own_account(ours: ScorerLM) -> None:
    asked = [request("loglikelihood", "a", " b") for _ in range(3)]
    asked[2].task_name = "another"
    ours.loglikelihood(asked)
    assert {task: work.steps for task, work in ours.work.items()} == {"a_task": 2, "another": 1}


@pytest.mark.parametrize(
    ("context", "until", "count"),
    [
        ("David said to Jonathan,", ["."], 24),
        ("David said to Jonathan,", ["\n"], 40),
        ("In the third year of king", ["and they", "unlikely"], 40),
        ("In the third year of king", [], 24),
        ("Now it came to pass in those days that the king said to all of the people, " * 12, ["."], 16),
    ],
)
def test_text_is_generated_as_by_hflm(
    ours: ScorerLM, theirs: Any, recorder: Recorder, context: str, until: list[str], count: int
) -> None:
    settings = {"until": until, "max_gen_toks": count, "do_sample": False}
    (one,) = ours.generate_until([request("generate_until", context, settings)])
    (other,) = theirs.generate_until([request("generate_until", context, settings)], disable_tqdm=True)
    assert one == other
    assert one
    (prompt, asked, stop) = recorder.generated[0]
    assert asked == count
    assert len(prompt) <= CONTEXT - count
    assert ours.eot_token_id in stop
    assert ours.work["a_task"].truncated == (len(context) > 500)
    # A token that has all of a stop string in it ends generation on the phone, not afterwards.
    newline = ours.tok_encode("a\n")[-1]
    assert (newline in stop) == ("\n" in until)


def test_without_a_number_half_the_context_is_generated_at_most(ours: ScorerLM, recorder: Recorder) -> None:
    ours.generate_until([request("generate_until", "In the third", {"until": ["."]})])
    assert recorder.generated[0][1] == ours.max_gen_toks == CONTEXT // 2


@pytest.mark.parametrize(
    ("method", "arguments", "complaint"),
    [
        ("generate_until", ("a", {"max_gen_toks": CONTEXT}), "wants 128 new tokens"),
        ("generate_until", ("a", {"do_sample": True, "temperature": 0.7}), "samples"),
        ("loglikelihood", ("a", " and the king said" * 60), "does not fit the context"),
        ("loglikelihood", ("a", ""), "continuation has no token"),
    ],
)
def test_what_cannot_be_asked_names_the_task(
    ours: ScorerLM, method: str, arguments: tuple[Any, ...], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        getattr(ours, method)([request(method, *arguments)])
    assert caught.value.where == "a_task"


def test_the_host_scorer_gives_hugging_faces_log_likelihoods(fp: HostScorer, theirs: Any, tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("In the third year of king Jehoiakim, the king of Babylon came to Jerusalem.", bos=True)
    (score,) = fp.score([Window(tuple(tokens[:-1]), tuple(tokens[1:]))])
    with torch.no_grad():
        logits = theirs.model(torch.tensor([tokens[:-1]])).logits[0].double()
    expected = torch.log_softmax(logits, -1)[range(len(tokens) - 1), tokens[1:]]
    np.testing.assert_allclose(score.logprobs, expected.numpy(), atol=2e-4)
    assert score.greedy == tuple((logits.argmax(-1) == torch.tensor(tokens[1:])).tolist())
    assert (score.steps, fp.context, fp.vocab) == (1, CONTEXT, 1024)


def test_the_host_scorer_generates_up_to_a_stop_or_the_context(fp: HostScorer, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("David said to Jonathan,", bos=True)
    free = fp.generate(prompt, 12, frozenset())
    assert len(free) == 12
    stopped = fp.generate(prompt, 12, {free[4]})
    assert stopped == free[: free.index(free[4]) + 1]
    # The last token is generated from a full context.
    assert len(fp.generate((prompt * 40)[: CONTEXT - 2], 9, frozenset())) == 3


def test_the_host_scorer_gives_torchs_threads_back(fp: HostScorer) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fp.score([Window((1,), (2,))])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("tokens", "complaint"),
    [([], "1 to 128"), ([1] * 129, "1 to 128"), ([1, 1024], "outside the vocabulary"), ([-1], "outside")],
)
def test_what_the_host_scorer_cannot_take_is_refused(fp: HostScorer, tokens: list[int], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        fp.score([Window((1,), (2,)), Window(tuple(tokens), tuple(tokens))])
    assert caught.value.where == "decode_fp.pt2: windows[1]"
    with pytest.raises(ConfigError, match=complaint):
        fp.generate(tokens, 1, frozenset())


def test_qdq_is_near_the_float_model_and_is_not_it(
    fp: HostScorer, runtime_artifacts: dict[str, Path], tokenizer: Tokenizer
) -> None:
    tokens = tokenizer.encode((MODELS / "tiny_llama" / "heldout.txt").read_text()[:300], bos=True)
    window = Window(tuple(tokens[:-1]), tuple(tokens[1:]))
    (float_score,), (qdq,) = fp.score([window]), HostScorer(runtime_artifacts["qdq"]).score([window])
    gap = np.abs(np.subtract(float_score.logprobs, qdq.logprobs))
    assert 0.001 < gap.mean() < 0.5


def test_a_module_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file") as caught:
        HostScorer(tmp_path / "decode_fp.pt2")
    assert "decode_fp.pt2 is written beside" in caught.value.remedy
