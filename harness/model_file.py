"""What a model's YAML file may say: the schema of models/*.yaml. `harness.models` reads such files."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from harness.config import Section
from harness.recipes import Recipe

_NAME = r"^[a-z0-9_]+$"
_Text = Annotated[str, Field(min_length=1)]
_Count = Annotated[int, Field(gt=0)]


class Mode(StrEnum):
    """How the model is compiled and run; ExecuTorch's `--model_mode`."""

    KV = "kv"
    HYBRID = "hybrid"
    LOOKAHEAD = "lookahead"


@dataclass(frozen=True)
class Lengths:
    """Sizes that are compiled into a `.pte`, in tokens.

    Attributes:
        max_seq_len: the context: prompt plus output.
        prefill_ar_len: tokens that one prefill step takes; unused in kv mode.
        ngram, window, gcap: N, W and G of lookahead decoding; unused in other modes.
    """

    max_seq_len: int = 128
    prefill_ar_len: int = 32
    ngram: int = 5
    window: int = 8
    gcap: int = 8

    @property
    def lookahead_ar_len(self) -> int:
        """Tokens that one decode step of lookahead takes; see `lookahead_ar_len`."""
        return lookahead_ar_len(self.ngram, self.window, self.gcap)

    def problem(self, mode: Mode) -> str:
        """Why nothing can be compiled with these sizes in a mode, as upstream's llama.py checks it; else empty."""
        if self.max_seq_len < 2:
            return f"max_seq_len ({self.max_seq_len}) must be at least 2"
        if mode is not Mode.KV and not 1 <= self.prefill_ar_len < self.max_seq_len:
            return (
                f"prefill_ar_len ({self.prefill_ar_len}) must be from 1 to max_seq_len ({self.max_seq_len}) − 1: "
                "the cache holds max_seq_len − prefill_ar_len tokens"
            )
        if mode is Mode.LOOKAHEAD:
            if self.ngram < 2 or self.window < 1 or self.gcap < 1:
                return (
                    f"ngram ({self.ngram}) must be at least 2, window ({self.window}) and gcap ({self.gcap}) at least 1"
                )
            if self.lookahead_ar_len >= self.max_seq_len:
                return (
                    f"ngram {self.ngram}, window {self.window} and gcap {self.gcap} make a step of "
                    f"{self.lookahead_ar_len} tokens, which must be less than max_seq_len ({self.max_seq_len})"
                )
        return ""


def lookahead_ar_len(ngram: int, window: int, gcap: int) -> int:
    """(W + G) × (N − 1) rows of lookahead and verification branches, rounded up to a power of two.

    As `process_model_args` of upstream's wrappers/base_component.py.
    """
    rows = (window + gcap) * (ngram - 1)
    return 1 << max(rows - 1, 0).bit_length()


class Params(Section):
    """`params`: the architecture, under the names of upstream's `ModelArgs`; further names of it may be given."""

    model_config = ConfigDict(extra="allow")

    dim: _Count
    n_layers: _Count
    n_heads: _Count
    n_kv_heads: _Count
    vocab_size: _Count
    norm_eps: float = Field(gt=0)
    hidden_dim: _Count | None = None
    head_dim: _Count | None = None
    rope_theta: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _heads_divide(self) -> Params:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads ({self.n_kv_heads}) does not divide n_heads ({self.n_heads})")
        if self.head_dim is None and self.dim % self.n_heads:
            raise ValueError(f"n_heads ({self.n_heads}) does not divide dim ({self.dim}); give head_dim")
        return self

    def model_args(self) -> dict[str, Any]:
        """What upstream's params.json holds: the keys that were given a value."""
        return self.model_dump(exclude_none=True)


class CheckpointSection(Section):
    """`checkpoint`: a file in Meta's format, or a PyPI package that carries a GGUF file."""

    format: Literal["meta", "gguf_package"]
    path: _Text | None = None
    package: _Text | None = None
    extra: _Text | None = None

    @model_validator(mode="after")
    def _fits_format(self) -> CheckpointSection:
        need, other = ("path", "package") if self.format == "meta" else ("package", "path")
        if getattr(self, need) is None:
            raise ValueError(f"format {self.format} needs the key {need}")
        if getattr(self, other) is not None:
            raise ValueError(f"format {self.format} has no key {other}")
        return self


class TokenizerSection(Section):
    """`tokenizer`: without `path` it is taken from the checkpoint's package."""

    kind: Literal["sentencepiece", "huggingface"]
    path: _Text | None = None


class Needs(Section):
    """`needs`: what upstream's recipe for this model asks of the HTP."""

    lpbq: bool = False
    kv_bits: Literal[8, 16] = 8


class LengthsSection(Section):
    """`lengths`: see `Lengths`."""

    max_seq_len: int = Field(default=Lengths.max_seq_len, ge=2)
    prefill_ar_len: int = Field(default=Lengths.prefill_ar_len, ge=1)
    ngram: int = Field(default=Lengths.ngram, ge=2)
    window: int = Field(default=Lengths.window, ge=1)
    gcap: int = Field(default=Lengths.gcap, ge=1)

    @model_validator(mode="after")
    def _prefill_fits(self) -> LengthsSection:
        if problem := self.value().problem(Mode.HYBRID):
            raise ValueError(problem)
        return self

    def value(self) -> Lengths:
        """As the stages use it."""
        return Lengths(self.max_seq_len, self.prefill_ar_len, self.ngram, self.window, self.gcap)


class EvalSection(Section):
    """`eval`: held-out text that perplexity is measured on, and how many of its tokens at most.

    `kv_tokens`: how many with the kv graph, which takes a step for each; all of them unless given.
    """

    text: _Text
    tokens: _Count
    kv_tokens: _Count | None = None


class CalibrationSection(Section):
    """`calibration`: text that quantisation ranges are taken from, and how many samples of it.

    A model without it is calibrated with its prompts, unless the command line names something else.
    """

    text: _Text
    samples: _Count


class Bounds(Section):
    """`bounds`: what a phone is held to.

    The perplexities: how much higher one may be, as a fraction of the one it is compared with. `phone_vs_qdq_rms`:
    root mean square of the difference between the phone's and QDQ's log-likelihood of a token, in nats.
    """

    phone_vs_qdq_ppl: float = Field(default=0.02, gt=0)
    prefill_vs_kv_ppl: float = Field(default=0.01, gt=0)
    qdq_vs_fp_ppl: float = Field(default=0.10, gt=0)
    phone_vs_qdq_rms: float = Field(default=0.25, gt=0)


class ModelFile(Section):
    """One model's YAML file. Paths are relative to the file's folder (or absolute, for a checkpoint of your own)."""

    name: str = Field(pattern=_NAME)
    title: _Text
    decoder: _Text
    repo_id: _Text | None = None
    license: _Text
    params: Params
    checkpoint: CheckpointSection
    tokenizer: TokenizerSection
    instruct: bool
    system_prompt: _Text | None = None
    recipe: Recipe = Recipe()
    needs: Needs = Needs()
    modes: Annotated[tuple[Annotated[Mode, Field(strict=False)], ...], Field(strict=False, min_length=1)]
    lengths: LengthsSection = LengthsSection()
    shards: _Count = 1
    eval: EvalSection
    calibration: CalibrationSection | None = None
    prompts: Annotated[tuple[_Text, ...], Field(strict=False, min_length=1)]
    max_new_tokens: _Count
    bounds: Bounds = Bounds()
