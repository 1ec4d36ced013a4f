"""Large KV caches with random contents, made once and shared by all problems of one layout."""

from __future__ import annotations

import gc
from typing import Any

import torch

from sim.validation.kernels.kv_cache import KvCache, KvFormat, allocate

_MEMORY_SHARE = 0.45
_LEAST_BYTES = 1 << 29
_CHUNK_BLOCKS = 1 << 14
_SCALE = 0.02


class Pools:
    """The cache that was asked for last, grown where a problem needs more blocks."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._key: Any = None
        self._cache: KvCache | None = None

    def cache(self, form: KvFormat, block_tokens: int, kv_heads: int, head_dim: int, blocks: int) -> KvCache:
        """A filled cache of at least so many blocks. Raises RuntimeError when the device has no room for it."""
        key = (form.name, block_tokens, kv_heads, head_dim)
        if self._key == key and self._cache is not None and self._cache.num_blocks >= blocks:
            return self._cache
        self._key, self._cache = None, None
        gc.collect()
        block_bytes = 2 * block_tokens * kv_heads * head_dim * form.bytes_per_element(head_dim)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            room = torch.cuda.mem_get_info(self._device)[0] * _MEMORY_SHARE
            if blocks * block_bytes > room:
                raise RuntimeError(f"a cache of {blocks * block_bytes / 2**30:.0f} GiB does not fit")
            blocks = max(blocks, int(min(_LEAST_BYTES, room) // block_bytes))
        self._cache = allocate(form, blocks, block_tokens, kv_heads, head_dim, self._device)
        self._key = key
        _fill(self._cache)
        return self._cache

    def tables(self, cache: KvCache, contexts: list[int], count: int) -> list[torch.Tensor]:
        """Block tables of `count` batches of these contexts, blocks drawn at random; the batches share none."""
        needed = blocks_of(contexts, cache.block_tokens)
        order = torch.randperm(cache.num_blocks, device=self._device).int()
        spread = torch.zeros((count, len(contexts), max(needed)), dtype=torch.int32, device=self._device)
        widths = torch.tensor(needed, device=self._device)
        inside = torch.arange(max(needed), device=self._device)[None, :] < widths[:, None]
        total = sum(needed)
        for i in range(count):
            spread[i][inside] = order[i * total : (i + 1) * total]
        return list(spread)


def blocks_of(contexts: list[int], block_tokens: int) -> list[int]:
    """Blocks that each context fills, the last one in part."""
    return [-(-context // block_tokens) for context in contexts]


def _fill(cache: KvCache) -> None:
    for codes in (cache.keys, cache.values):
        for first in range(0, cache.num_blocks, _CHUNK_BLOCKS):
            part = codes[first : first + _CHUNK_BLOCKS]
            if codes.dtype == torch.uint8:
                part.random_(0, 256)
            elif codes.dtype == torch.int8:
                part.random_(-127, 128)
            else:
                part.copy_(torch.randn(part.shape, device=part.device, dtype=torch.bfloat16))
    for scales in (cache.key_scales, cache.value_scales):
        scales.fill_(_SCALE)
