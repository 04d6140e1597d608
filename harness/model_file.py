"""What a model's YAML file may say: the schema of models/*.yaml. `harness.models` reads such files."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from harness.config import Section
from harness.recipes import Recipe

_NAME = r"^[a-z0-9_]+$"
_Text = Annotated[str, Field(min_length=1)]
_Count = Annotated[int, Field(gt=0)]
_LayerType = Literal["full_attention", "sliding_attention"]
CheckpointFormat = Literal["huggingface", "meta", "llama2c", "gguf", "gguf_package"]


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
    """`params`: the architecture, under the names of upstream's `ModelArgs`; further names of it may be given.

    Upstream's static Llama is what reads them; a key that is not given has its default in ExecuTorch's
    examples/models/llama/model_args.py.

    Attributes:
        dim: width of the residual stream.
        n_layers: decoder layers.
        n_heads: query heads.
        n_kv_heads: key and value heads; divides n_heads.
        vocab_size: rows of the embedding table.
        norm_eps: epsilon of every norm.
        hidden_dim: width of the feed-forward.
        head_dim: width of a head; dim / n_heads where it is not given.
        rope_theta: base of the rotary embedding.
        multiple_of: rounds a feed-forward width that is not given up to a multiple of it.
        ffn_dim_multiplier: scales a feed-forward width that is not given.
        use_scaled_rope: Llama 3.1's scaling of low frequencies.
        rope_scale_factor: its factor: 8 in Llama 3.1, 32 in Llama 3.2.
        use_hf_rope: computes the frequencies as Hugging Face does; needed for a partial rotary embedding.
        partial_rotary_factor: share of a head that is rotated.
        local_rope_theta: base of the rotary embedding in layers with a sliding window.
        no_rope_layer_interval: every n-th layer has no rotary embedding.
        attention_qkv_bias: whether q, k and v have biases.
        use_qk_norm: RMSNorm over each head of q and k.
        qk_norm_before_rope: that norm comes before the rotary embedding.
        act_fn: the feed-forward's activation; gelu_approx is the one with tanh.
        norm_type: layernorm, or one of upstream's names for RMSNorm.
        use_ffn_norm: a norm before the feed-forward; without it the feed-forward reads what attention reads.
        post_attention_norm: a norm after attention.
        post_ffn_norm: a norm after the feed-forward.
        output_bias: whether the output layer has a bias.
        model_architecture: Hugging Face's name, where upstream's feed-forward depends on it.
        embedding_scale_factor: multiplies the embeddings; folded into them.
        attention_multiplier: multiplies q·k, in place of 1 / √head_dim.
        residual_multiplier: multiplies what a block adds to the residual stream.
        logits_scaling: divides the logits.
        attn_logit_softcapping: cap of tanh over q·k. Upstream's graph leaves it out.
        final_logit_softcapping: cap of tanh over the logits.
        sliding_window: tokens that a layer with a sliding window sees.
        layer_types: sliding_attention or full_attention for each layer.
        original_max_position_embeddings: LongRoPE: the context that the model was first trained for.
        max_position_embeddings: LongRoPE: the context that it was stretched to.
        bos_idx: the token that opens a text.
        eos_idx: the token that ends a text.
    """

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
    multiple_of: _Count | None = None
    ffn_dim_multiplier: float | None = Field(default=None, gt=0)
    use_scaled_rope: bool | None = None
    rope_scale_factor: _Count | None = None
    use_hf_rope: bool | None = None
    partial_rotary_factor: float | None = Field(default=None, gt=0, le=1)
    local_rope_theta: float | None = Field(default=None, gt=0)
    no_rope_layer_interval: _Count | None = None
    attention_qkv_bias: bool | None = None
    use_qk_norm: bool | None = None
    qk_norm_before_rope: bool | None = None
    act_fn: Literal["silu", "gelu", "gelu_approx"] | None = None
    norm_type: Literal["rmsnorm", "layernorm", "gemma2", "gemma3"] | None = None
    use_ffn_norm: bool | None = None
    post_attention_norm: bool | None = None
    post_ffn_norm: bool | None = None
    output_bias: bool | None = None
    model_architecture: _Text | None = None
    embedding_scale_factor: float | None = Field(default=None, gt=0)
    attention_multiplier: float | None = Field(default=None, gt=0)
    residual_multiplier: float | None = Field(default=None, gt=0)
    logits_scaling: float | None = Field(default=None, gt=0)
    attn_logit_softcapping: float | None = Field(default=None, gt=0)
    final_logit_softcapping: float | None = Field(default=None, gt=0)
    sliding_window: _Count | None = None
    layer_types: Annotated[tuple[_LayerType, ...], Field(strict=False)] | None = None
    original_max_position_embeddings: _Count | None = None
    max_position_embeddings: _Count | None = None
    bos_idx: int | None = Field(default=None, ge=0)
    eos_idx: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _fits_together(self) -> Params:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads ({self.n_kv_heads}) does not divide n_heads ({self.n_heads})")
        if self.head_dim is None and self.dim % self.n_heads:
            raise ValueError(f"n_heads ({self.n_heads}) does not divide dim ({self.dim}); give head_dim")
        if self.layer_types is not None and len(self.layer_types) != self.n_layers:
            raise ValueError(f"layer_types lists {len(self.layer_types)} layers, n_layers is {self.n_layers}")
        for key in self.model_extra or {}:
            # Upstream may know more names than these, but hardly one that is a letter away.
            if close := difflib.get_close_matches(key, type(self).model_fields, n=1, cutoff=0.8):
                raise ValueError(f"unknown key {key}; did you mean {close[0]}?")
        return self

    @property
    def head_width(self) -> int:
        """Channels of a head."""
        return self.head_dim or self.dim // self.n_heads

    @property
    def ffn_width(self) -> int:
        """Channels of the feed-forward, as `ModelArgs` computes them where hidden_dim is not given."""
        if self.hidden_dim is not None:
            return self.hidden_dim
        width, step = int((self.ffn_dim_multiplier or 1) * int(8 * self.dim / 3)), self.multiple_of or 256
        return -(-width // step) * step

    def model_args(self) -> dict[str, Any]:
        """What upstream's params.json holds: the keys that were given a value."""
        return self.model_dump(exclude_none=True)


class CheckpointSection(Section):
    """`checkpoint`: where the weights are.

    Without `path` they are looked for in `$HTPFARM_WEIGHTS/NAME` (else ~/.cache/htpfarm/weights/NAME).

    Attributes:
        format: huggingface: a folder with config.json and safetensors or .bin files, or the hub's local cache of
            repo_id; meta: a folder with consolidated.*.pth and params.json, or one file in Meta's naming; llama2c: a
            .pt file of llama2.c's; gguf: a file; gguf_package: a PyPI package that carries a GGUF file.
        path: the folder or file; not for gguf_package.
        package: for gguf_package: the module to import.
        extra: for gguf_package: the extra of htpfarm that installs it.
        source: where to get the weights, shown where they are missing; repo_id on the hub where it is not given.
        qkv_blocks: for CodeGen: blocks that the rows of its fused q, v, k come in: 8 in CodeGen2's own code, 4 in
            transformers'.
    """

    format: CheckpointFormat
    path: _Text | None = None
    package: _Text | None = None
    extra: _Text | None = None
    source: _Text | None = None
    qkv_blocks: _Count | None = None

    @model_validator(mode="after")
    def _fits_format(self) -> CheckpointSection:
        packaged = self.format == "gguf_package"
        if packaged and self.package is None:
            raise ValueError(f"format {self.format} needs the key package")
        for key in ("path",) if packaged else ("package", "extra"):
            if getattr(self, key) is not None:
                raise ValueError(f"format {self.format} has no key {key}")
        return self


class TokenizerSection(Section):
    """`tokenizer`: without `path` it is the one that lies with the weights, or that a GGUF file carries.

    Attributes:
        kind: of the file: a SentencePiece .model (or llama2.c's .bin of one), or Hugging Face's tokenizer.json.
        path: the file.
    """

    kind: Literal["sentencepiece", "huggingface"]
    path: _Text | None = None


class Needs(Section):
    """`needs`: what upstream's recipe for this model asks of the HTP.

    Attributes:
        lpbq: weights quantised by blocks.
        kv_bits: width of the KV cache.
        masked_softmax: masks by QNN's masked softmax.
        r3: SpinQuant's R3, a Hadamard op.
    """

    lpbq: bool = False
    kv_bits: Literal[8, 16] = 8
    masked_softmax: bool = False
    r3: bool = False


class LengthsSection(Section):
    """`lengths`: sizes that are compiled into a `.pte`, in tokens.

    Attributes:
        max_seq_len: the context: prompt plus output.
        prefill_ar_len: tokens that one prefill step takes.
        ngram: N of lookahead decoding.
        window: W of lookahead decoding.
        gcap: G of lookahead decoding.
    """

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

    Attributes:
        text: the text file.
        tokens: how many in all.
        kv_tokens: how many with the kv graph, which takes a step for each; all of them unless given.
    """

    text: _Text
    tokens: _Count
    kv_tokens: _Count | None = None


class CalibrationSection(Section):
    """`calibration`: text that quantisation ranges are taken from, and how many samples of it.

    A model without it is calibrated with its prompts, unless the command line names something else.

    Attributes:
        text: the text file.
        samples: how many samples to take.
    """

    text: _Text
    samples: _Count


class Bounds(Section):
    """`bounds`: what a phone is held to.

    Attributes:
        phone_vs_qdq_ppl: how much higher the phone's perplexity may be than QDQ's, as a fraction of it.
        prefill_vs_kv_ppl: how much higher the prefill graph's than the kv graph's.
        qdq_vs_fp_ppl: how much higher QDQ's than the float model's.
    """

    phone_vs_qdq_ppl: float = Field(default=0.01, gt=0)
    prefill_vs_kv_ppl: float = Field(default=0.01, gt=0)
    qdq_vs_fp_ppl: float = Field(default=0.10, gt=0)


class DecodeSpeed(Section):
    """Tokens a second that decoding reaches at least on a phone, by chipset."""

    SM8650: float | None = Field(default=None, gt=0)
    SM8750: float | None = Field(default=None, gt=0)


class Published(Section):
    """`published`: what a public source gives for the whole model on phones; its file names the source.

    Attributes:
        decode_tok_s: tokens a second, in kv mode with a context of 1,024.
        wikitext_ppl: word perplexity of wikitext (lm-eval's, one document) at most.
        sqnr_db: SQNR of the phone's logits against the float model's at least.
        pte_bytes: size of the kv program at most.
    """

    decode_tok_s: DecodeSpeed | None = None
    wikitext_ppl: float | None = Field(default=None, gt=0)
    sqnr_db: float | None = None
    pte_bytes: _Count | None = None


class HostNeed(Section):
    """What compiling one mode is expected to take.

    Attributes:
        memory_gb: resident memory and swap.
        hours: wall-clock time.
    """

    memory_gb: float = Field(gt=0)
    hours: float = Field(gt=0)


class Host(Section):
    """`host`: what compiling on this computer is expected to take, before the preflight has measured any.

    Attributes:
        kv: in kv mode.
        hybrid: in hybrid and lookahead mode.
    """

    kv: HostNeed
    hybrid: HostNeed


class ModelFile(Section):
    """One model's YAML file. Paths are relative to the file's folder (or absolute, for a checkpoint of your own).

    Attributes:
        name: as the file's, or its folder's.
        title: for people.
        decoder: upstream's key of the model: `--decoder_model` of its llama.py, which chooses recipe and chat template.
        repo_id: on the Hugging Face hub.
        license: of the weights.
        params: the architecture.
        checkpoint: where the weights are.
        tokenizer: how text becomes tokens.
        instruct: whether prompts go through the chat template.
        system_prompt: opens every chat.
        recipe: how the model is quantised; upstream's recipe where it is not given.
        needs: what upstream's recipe asks of the HTP.
        modes: in which it is compiled and run.
        lengths: sizes that are compiled in.
        shards: parts that upstream is asked to cut the model into (`num_sharding`).
        eval: held-out text.
        calibration: text that quantisation ranges are taken from.
        prompts: what is generated from.
        max_new_tokens: tokens to generate; less than lengths.max_seq_len.
        bounds: what a phone is held to.
        published: what a public source gives.
        host: what compiling is expected to take.
    """

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
    published: Published | None = None
    host: Host | None = None
