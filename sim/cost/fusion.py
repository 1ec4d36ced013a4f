"""Element-wise operators, fused and one by one: the bytes and launches that fusing them saves.

Counts of the unfused forms follow transformers' `modeling_llama.py` (LlamaRMSNorm, apply_rotary_pos_emb, LlamaMLP), one
kernel per PyTorch operator; from memory. All sizes are bytes per token unless said otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

_NORM_KERNELS, _NORM_BYTES = 6, 36.0
"""To float32 (2 read, 4 written per element), square (4, 4), mean (4), scale (4, 4), back to 16 bit (4, 2), times the
weight (2, 2)."""
_ROPE_KERNELS, _ROPE_BYTES = 5, 20.0
"""Times the cosine (2, 2), negate one half (1, 1), join the halves (2, 2), times the sine (2, 2), add (4, 2)."""


class Traffic(NamedTuple):
    """An operator that only moves bytes: how often a step runs it, and what one run moves."""

    name: str
    calls: int
    token_bytes: float
    """Per token of the step."""


def norms(fusion: frozenset[str], count: int, row_bytes: float) -> list[Traffic]:
    """Residual add and RMSNorm: in one kernel each row is read twice and written twice."""
    if "norm" in fusion:
        return [Traffic("norm + residual", count, 4.0 * row_bytes)]
    elements = row_bytes / 2
    return [
        Traffic("residual", count, 3.0 * row_bytes),
        Traffic("norm", count * _NORM_KERNELS, _NORM_BYTES * elements / _NORM_KERNELS),
    ]


def activations(fusion: frozenset[str], count: int, width: int, *, gated: bool) -> list[Traffic]:
    """The activation of the MLP and, if it is gated, the product with the gate, `width` 16-bit elements wide."""
    fused = 2.0 * width * (3 if gated else 2)
    if not gated or "activation" in fusion:
        return [Traffic("activation", count, fused)]
    return [Traffic("activation", 2 * count, 2.0 * width * 5 / 2)]  # activate (1, 1), multiply (2, 1)


def rotaries(fusion: frozenset[str], count: int, width: int, cache_bytes: float) -> list[Traffic]:
    """Rotary embedding of queries and keys (`width` elements in all) and the write of keys and values to the cache."""
    if "rope" in fusion:
        return [Traffic("rotary + cache write", count, 4.0 * width + cache_bytes)]
    kernels = 2 * _ROPE_KERNELS  # queries and keys each
    return [
        Traffic("rotary", count * kernels, _ROPE_BYTES * width / kernels),
        Traffic("cache write", count, 2.0 * cache_bytes),
    ]
