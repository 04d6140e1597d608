"""Upstream's name of a model → its `--decoder_model_version`, which chooses the chat template and stop tokens.

Copied as data from `DECODER_MODEL_VERSION` (ExecuTorch 1.5.1, oss_scripts/llama/decoder_constants.py), so that a plan
needs no torch; tests/host/test_text.py holds the two to be equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

VERSIONS: Mapping[str, str] = MappingProxyType(
    {
        "stories260k": "llama2",
        "stories110m": "llama2",
        "llama3_2-1b_instruct": "llama3",
        "llama3_2-3b_instruct": "llama3",
        "codegen2_1b": "codegen",
        "gemma-2b": "gemma",
        "gemma2-2b": "gemma2",
        "gemma3-1b": "gemma3",
        "gemma4-e2b": "gemma4",
        "glm-1_5b": "glm",
        "granite_3_3-2b_instruct": "granite",
        "granite_speech_3_3-2b": "granite_speech",
        "internvl3_1b": "internvl3",
        "phi_4_mini": "phi_4_mini",
        "qwen2_5-0_5b": "qwen2_5",
        "qwen2_5-1_5b": "qwen2_5",
        "qwen3-0_6b": "qwen3",
        "qwen3-1_7b": "qwen3",
        "smollm2_135m": "smollm2_135m",
        "smollm3-3b": "smollm3",
        "smolvlm_500m_instruct": "smolvlm",
    }
)
