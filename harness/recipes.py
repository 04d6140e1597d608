"""Quantisation recipes as facts: what a model's YAML may ask for, ready-made ones, what an architecture refuses.

`harness.build.recipe` makes them into upstream's quantiser, `harness.build.spinquant` rotates the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from harness.config import Problem, Section

if TYPE_CHECKING:
    from harness.model_file import Params

UPSTREAM = "upstream"
"""The recipe that ExecuTorch itself uses for the model's decoder."""
BLOCK_SIZE = 32
"""Input channels that share a scale under LPBQ where no block_size is given: upstream's most frequent one."""

_NAME = r"^[a-z0-9_]+$"
Weights = Literal["16a4w", "16a8w", "lpbq"]
"""16-bit activations with 4- or 8-bit weights, a scale an output channel; lpbq: 4-bit weights, a scale a block."""


class LayerException(Section):
    """An item of `exceptions`: linear layers whose weights are quantised otherwise than the rest (mixed precision).

    Attributes:
        weights: how they are quantised.
        block_size: for lpbq: input channels that share a scale.
        names: shell patterns over the names that the checkpoint has in Meta's naming, without `.weight`:
            `layers.*.feed_forward.w2`, `layers.[0-3].*`, `output`. None: every linear layer of `layers`.
        layers: numbers of decoder layers, from 0. None: all that `names` fit.
    """

    weights: Weights
    block_size: int | None = Field(default=None, gt=0)
    names: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False, min_length=1)] | None = None
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)] | None = None

    @model_validator(mode="after")
    def _says_which(self) -> LayerException:
        if self.names is None and self.layers is None:
            raise ValueError("needs names, layers or both: which layers it is about")
        if self.block_size is not None and self.weights != "lpbq":
            raise ValueError("block_size goes with weights: lpbq only")
        return self


class SpinQuant(Section):
    """`spinquant`: rotations that leave the float model as it is and take the outliers out of what is quantised.

    Liu et al., "SpinQuant: LLM quantization with learned rotations", arXiv 2405.16406; here with the randomised
    Hadamard matrices that the paper starts from, not learned ones.

    Attributes:
        r1: rotates the residual stream; folded into the weights.
        r2: rotates each head's values; folded into the weights.
        r3: rotates queries and keys after RoPE, with a Hadamard op in the graph. None: as upstream has it.
        seed: of the random signs.
    """

    r1: bool = False
    r2: bool = False
    r3: bool | None = None
    seed: int = Field(default=0, ge=0, lt=2**31)


class Recipe(Section):
    """`recipe`: how the model is quantised; what is not given is as upstream has it for the model's decoder.

    In YAML a mapping of these keys, or the name of a ready-made recipe: `recipe: 16a4w_kv8`.

    Attributes:
        name: stands in cell ids and reports.
        weights: of all linear layers but the output layer, which gets 16a8w then.
        block_size: for lpbq: input channels that share a scale; 32 where it is not given.
        kv_bits: width of the KV cache.
        exceptions: layers that differ; where two fit a layer, the last one holds.
        seq_mse_candidates: steps of the search for each weight's scale that disturbs its layer's output least, as
            upstream's SeqMSE does it: twice as many trials a layer. 0: the scale of the largest weight.
        masked_softmax: masks by QNN's masked softmax instead of adding the mask.
        spinquant: rotations.
    """

    name: str = Field(default=UPSTREAM, pattern=_NAME)
    weights: Weights | None = None
    block_size: int | None = Field(default=None, gt=0)
    kv_bits: Literal[8, 16] | None = None
    exceptions: Annotated[tuple[LayerException, ...], Field(strict=False)] = ()
    seq_mse_candidates: int | None = Field(default=None, ge=0)
    masked_softmax: bool | None = None
    spinquant: SpinQuant = SpinQuant()

    @model_validator(mode="before")
    @classmethod
    def _ready_made(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in READY:
            raise ValueError(f"no recipe {value!r} is ready-made; there are: {', '.join(READY)}")
        return {"name": value, **READY[value]}

    @model_validator(mode="after")
    def _named_when_changed(self) -> Recipe:
        # A report that says "upstream" must be comparable with upstream's own numbers, and one that says "16a4w" with
        # every other that does.
        if self.block_size is not None and self.weights != "lpbq":
            raise ValueError("block_size goes with weights: lpbq only")
        changed = sorted(self.changes)
        if changed and self.name == UPSTREAM:
            raise ValueError(f"{', '.join(changed)} changes the upstream recipe: give it a name of its own")
        if self.name in READY and self.changes != READY[self.name]:
            raise ValueError(f"{self.name} is a ready-made recipe: recipe: {self.name}, or give yours another name")
        if not changed and self.name != UPSTREAM:
            raise ValueError(f"{self.name} changes nothing of the upstream recipe; ready-made are {', '.join(READY)}")
        return self

    @property
    def changes(self) -> dict[str, Any]:
        """What it says beside its name, as plain data."""
        return self.model_dump(exclude={"name"}, exclude_defaults=True)

    @property
    def replaces_quantiser(self) -> bool:
        """Whether upstream's own quantisation recipe cannot be taken as it is."""
        return self.weights is not None or self.kv_bits is not None or bool(self.exceptions)

    def asks_lpbq(self, upstream: bool) -> bool:
        """Whether any layer is quantised by blocks, given whether upstream's recipe does it."""
        blocks = self.weights == "lpbq" if self.weights else upstream
        return blocks or any(exception.weights == "lpbq" for exception in self.exceptions)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """For editors: the mapping, or a ready-made recipe's name."""
        mapping = handler(schema)
        return {"anyOf": [{"enum": list(READY), "type": "string"}, mapping]}


_SPIN = {"r1": True, "r2": True}
_DOWN = ("*.feed_forward.w2", "*.feed_forward.down_proj", "*.feed_forward.fc_out")
_MIXED = ({"weights": "16a8w", "names": ("*.attention.wv", *_DOWN)},)

READY: dict[str, dict[str, Any]] = {
    UPSTREAM: {},
    "16a4w": {"weights": "16a4w"},
    "16a8w": {"weights": "16a8w"},
    "lpbq16": {"weights": "lpbq", "block_size": 16},
    "lpbq32": {"weights": "lpbq", "block_size": 32},
    "lpbq64": {"weights": "lpbq", "block_size": 64},
    # For HTPs before V73, in the order in which upstream's README advises to try them.
    "16a4w_kv8": {"weights": "16a4w", "kv_bits": 8},
    "16a4w_kv8_spin": {"weights": "16a4w", "kv_bits": 8, "spinquant": _SPIN},
    "16a4w_kv8_mixed": {"weights": "16a4w", "kv_bits": 8, "exceptions": _MIXED},
    "16a4w_kv8_spin_mixed": {"weights": "16a4w", "kv_bits": 8, "exceptions": _MIXED, "spinquant": _SPIN},
    "16a8w_kv8": {"weights": "16a8w", "kv_bits": 8},
}
"""Ready-made recipes that any row can take, by name: what they say beside it. `mixed`: 8-bit weights where values and
the feed-forward's results come from, which upstream's own recipes find to be the sensitive layers."""


def ready(name: str) -> Recipe:
    """A ready-made recipe.

    Raises:
        pydantic.ValidationError: there is none of that name.
    """
    return Recipe.model_validate(name)


def linear_names(params: Params) -> tuple[str, ...]:
    """Names of all linear layers, as in the checkpoint in Meta's naming, without `.weight`.

    The feed-forward's parts as in upstream's model/feed_forward.py.
    """
    parts = {"CodeGenModel": ("fc_in", "fc_out"), "GlmForCausalLM": ("gate_up_proj", "down_proj")}
    forward = parts.get(str(params.model_args().get("model_architecture")), ("w1", "w2", "w3"))
    layer = [*(f"attention.{part}" for part in ("wq", "wk", "wv", "wo")), *(f"feed_forward.{part}" for part in forward)]
    return (*(f"layers.{number}.{part}" for number in range(params.n_layers) for part in layer), "output")


def matching(exception: LayerException, params: Params) -> tuple[str, ...]:
    """The linear layers that an exception is about, named as in `linear_names`."""
    return tuple(
        name
        for name in linear_names(params)
        if (exception.layers is None or _number(name) in exception.layers)
        and (exception.names is None or any(fnmatchcase(name, pattern) for pattern in exception.names))
    )


def _number(name: str) -> int | None:
    first, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if first == "layers" else None


def recipe_problems(recipe: Recipe, params: Params) -> list[Problem]:
    """What a recipe asks of an architecture that it does not have; places as in a model's file."""
    return [
        Problem(("recipe", *place), message)
        for place, message in (*_layer_problems(recipe, params), *_rotation_problems(recipe, params))
    ]


_Found = Iterator[tuple[tuple[str | int, ...], str]]


def _layer_problems(recipe: Recipe, params: Params) -> _Found:
    if recipe.weights == "lpbq":
        excepted = {name for exception in recipe.exceptions for name in matching(exception, params)}
        names = [name for name in linear_names(params) if name != "output" and name not in excepted]
        if problem := _block_problem(recipe.block_size or BLOCK_SIZE, names, params):
            yield ("block_size",) if recipe.block_size else ("weights",), problem
    for index, exception in enumerate(recipe.exceptions):
        place = ("exceptions", index)
        if beyond := [number for number in exception.layers or () if number >= params.n_layers]:
            yield (*place, "layers"), f"there is no layer {beyond[0]}: there are {params.n_layers}, numbered from 0"
            continue
        found = matching(exception, params)
        if not found:
            some = ", ".join(dict.fromkeys(_pattern(name) for name in linear_names(params)))
            yield (*place, "names"), f"no layer fits; there are {some}"
        elif exception.weights == "lpbq" and (
            problem := _block_problem(exception.block_size or BLOCK_SIZE, found, params)
        ):
            yield (*place, "block_size"), problem


def _pattern(name: str) -> str:
    number = _number(name)
    return name if number is None else name.replace(f"layers.{number}.", "layers.*.", 1)


def _block_problem(size: int, names: tuple[str, ...] | list[str], params: Params) -> str:
    """Why blocks of a size do not fit the input channels of one of the layers; else empty."""
    heads = params.n_heads * (params.head_dim or params.dim // params.n_heads)
    widths = {"wo": heads, **dict.fromkeys(("w2", "down_proj", "fc_out"), params.hidden_dim)}
    for name in names:
        width = widths.get(name.rpartition(".")[2], params.dim)
        if width is not None and width % size:
            return f"blocks of {size} do not divide the {width} input channels of {_pattern(name)}"
    return ""


def _rotation_problems(recipe: Recipe, params: Params) -> _Found:
    head_dim = params.head_dim or params.dim // params.n_heads
    if recipe.spinquant.r1 and (reason := r1_refusal(params)):
        yield ("spinquant", "r1"), reason
    if recipe.spinquant.r3 and head_dim & (head_dim - 1):
        yield ("spinquant", "r3"), f"upstream's R3 needs heads of a power of two, not of {head_dim} channels"


def r1_refusal(params: Params) -> str:
    """Why an architecture's residual stream cannot be rotated; empty where it can.

    What passes through a norm before it is added back must be the same after a rotation, up to that rotation. RMSNorm
    without weights is; its weights are folded into what reads the result, so something linear must follow.
    """
    args = params.model_args()
    if args.get("norm_type", "rmsnorm") == "layernorm":
        return "R1 needs RMSNorm: LayerNorm subtracts the mean, which a rotation does not keep"
    if post := [key for key in ("post_attention_norm", "post_ffn_norm") if args.get(key)]:
        return (
            f"R1 cannot pass {' and '.join(post)}: the weights of a norm between a block and the residual stream "
            "scale single channels and cannot be folded into a linear layer"
        )
    return ""
