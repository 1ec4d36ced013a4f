"""What the modelling files of Hugging Face model families fix in code rather than in config.json.

Number and kind of norms, biases that no key switches, whether the MLP is gated, and defaults of keys that a config.json
may leave out. About 25 families were looked up in `modeling_<family>.py` of transformers 5.x; the rest (Gemma 2 and 3,
OLMoE, MiMo, EXAONE 4, Qwen 2 and other older ones) are from memory. Parameter counts that equal published checkpoint
sizes to the byte (tests/golden/test_checkpoint_sizes.py) stand behind the common ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sim.specs.attention import QkNorm


@dataclass(frozen=True)
class Family:
    """Facts of one `model_type`; None means: read the key of the config.

    `norms` counts the hidden-size norms of a layer, `window_pattern` says that every so-manieth layer sees the whole
    context while the others see a window. `position_offset` is set for learned position tables: their extra rows.
    """

    norms: int = 2
    norm_bias: bool = False
    gated: bool | None = None
    qkv_bias: bool | None = None
    o_bias: bool | None = None
    mlp_bias: bool | None = None
    qk_norm: QkNorm = "none"
    output_gate: bool = False
    sinks: bool = False
    router_bias: bool = False
    tied: bool = False
    lm_head_bias: bool = False
    embedding_norm: bool = False
    position_offset: int | None = None
    window_pattern: int = 1
    window_needs_switch: bool = False
    shared_gate: bool = False


_LLAMA = Family()
_QWEN2 = Family(qkv_bias=True, o_bias=False, window_needs_switch=True)
_QWEN3 = Family(qk_norm="per_head", window_needs_switch=True)
_QWEN3_HYBRID = Family(qk_norm="per_head", output_gate=True, shared_gate=True)
_GPT2 = Family(norm_bias=True, gated=False, qkv_bias=True, o_bias=True, mlp_bias=True, tied=True, position_offset=0)
_GPT_J = Family(norms=1, norm_bias=True, gated=False, qkv_bias=False, o_bias=False, mlp_bias=True, lm_head_bias=True)
_GEMMA2 = Family(norms=4, gated=True, tied=True, window_pattern=2)
_NO_O_BIAS = Family(o_bias=False)

FAMILIES: Mapping[str, Family] = {
    "bloom": replace(_GPT2, position_offset=None, embedding_norm=True),
    "codegen": _GPT_J,
    "cohere": Family(norms=1, gated=True, tied=True),
    "cohere2": Family(norms=1, gated=True, tied=True, window_pattern=4),
    "exaone4": replace(_QWEN3, window_needs_switch=False, window_pattern=4),
    "falcon": Family(norm_bias=True, gated=False, tied=True),
    "gemma": Family(gated=True, tied=True),
    "gemma2": _GEMMA2,
    "gemma3": replace(_GEMMA2, qk_norm="per_head", window_pattern=6),
    "gemma4": replace(_GEMMA2, qk_norm="per_head", window_pattern=6),
    "glm4_moe": _NO_O_BIAS,
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neox": Family(norm_bias=True, gated=False, qkv_bias=True, o_bias=True, mlp_bias=True),
    "gpt_oss": Family(
        gated=True, qkv_bias=True, o_bias=True, mlp_bias=True, router_bias=True, sinks=True, window_pattern=2
    ),
    "gptj": _GPT_J,
    "mimo": replace(_QWEN2, qkv_bias=None),
    "mpt": Family(gated=False, tied=True),
    "nemotron": Family(norm_bias=True, gated=False),
    "nemotron_h": Family(norms=1, gated=False),
    "olmo2": Family(qk_norm="per_layer"),
    "olmoe": Family(qk_norm="per_layer"),
    "opt": replace(_GPT2, position_offset=2),
    "phi": replace(_GPT_J, qkv_bias=True, o_bias=True),
    "qwen2": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen2_moe": replace(_QWEN2, shared_gate=True),
    "qwen2_vl": _QWEN2,
    "qwen3": _QWEN3,
    "qwen3_5": _QWEN3_HYBRID,
    "qwen3_5_moe": _QWEN3_HYBRID,
    "qwen3_moe": _QWEN3,
    "qwen3_next": _QWEN3_HYBRID,
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "stablelm": Family(norm_bias=True, gated=True, o_bias=False),
    "starcoder2": Family(norm_bias=True, gated=False, tied=True),
}


def family_of(model_type: str) -> Family:
    """The family of a `model_type`; an unknown one is taken as Llama-like with everything read from its keys."""
    return FAMILIES.get(model_type.removesuffix("_text"), _LLAMA)
