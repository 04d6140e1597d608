"""Chat templates and stop tokens of each `--decoder_model_version`, as data.

They are qnn_llama_runner's, oddities included (the system text inside gemma's model turn, after qwen3's user turn,
never closed in smollm3's): what a model says depends on them, and the harness must say what the runner says. Source:
`get_formatted_prompt` in ExecuTorch's `examples/qualcomm/oss_scripts/llama/qnn_llama_runner.cpp` (main, cff6f4dd) and
`Runner::load` in `runner/runner.cpp`. BOS is added by the tokenizer, on the first turn only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from harness.errors import ConfigError
from harness.soc import suggestion

MULTIMODAL = ("granite_speech", "smolvlm", "internvl3")
"""Versions that llama.py knows but only qnn_multimodal_runner runs."""


@dataclass(frozen=True)
class Template:
    """How a prompt becomes a turn.

    Attributes:
        lead: opens every prompt.
        user: what stands before and after the user's text.
        system: what stands before and after the system's text.
        system_at: where the system part goes: before the user's, after it, after `tail`, or nowhere (ignored).
        tail: what the model continues.
        stop: the piece that ends generation beside the tokenizer's EOS.
    """

    user: tuple[str, str] = ("", "")
    system: tuple[str, str] = ("", "")
    system_at: Literal["before", "after", "end", "nowhere"] = "nowhere"
    tail: str = ""
    lead: str = ""
    stop: str | None = None


_LLAMA3_USER = ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>")
_GEMMA_USER = ("<start_of_turn>user\n", "<end_of_turn>\n")
_IM_USER = ("<|im_start|>user\n", "<|im_end|>\n")
_IM_SYSTEM = ("<|im_start|>system\n", "<|im_end|>\n")
_GEMMA = Template(_GEMMA_USER, ("", "<end_of_turn>\n"), "end", tail="<start_of_turn>model\n", stop="<end_of_turn>")

TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        "llama2": Template(),
        "qwen2_5": Template(),
        "codegen": Template(stop="<|endoftext|>"),
        "llama3": Template(
            _LLAMA3_USER,
            ("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
            "before",
            tail="<|start_header_id|>assistant<|end_header_id|>\n\n",
            stop="<|eot_id|>",
        ),
        "gemma": _GEMMA,
        "gemma2": Template(_GEMMA_USER, tail="<start_of_turn>model\n", stop="<end_of_turn>"),
        "gemma3": _GEMMA,
        "gemma4": Template(
            ("<|turn>user\n", "<turn|>\n"),
            ("<|turn>system\n", "<turn|>\n"),
            "before",
            tail="<|turn>model\n",
            lead="<bos>",
            stop="<turn|>",
        ),
        "granite": Template(
            ("<|start_of_role|>user<|end_of_role|>", "<|end_of_text|>\n"),
            ("<|start_of_role|>system<|end_of_role|>", "<|end_of_text|>\n"),
            "before",
            tail="<|start_of_role|>assistant<|end_of_role|>",
        ),
        "phi_4_mini": Template(
            ("<|user|>", "<|end|>"), ("<|system|>", "<|end|>"), "before", tail="<|assistant|>", stop="<|end|>"
        ),
        "qwen3": Template(_IM_USER, _IM_SYSTEM, "after", tail="<|im_start|>assistant", stop="<|im_end|>"),
        "smollm2_135m": Template(_IM_USER, _IM_SYSTEM, "before", tail="<|im_start|>assistant\n\n", stop="<|im_end|>"),
        "smollm3": Template(
            _IM_USER, ("<|im_start|>system\n", "\n\n"), "before", tail="<|im_start|>assistant\n", stop="<|im_end|>"
        ),
        "glm": Template(("<|user|>\n", ""), ("<|system|>\n", ""), "after", tail="<|assistant|>\n", stop="<|user|>"),
    }
)


def find_template(version: str) -> Template:
    """The template of a `--decoder_model_version`.

    Raises:
        ConfigError: unknown, or a multimodal one.
    """
    if template := TEMPLATES.get(version):
        return template
    if version in MULTIMODAL:
        raise ConfigError(
            f"{version} is multimodal: qnn_multimodal_runner runs it, not qnn_llama_runner",
            where="--decoder_model_version",
        )
    raise ConfigError(
        f"Unsupported Decoder Model {version!r}",
        where="--decoder_model_version",
        remedy=suggestion(version, TEMPLATES),
    )


def format_prompt(template: Template, prompt: str, system: str = "") -> str:
    """One turn's text; `system` is left out when empty. Pure."""
    said = f"{template.system[0]}{system}{template.system[1]}" if system else ""
    parts = {
        "before": (said, _user(template, prompt), template.tail),
        "after": (_user(template, prompt), said, template.tail),
        "end": (_user(template, prompt), template.tail, said),
        "nowhere": (_user(template, prompt), template.tail),
    }[template.system_at]
    return template.lead + "".join(parts)


def _user(template: Template, prompt: str) -> str:
    return f"{template.user[0]}{prompt}{template.user[1]}"
