"""llama.cpp's mixtures: K-quants give some matrices more bits than others (llama-quant.cpp, from memory)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sim.specs.architecture import FullAttention, ModelArchitecture
from sim.specs.number_formats import FORMATS, NumberFormat

_UNIFORM = ("gguf-q8_0", "gguf-q6_k", "gguf-q5_0", "gguf-q4_0")
MIXTURES = (*_UNIFORM, "gguf-q4_k_m", "gguf-q2_k")
_GROUPED = 4
"""Query heads per KV head from which the small V projection is given more bits."""


def mixture(name: str, architecture: ModelArchitecture) -> Mapping[str, NumberFormat] | None:
    """Role -> format for a GGUF file type, one of MIXTURES, `""` being the rest; None for any other name.

    Embedding and LM head are quantised too. Matrices that are fused here or differ by layer get the mean of their bits.
    """
    if name in _UNIFORM:
        form = FORMATS[name.removeprefix("gguf-")]
        return {"": form, "embed": form, "lm_head": max(form, FORMATS["q6_k"], key=lambda one: one.stored_bits)}
    value_share, grouped = _value_share(architecture)
    if name == "gguf-q4_k_m":  # use_more_bits: the first and last eighth of the layers and every third between
        value = _mean("q4_k", {"q6_k": 0.5 * value_share})
        return _mixed("q4_k", value, _mean("q4_k", {"q6_k": 0.5}), FORMATS["q4_k"])
    if name == "gguf-q2_k":
        value = _mean("q2_k", {"q4_k" if grouped else "q3_k": value_share})
        return _mixed("q2_k", value, FORMATS["q3_k"], FORMATS["q3_k"])
    return None


def _mixed(rest: str, qkv: NumberFormat, down: NumberFormat, out: NumberFormat) -> Mapping[str, NumberFormat]:
    base = FORMATS[rest]
    return {
        "": base, "embed": base, "lm_head": FORMATS["q6_k"], "qkv": qkv, "down": down, "expert_down": down, "o": out,
    }  # fmt: skip


def _mean(rest: str, others: Mapping[str, float]) -> NumberFormat:
    """A format whose bits are those of `rest` with shares of other formats in it."""
    bits = FORMATS[rest].stored_bits * (1 - sum(others.values()))
    bits += sum(FORMATS[name].stored_bits * share for name, share in others.items())
    return replace(FORMATS[rest], bits=bits, group_size=0, scale_bits=0, zero_bits=0)


def _value_share(architecture: ModelArchitecture) -> tuple[float, bool]:
    """The share of V in the fused QKV projection, and whether query heads share KV heads by four or more."""
    for group in architecture.layers:
        a = group.attention
        if isinstance(a, FullAttention):
            value = a.num_kv_heads * a.v_head_dim
            whole = (a.num_heads + a.num_kv_heads) * a.head_dim + value
            return value / whole, a.num_heads >= _GROUPED * a.num_kv_heads
    return 0.0, False
