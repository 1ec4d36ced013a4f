"""Paged attention kernels against float64."""

from __future__ import annotations

import pytest
import torch

from sim.validation.kernels import attention
from sim.validation.kernels.kv_cache import FORMATS, KvCache, allocate
from sim.validation.kernels.reference import attention as exact_attention
from sim.validation.kernels.reference import relative_error, store, stored

HEAD_DIM, KV_HEADS, GROUP = 32, 2, 3
BOUND = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype)


def _filled(kv_format: str, block_tokens: int, tokens: int, dtype: torch.dtype) -> KvCache:
    """A cache of shuffled slots: the last block is never written and holds NaN where the format has it."""
    blocks = -(-tokens // block_tokens) + 1
    cache = allocate(FORMATS[kv_format], blocks, block_tokens, KV_HEADS, HEAD_DIM, "cpu")
    if cache.keys.is_floating_point():
        for part in (cache.keys, cache.values):
            part.fill_(float("nan"))
    keys, values = (_random(tokens, KV_HEADS, HEAD_DIM, dtype=dtype) for _ in range(2))
    store(cache, keys, values)
    return cache


def _units(contexts: list[int], tokens: list[int], block_tokens: int, pool: int) -> attention.Units:
    """Units whose blocks are dealt out of the pool in a shuffled order."""
    needed = [-(-context // block_tokens) for context in contexts]
    assert sum(needed) <= pool
    order = torch.randperm(pool).tolist()
    tables = torch.zeros((len(contexts), max(needed)), dtype=torch.int32)
    for unit, count in enumerate(needed):
        tables[unit, :count] = torch.tensor([order.pop() for _ in range(count)], dtype=torch.int32)
    starts = torch.tensor([0, *torch.tensor(tokens).cumsum(0).tolist()], dtype=torch.int32)
    return attention.Units(starts, tables, torch.tensor(contexts, dtype=torch.int32), max(tokens), max(contexts))


def _context(cache: KvCache, units: attention.Units, unit: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = int(units.contexts[unit])
    blocks = units.tables[unit, : -(-tokens // cache.block_tokens)].tolist()
    keys, values = (stored(cache, which, blocks, tokens) for which in ("key", "value"))
    return keys, values


@pytest.mark.parametrize("kv_format", ["bf16", "fp16", "fp8", "int8", "int4"])
@pytest.mark.parametrize("block_tokens", [8, 16, 32])
def test_decode_reads_every_format_and_block_size(kv_format: str, block_tokens: int) -> None:
    """Unequal contexts, one of a single token, are attended to exactly as their stored values say."""
    torch.manual_seed(1)
    dtype = torch.float16 if kv_format == "fp16" else torch.bfloat16
    contexts = [1, 75, 37]
    cache = _filled(kv_format, block_tokens, 192, dtype)
    units = _units(contexts, [1] * 3, block_tokens, 192 // block_tokens)
    query = _random(3, KV_HEADS * GROUP, HEAD_DIM, dtype=dtype)
    out = torch.full_like(query, float("nan"))
    attention.decode(query, cache, units, out)
    for unit in range(3):
        exact = exact_attention(query[unit : unit + 1], *_context(cache, units, unit), None)
        assert relative_error(out[unit : unit + 1], exact) < BOUND[dtype]


@pytest.mark.parametrize("splits", [1, 2, 5])
def test_splits_merge_to_the_same_attention(splits: int) -> None:
    """A context cut into parts, some of them empty, gives what the whole gives."""
    torch.manual_seed(2)
    cache = _filled("fp32", 16, 512, torch.float32)
    units = _units([200, 3], [1, 1], 16, 32)
    query, out = _random(2, KV_HEADS * GROUP, HEAD_DIM), torch.full((2, KV_HEADS * GROUP, HEAD_DIM), float("nan"))
    attention.decode(query, cache, units, out, splits=splits)
    for unit in range(2):
        exact = exact_attention(query[unit : unit + 1], *_context(cache, units, unit), None)
        assert relative_error(out[unit : unit + 1], exact) < 1e-5


def test_contiguous_contexts_need_no_table() -> None:
    """Without paging, sequence i reads the blocks from i times the width of the table."""
    torch.manual_seed(3)
    cache = _filled("fp32", 16, 128, torch.float32)
    tables = torch.arange(8, dtype=torch.int32).reshape(2, 4)
    units = attention.Units(torch.tensor([0, 1, 2]), tables, torch.tensor([60, 33]), 1, 60)
    query = _random(2, KV_HEADS * GROUP, HEAD_DIM)
    paged, plain = torch.empty_like(query), torch.empty_like(query)
    attention.decode(query, cache, units, paged)
    wrong = attention.Units(units.starts, torch.zeros_like(tables), units.contexts, 1, 60)
    attention.decode(query, cache, wrong, plain, paged=False)
    assert torch.equal(paged, plain)


def test_padded_sequences_change_nothing() -> None:
    """Units without tokens, as a captured graph has them, leave the others as they are."""
    torch.manual_seed(4)
    cache = _filled("fp32", 16, 128, torch.float32)
    units = _units([50, 20], [1, 1], 16, 8)
    query = _random(3, KV_HEADS * GROUP, HEAD_DIM)
    alone, padded = torch.empty_like(query), torch.empty_like(query)
    attention.decode(query[:2], cache, units, alone[:2], splits=2)
    more = attention.Units(
        torch.tensor([0, 1, 2, 2]), torch.cat([units.tables, units.tables[:1] * 0]), torch.tensor([50, 20, 0]), 1, 999
    )
    attention.decode(query, cache, more, padded, splits=2)
    assert torch.equal(alone[:2], padded[:2])


@pytest.mark.parametrize("kv_format", ["fp32", "int4"])
def test_shared_prefix_equals_the_whole_context(kv_format: str) -> None:
    """Two groups of unequal size: prefix and suffix merged are attention over both, one after the other."""
    torch.manual_seed(5)
    cache = _filled(kv_format, 16, 640, torch.float32)
    prefixes = _units([96, 48], [3, 1], 16, 20)
    suffixes = _units([1, 40, 17, 33], [1] * 4, 16, 12)
    suffixes = attention.Units(suffixes.starts, suffixes.tables + 20, suffixes.contexts, 1, 40)
    query = _random(4, KV_HEADS * GROUP, HEAD_DIM)
    out = torch.full_like(query, float("nan"))
    attention.shared_prefix_decode(query, cache, prefixes, suffixes, out)
    for sequence, group in enumerate([0, 0, 0, 1]):
        before, after = _context(cache, prefixes, group), _context(cache, suffixes, sequence)
        keys, values = (torch.cat(pair) for pair in zip(before, after, strict=True))
        exact = exact_attention(query[sequence : sequence + 1], keys, values, None)
        assert relative_error(out[sequence : sequence + 1], exact) < 1e-5


@pytest.mark.parametrize("kv_format", ["fp32", "bf16", "int8"])
def test_chunks_are_causal_behind_their_prefix(kv_format: str) -> None:
    """Chunks with and without cached tokens before them, of more than one tile of rows."""
    torch.manual_seed(6)
    dtype = torch.bfloat16 if kv_format == "bf16" else torch.float32
    cache = _filled(kv_format, 16, 320, dtype)
    cached, new = [40, 0, 5], [7, 90, 1]
    units = _units([c + n for c, n in zip(cached, new, strict=True)], new, 16, 20)
    query = _random(sum(new), KV_HEADS * GROUP, HEAD_DIM, dtype=dtype)
    out = torch.full_like(query, float("nan"))
    attention.prefill(query, cache, units, out)
    start = 0
    for unit, tokens in enumerate(new):
        part = slice(start, start + tokens)
        exact = exact_attention(query[part], *_context(cache, units, unit), cached[unit])
        assert relative_error(out[part], exact) < BOUND[dtype]
        start += tokens


def test_queries_may_be_part_of_a_wider_row() -> None:
    """Queries cut out of a fused QKV projection are read by their stride."""
    torch.manual_seed(7)
    cache = _filled("fp32", 16, 64, torch.float32)
    units = _units([30, 20], [1, 1], 16, 4)
    fused = _random(2, (KV_HEADS * GROUP + 2 * KV_HEADS) * HEAD_DIM)
    query = fused[:, : KV_HEADS * GROUP * HEAD_DIM].view(2, KV_HEADS * GROUP, HEAD_DIM)
    out, same = (torch.empty((2, KV_HEADS * GROUP, HEAD_DIM)) for _ in range(2))
    attention.decode(query, cache, units, out)
    attention.decode(query.contiguous(), cache, units, same)
    assert torch.equal(out, same)


@pytest.mark.parametrize(("tiles", "context", "splits"), [(200, 9000, 1), (1, 100, 1), (1, 4096, 32), (33, 100000, 4)])
def test_split_rule(tiles: int, context: int, splits: int) -> None:
    """Contexts are split when tiles do not fill the GPU, and no finer than two KV tiles."""
    assert attention.num_splits(tiles, context, 132) == splits
