"""What the kernels must compute, in float64 and as plainly as possible."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sim.validation.kernels.kv_cache import KvCache


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """||found - exact|| / ||exact||, in float64; infinite when anything found is not finite."""
    found, exact = found.double().cpu(), exact.double().cpu()
    if not torch.isfinite(found).all():
        return float("inf")
    return float((found - exact).norm() / exact.norm().clamp_min(1e-300))


def stored(cache: KvCache, which: str, blocks: Sequence[int], tokens: int) -> torch.Tensor:
    """Keys or values of the first tokens in a list of blocks, [token, head, element]: what the codes stand for."""
    codes, scales = (
        getattr(cache, name)[list(blocks)].flatten(0, 1)[:tokens] for name in (f"{which}s", f"{which}_scales")
    )
    if cache.format.packed:
        codes = torch.cat([(codes & 15).to(torch.int8) - 8, (codes >> 4).to(torch.int8) - 8], dim=-1)
    if not cache.format.scaled:
        return codes.double()
    return codes.double() * scales.double().repeat_interleave(cache.head_dim // 2, dim=-1)


def store(cache: KvCache, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Put the vectors of tokens 0, 1, ... into slots 0, 1, ..., quantised as the format says."""
    for vectors, codes, scales in (
        (keys, cache.keys, cache.key_scales),
        (values, cache.values, cache.value_scales),
    ):
        flat, tokens = codes.flatten(0, 1), vectors.shape[0]
        if not cache.format.scaled:
            flat[:tokens] = vectors.to(codes.dtype)
            continue
        halves = vectors.float().unflatten(-1, (2, -1))
        scale = (halves.abs().amax(-1) / cache.format.largest_code).half()
        scales.flatten(0, 1)[:tokens] = scale
        code = (
            (halves / scale.float()[..., None] + 0.5)
            .floor()
            .clamp(-cache.format.largest_code, cache.format.largest_code)
        )
        low, high = code.unbind(-2)
        if cache.format.packed:
            flat[:tokens] = (low + 8).to(torch.uint8) | ((high + 8).to(torch.uint8) << 4)
        else:
            flat[:tokens] = torch.cat([low, high], -1).to(torch.int8)


def attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, cached: int | None) -> torch.Tensor:
    """softmax(Q K^T / sqrt(d)) V for query[token, head, element], KV heads serving equal groups of query heads.

    `cached` tokens come before the queries, which are then causal among themselves; None: every query sees all keys.
    """
    group = query.shape[1] // keys.shape[1]
    keys, values = (x.double().repeat_interleave(group, dim=1) for x in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", query.double(), keys) * query.shape[-1] ** -0.5
    if cached is not None:
        sees = torch.arange(keys.shape[0])[None, :] <= cached + torch.arange(query.shape[0])[:, None]
        scores = scores.masked_fill(~sees.to(scores.device), float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
