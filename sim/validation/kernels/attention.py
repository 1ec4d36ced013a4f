"""Paged attention in Triton: decode, decode behind a shared prefix, and prompt chunks behind a cached prefix.

One kernel does all three, for all head layouts (numbers of heads are arguments, so that little is compiled). It attends
*units* of query tokens to one list of KV blocks each: a unit is a decoding sequence (one token), the members of a group
that share a prefix (one token each, as the rows of one matrix product), or a prompt chunk (causal). Query heads of one
KV head are rows of the same tile. A context may be split over several programs, whose parts a second kernel merges by
their log-sum-exp (Dao et al., "Flash-Decoding for long-context inference", 2023; merging a shared prefix
with own suffixes: Juravsky et al., "Hydragen", arXiv 2402.05099).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl

from sim.validation.kernels.dot import dot
from sim.validation.kernels.kv_cache import KvCache

KV_TILE = 64
_DECODE_ROWS, _GROUPED_ROWS, _CHUNK_ROWS = 16, 64, 128
_SPLIT_BELOW, _FEWEST_TILES_PER_SPLIT = 0.8, 2
_LOG2_E = 1.4426950408889634
_MOST_SPLITS = 64


@triton.jit
def _load_halves(cache, line, element, seen, HALF: tl.constexpr, PACKED: tl.constexpr, dtype: tl.constexpr):
    """Both halves of the head's elements of some tokens, as [token, element] in the multiply format."""
    if PACKED:
        pair = tl.load(cache + line[:, None] * HALF + element[None, :], mask=seen[:, None], other=0)
        low = ((pair & 15).to(tl.float32) - 8.0).to(dtype)
        high = ((pair >> 4).to(tl.float32) - 8.0).to(dtype)
    else:
        at = cache + line[:, None] * (2 * HALF) + element[None, :]
        low, high = tl.load(at, mask=seen[:, None], other=0.0), tl.load(at + HALF, mask=seen[:, None], other=0.0)
        if low.dtype != dtype:
            low, high = low.to(tl.float32).to(dtype), high.to(tl.float32).to(dtype)
    return low, high


@triton.jit
def _scores(
    query_low, query_high, keys, scales, vector, element, seen,
    HALF: tl.constexpr, PACKED: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Q K^T of a tile, each half of the head with its own scale per token."""
    k_low, k_high = _load_halves(keys, vector, element, seen, HALF, PACKED, query_low.dtype)
    low, high = dot(query_low, tl.trans(k_low)), dot(query_high, tl.trans(k_high))
    if SCALED:
        low *= tl.load(scales + vector * 2, mask=seen, other=0.0).to(tl.float32)[None, :]
        high *= tl.load(scales + vector * 2 + 1, mask=seen, other=0.0).to(tl.float32)[None, :]
    return low + high


@triton.jit
def _weighted(
    weight, values, scales, vector, element, seen,
    HALF: tl.constexpr, PACKED: tl.constexpr, SCALED: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """The weighted sums of a tile's values, half by half."""
    v_low, v_high = _load_halves(values, vector, element, seen, HALF, PACKED, dtype)
    weight_low, weight_high = weight, weight
    if SCALED:
        weight_low = weight * tl.load(scales + vector * 2, mask=seen, other=0.0).to(tl.float32)[None, :]
        weight_high = weight * tl.load(scales + vector * 2 + 1, mask=seen, other=0.0).to(tl.float32)[None, :]
    return dot(weight_low.to(dtype), v_low), dot(weight_high.to(dtype), v_high)


@triton.jit(do_not_specialize=["table_stride", "row_tiles", "splits", "first_part", "parts", "kv_heads", "group"])
def _attend(
    query, keys, values, key_scales, value_scales, tables, starts, contexts, out, log_sums,
    scale, query_stride, table_stride, row_tiles, splits, first_part, parts, kv_heads, group,
    HALF: tl.constexpr, BLOCK_TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CAUSAL: tl.constexpr, PACKED: tl.constexpr, SCALED: tl.constexpr, DIRECT: tl.constexpr, PAGED: tl.constexpr,
):  # fmt: skip
    unit, tile = tl.program_id(0) // row_tiles, tl.program_id(0) % row_tiles
    kv_head, split = tl.program_id(1), tl.program_id(2)
    start = tl.load(starts + unit)
    tokens = tl.load(starts + unit + 1) - start
    if tile * ROWS >= tokens * group:
        return
    context = tl.load(contexts + unit)
    row = tile * ROWS + tl.arange(0, ROWS)
    own = row // group
    alive = own < tokens
    line = (start + own).to(tl.int64) * (kv_heads * group) + kv_head * group + row % group
    limit = context + tl.zeros([ROWS], tl.int32)
    furthest = context
    if CAUSAL:
        limit = context - tokens + own + 1
        furthest = tl.minimum(context, context - tokens + (tile * ROWS + ROWS - 1) // group + 1)
    span = tl.cdiv(tl.cdiv(furthest, splits), COLUMNS) * COLUMNS
    first = split * span
    last = tl.minimum(first + span, furthest)

    element = tl.arange(0, HALF)
    head_at = (start + own).to(tl.int64) * query_stride + (kv_head * group + row % group) * (2 * HALF)
    at = query + head_at[:, None] + element[None, :]
    query_low = tl.load(at, mask=alive[:, None], other=0.0)
    query_high = tl.load(at + HALF, mask=alive[:, None], other=0.0)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    low = tl.zeros([ROWS, HALF], tl.float32)
    high = tl.zeros([ROWS, HALF], tl.float32)
    for n in range(first, last, COLUMNS):
        column = n + tl.arange(0, COLUMNS)
        seen = column < last
        if PAGED:
            block = tl.load(tables + unit * table_stride + column // BLOCK_TOKENS, mask=seen, other=0)
            slot = block.to(tl.int64) * BLOCK_TOKENS + column % BLOCK_TOKENS
        else:
            slot = unit.to(tl.int64) * table_stride * BLOCK_TOKENS + column
        vector = slot * kv_heads + kv_head
        score = _scores(query_low, query_high, keys, key_scales, vector, element, seen, HALF, PACKED, SCALED)
        visible = seen[None, :] & (column[None, :] < limit[:, None])
        score = tl.where(visible, score * scale, float("-inf"))
        higher = tl.maximum(best, tl.max(score, 1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(score - finite[:, None])
        fade = tl.exp2(best - finite)
        total = total * fade + tl.sum(weight, 1)
        more_low, more_high = _weighted(
            weight, values, value_scales, vector, element, seen, HALF, PACKED, SCALED, query_low.dtype
        )
        low, high = low * fade[:, None] + more_low, high * fade[:, None] + more_high
        best = higher

    some = tl.where(total > 0, total, 1.0)
    place = line if DIRECT else line * parts + first_part + split
    at = out + place[:, None] * (2 * HALF) + element[None, :]
    tl.store(at, (low / some[:, None]).to(out.dtype.element_ty), mask=alive[:, None])
    tl.store(at + HALF, (high / some[:, None]).to(out.dtype.element_ty), mask=alive[:, None])
    if not DIRECT:
        tl.store(log_sums + place, tl.where(total > 0, best + tl.log2(some), float("-inf")), mask=alive)


@triton.jit(do_not_specialize=["parts"])
def _merge(partial, log_sums, out, parts, HEAD_DIM: tl.constexpr, MOST_PARTS: tl.constexpr):
    line = tl.program_id(0).to(tl.int64)
    part, element = tl.arange(0, MOST_PARTS), tl.arange(0, HEAD_DIM)
    there = part < parts
    log_sum = tl.load(log_sums + line * parts + part, mask=there, other=float("-inf"))
    best = tl.max(log_sum, 0)
    weight = tl.exp2(log_sum - tl.where(best == float("-inf"), 0.0, best))
    at = partial + (line * parts + part[:, None]) * HEAD_DIM + element[None, :]
    # A program whose share of the context is empty writes its part all the same; padding is not written.
    values = tl.load(at, mask=there[:, None] & (weight > 0)[:, None], other=0.0)
    total = tl.sum(weight, 0)
    merged = tl.sum(values * weight[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + line * HEAD_DIM + element, merged.to(out.dtype.element_ty))


@dataclass(frozen=True)
class Units:
    """What attends to what: `starts` cut the query tokens into units, `tables[unit]` lists the blocks of its context.

    `contexts` are tokens per unit, the queries' own included where they are causal. `most_tokens` and
    `longest_context` bound them: the grid is laid out for these, so that a captured graph serves every batch within.
    """

    starts: torch.Tensor
    tables: torch.Tensor
    contexts: torch.Tensor
    most_tokens: int
    longest_context: int


@dataclass(frozen=True)
class Parts:
    """Room for partial results of query tokens: outputs in fp32 and their log2-sum-exp2."""

    outputs: torch.Tensor
    log_sums: torch.Tensor


def parts_for(query: torch.Tensor, parts: int) -> Parts:
    """Room for so many parts of each query token and head."""
    tokens, heads, head_dim = query.shape
    outputs = torch.empty((tokens, heads, parts, head_dim), dtype=torch.float32, device=query.device)
    return Parts(outputs, torch.empty((tokens, heads, parts), dtype=torch.float32, device=query.device))


def num_splits(tiles: int, longest_context: int, processors: int) -> int:
    """Programs that share a context, so that few tiles still fill the GPU (flash-attention's split rule)."""
    if tiles >= _SPLIT_BELOW * processors:
        return 1
    longest = max(-(-longest_context // (KV_TILE * _FEWEST_TILES_PER_SPLIT)), 1)
    return max(1, min(processors // max(tiles, 1), longest, _MOST_SPLITS))


@cache
def processors_of(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; a handful on the CPU, so that tests split too."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 8


def decode(
    query: torch.Tensor, cache: KvCache, units: Units, out: torch.Tensor, splits: int = 0, paged: bool = True
) -> None:
    """One token of each sequence against its cached context, the token itself included.

    `splits` 0 chooses. `paged` False reads the context of sequence i as consecutive blocks from i x the table's width.
    """
    batch = units.tables.shape[0]
    chosen = splits or num_splits(batch * cache.kv_heads, units.longest_context, processors_of(query.device))
    if chosen == 1:
        _launch(query, cache, units, out, None, rows=_DECODE_ROWS, splits=1, causal=False, paged=paged)
        return
    parts = parts_for(query, chosen)
    _launch(query, cache, units, parts.outputs, parts, rows=_DECODE_ROWS, splits=chosen, causal=False, paged=paged)
    merge(parts, out)


def shared_prefix_decode(
    query: torch.Tensor, cache: KvCache, prefixes: Units, suffixes: Units, out: torch.Tensor
) -> None:
    """One token of each sequence against a prefix its group shares (read once per group) and its own suffix."""
    processors = processors_of(query.device)
    group = query.shape[1] // cache.kv_heads
    row_tiles = -(-prefixes.most_tokens * group // _GROUPED_ROWS)
    tiles = prefixes.tables.shape[0] * cache.kv_heads * row_tiles
    before = num_splits(tiles, prefixes.longest_context, processors)
    after = num_splits(suffixes.tables.shape[0] * cache.kv_heads, suffixes.longest_context, processors)
    parts = parts_for(query, before + after)
    _launch(query, cache, prefixes, parts.outputs, parts, rows=_GROUPED_ROWS, splits=before, causal=False)
    _launch(query, cache, suffixes, parts.outputs, parts, rows=_DECODE_ROWS, splits=after, causal=False, first=before)
    merge(parts, out)


def prefill(query: torch.Tensor, cache: KvCache, units: Units, out: torch.Tensor) -> None:
    """Prompt chunks against their cached prefixes and, causally, themselves; their KV is in the cache already."""
    _launch(query, cache, units, out, None, rows=_CHUNK_ROWS, splits=1, causal=True)


def merge(parts: Parts, out: torch.Tensor) -> None:
    """Combine partial results by their log-sum-exp."""
    tokens, heads, count, head_dim = parts.outputs.shape
    most = triton.next_power_of_2(count)
    _merge[(tokens * heads,)](parts.outputs, parts.log_sums, out, count, HEAD_DIM=head_dim, MOST_PARTS=most)


def _launch(
    query: torch.Tensor,
    cache: KvCache,
    units: Units,
    out: torch.Tensor,
    parts: Parts | None,
    *,
    rows: int,
    splits: int,
    causal: bool,
    first: int = 0,
    paged: bool = True,
) -> None:
    group = query.shape[1] // cache.kv_heads
    rows = max(rows, triton.next_power_of_2(group)) if rows == _DECODE_ROWS else rows
    row_tiles = -(-units.most_tokens * group // rows)
    grid = (units.tables.shape[0] * row_tiles, cache.kv_heads, splits)
    log_sums = units.contexts if parts is None else parts.log_sums
    scale = cache.head_dim**-0.5 * _LOG2_E
    _attend[grid](
        query, cache.keys, cache.values, cache.key_scales, cache.value_scales, units.tables, units.starts,
        units.contexts, out, log_sums, scale, query.stride(0), units.tables.shape[1], row_tiles, splits, first,
        1 if parts is None else parts.outputs.shape[2], cache.kv_heads, group,
        HALF=cache.head_dim // 2, BLOCK_TOKENS=cache.block_tokens, ROWS=rows, COLUMNS=KV_TILE,
        CAUSAL=causal, PACKED=cache.format.packed, SCALED=cache.format.scaled,
        DIRECT=parts is None, PAGED=paged, num_warps=8 if rows >= _CHUNK_ROWS else 4,
        num_stages=2 if rows >= _GROUPED_ROWS else 3,
    )  # fmt: skip
