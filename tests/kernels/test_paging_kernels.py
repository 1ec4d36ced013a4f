"""Kernels that move KV blocks, against plain indexing."""

from __future__ import annotations

import pytest
import torch

from sim.validation.kernels import paging
from sim.validation.kernels.kv_cache import FORMATS, KvCache, allocate
from sim.validation.kernels.reference import relative_error, store, stored

HEADS, HEAD_DIM, BLOCK = 3, 32, 8
ROUNDING = {"bf16": 4e-3, "fp16": 5e-4, "fp8": 9e-2, "int8": 6e-3, "int4": 0.12}
"""Relative error of the stored values of normal vectors: half a step of the format, less for most elements
(a whole step for fp8: the interpreter truncates, the GPU rounds)."""


def _empty(kv_format: str, blocks: int = 4) -> KvCache:
    cache = allocate(FORMATS[kv_format], blocks, BLOCK, HEADS, HEAD_DIM, "cpu")
    for part in cache.parts:
        part.zero_()
    return cache


def _random_blocks(kv_format: str, blocks: int) -> KvCache:
    cache = _empty(kv_format, blocks)
    store(cache, *(torch.randn(blocks * BLOCK, HEADS, HEAD_DIM) for _ in range(2)))
    return cache


@pytest.mark.parametrize("kv_format", list(ROUNDING))
def test_new_tokens_are_stored_within_the_rounding_of_the_format(kv_format: str) -> None:
    """Each token lands in its slot; a slot of -1 is skipped; every other slot stays empty."""
    torch.manual_seed(1)
    cache, slots = _empty(kv_format), [5, 30, -1, 0]
    keys, values = (torch.randn(4, HEADS, HEAD_DIM).bfloat16() for _ in range(2))
    paging.write(keys, values, cache, torch.tensor(slots))
    for which, vectors in (("key", keys), ("value", values)):
        found = stored(cache, which, range(4), 4 * BLOCK)
        used = [slot for slot in slots if slot >= 0]
        assert relative_error(found[used], vectors[[0, 1, 3]]) < ROUNDING[kv_format]
    part = cache.keys.flatten(0, 1)
    assert not part[[s for s in range(32) if s not in slots]].float().any()


@pytest.mark.parametrize("kv_format", ["fp16", "int8", "int4"])
def test_codes_equal_those_of_plain_quantisation(kv_format: str) -> None:
    """The kernel rounds to the same codes and scales as a few lines of torch."""
    torch.manual_seed(2)
    fast, plain = _empty(kv_format), _empty(kv_format)
    keys, values = (torch.randn(6, HEADS, HEAD_DIM) for _ in range(2))
    paging.write(keys, values, fast, torch.arange(6))
    store(plain, keys, values)
    for one, other in zip(fast.parts, plain.parts, strict=True):
        assert torch.equal(one.flatten(0, 1)[:6], other.flatten(0, 1)[:6])


@pytest.mark.parametrize("kv_format", ["bf16", "int4"])
def test_block_copies_move_whole_blocks(kv_format: str) -> None:
    """Copy-on-write within a cache: pairs are copied, scales with them, nothing else changes."""
    torch.manual_seed(3)
    cache = _random_blocks(kv_format, 6)
    before = [part.clone() for part in cache.parts]
    paging.copy_blocks(cache, cache, torch.tensor([0, 3]), torch.tensor([5, 2]))
    for part, old in zip(cache.parts, before, strict=True):
        assert torch.equal(part[[5, 2]], old[[0, 3]])
        assert torch.equal(part[[0, 1, 3, 4]], old[[0, 1, 3, 4]])


def test_gather_compacts_scattered_blocks() -> None:
    """Scattered blocks become consecutive ones of another cache."""
    torch.manual_seed(4)
    cache, compact = _random_blocks("fp16", 9), _empty("fp16", 3)
    paging.copy_blocks(cache, compact, torch.tensor([7, 1, 4]), torch.arange(3))
    assert torch.equal(compact.keys, cache.keys[[7, 1, 4]])


def test_swaps_bring_blocks_back() -> None:
    """Out to host blocks and in again, one by one or through a staging buffer, blocks are what they were."""
    torch.manual_seed(5)
    pool, host, back = torch.randn(8, 16), torch.zeros(8, 16), torch.zeros(8, 16)
    blocks = torch.tensor([6, 2, 3])
    paging.swap_out_batched(pool, host, blocks, torch.empty(3, 16))
    paging.swap_in_batched(host, back, blocks, torch.empty(3, 16))
    assert torch.equal(back[blocks], pool[blocks])
    assert not back[[0, 1, 4, 5, 7]].any()
    paging.swap_blockwise(pool, host, [(4, 7), (0, 5)])
    assert torch.equal(host[[7, 5]], pool[[4, 0]])
