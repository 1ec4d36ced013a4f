"""Prefill attention by torch's scaled_dot_product_attention, back end by back end, and unfused."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def fused(backend: str, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A call of one back end on [batch, heads, tokens, elements], causal; more keys than queries are a cached prefix.

    Raises RuntimeError, when it is called, where the back end cannot do it.
    """
    grouped = query.shape[1] != keys.shape[1]
    new, total = query.shape[2], keys.shape[2]
    if new == total:
        options = {"is_causal": True}
    else:
        options = {"attn_mask": causal_lower_right(new, total)}

    def call() -> torch.Tensor:
        with sdpa_kernel(BACKENDS[backend]):
            return scaled_dot_product_attention(query, keys, values, enable_gqa=grouped, **options)

    return call


def unfused(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Scores, mask, softmax and weighted sum as separate kernels, the score matrix in memory."""
    new, total = query.shape[2], keys.shape[2]
    group = query.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
    scores = (query @ keys.transpose(-1, -2)) * query.shape[-1] ** -0.5
    future = torch.ones((new, total), dtype=torch.bool, device=query.device).triu(total - new + 1)
    return scores.masked_fill_(future, float("-inf")).softmax(-1) @ values
