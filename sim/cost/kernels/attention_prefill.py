"""Prefill attention: new prompt tokens attend causally to themselves and to what is already cached.

The tile picture of flash attention (Dao, "FlashAttention-2", 2023, section 3): a block of the kernel takes one query
tile of one head and walks over the key tiles it may see. The time is the larger of the total work dealt to the SMs
and the longest block, or the bytes, plus writing the new KV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sim.cost.kernels.arithmetic import (
    SCALAR,
    THROTTLE_AFTER_S,
    Arithmetic,
    Number,
    Terms,
    ceil_div,
    smooth_max,
    terms,
)
from sim.cost.kernels.attention_decode import Heads
from sim.cost.kernels.chip import Chip
from sim.cost.kernels.residual import NO_RESIDUAL, ResidualTable

KEY_TILE = 128
_EVERYTHING = 10**9


@dataclass(frozen=True)
class PrefillParams:
    """Fitted constants of one KV format on one GPU and software stack. Defaults are neutral.

    launch_s: fixed cost of the layer call. mma_efficiency: share of the tensor-core peak, reached for large heads.
    half_head_dim: head size at which half of it is reached. hbm_efficiency: share of HBM peak. overlap_power: see
    smooth_max. block_s: fixed cost of a query tile. key_tile_s: least time per key tile of 128-element heads (softmax
    and synchronisation). write_s_per_byte: writing new KV to the cache. throttle: see GemmParams.
    window_tile_s: extra cost of a query tile whose window starts after the first key. longest_power: how well the
    longest query tile hides behind the others (see smooth_max).
    """

    launch_s: float
    mma_efficiency: float = 1.0
    half_head_dim: float = 0.0
    hbm_efficiency: float = 1.0
    overlap_power: float = 8.0
    block_s: float = 0.0
    key_tile_s: float = 0.0
    write_s_per_byte: float = 0.0
    throttle: float = 0.0
    window_tile_s: float = 0.0
    longest_power: float = 8.0


@dataclass(frozen=True)
class PrefillFormat:
    """How KV is stored and how the library tiles.

    `packs_groups`: the query heads that share a KV head fill one query tile together (flash-attention 3 for batches of
    unequal lengths), instead of a tile per query head. `rows_small_head`, `rows`: query tile height for heads of up to
    64 elements and for larger ones (`tile_size_fwd_sm90` in flash-attention 3).
    """

    kv_bytes_per_element: float = 2.0
    packs_groups: bool = True
    rows_small_head: int = 192
    rows: int = 128


@dataclass(frozen=True)
class PrefillKernel:
    """Prefill attention with one KV format on a GPU, ready to be priced."""

    chip: Chip
    format: PrefillFormat
    params: PrefillParams
    residual: ResidualTable = NO_RESIDUAL


class PrefillWork(NamedTuple):
    """What prompt chunks ask of the kernel: sums over chunks, except `longest_visits` and `windowed`.

    `tiles` counts query tiles of all heads, `visits` the key tiles they walk over, `longest_visits` those of the
    busiest one; `windowed` says whether a sliding window cuts anything off.
    """

    tiles: Number
    visits: Number
    read_bytes: Number
    written_bytes: Number
    flops: Number
    new_tokens: Number
    chunks: Number
    longest_visits: Number
    windowed: Number


def prefill_s(chunks: Sequence[tuple[int, int]], heads: Heads, kernel: PrefillKernel) -> float:
    """Seconds of one layer's prefill attention over chunks of (new tokens, tokens already cached)."""
    work = _total([chunk_work(1, new, cached, heads, kernel, SCALAR) for new, cached in chunks])
    seconds = prefill_formula(work, heads, kernel, SCALAR)[0]
    return float(seconds * kernel.residual.factor(prefill_sizes(work, heads)))


def prefill_terms(chunks: Sequence[tuple[int, int]], heads: Heads, kernel: PrefillKernel) -> Terms:
    """The same with its parts: launch, total tile work, longest tile, memory, and the KV write."""
    work = _total([chunk_work(1, new, cached, heads, kernel, SCALAR) for new, cached in chunks])
    return _terms(work, heads, kernel)


def _terms(work: PrefillWork, heads: Heads, kernel: PrefillKernel) -> Terms:
    seconds, *parts = prefill_formula(work, heads, kernel, SCALAR)
    factor = kernel.residual.factor(prefill_sizes(work, heads))
    names = ("launch", "compute", "longest", "memory", "write")
    return terms(float(seconds * factor), dict(zip(names, map(float, parts), strict=True)))


def prefill_sums_terms(new_tokens: int, pairs: float, longest_new: int, heads: Heads, kernel: PrefillKernel) -> Terms:
    """Terms of chunks known by their sums only: new tokens, query-key pairs, and the longest chunk.

    They are priced as new_tokens / longest_new chunks of that length, cached as much as the pairs say. A window is
    then already in the pairs; `heads.window_tokens` only says where tiles end.
    """
    mean_keys = pairs / new_tokens
    cached = max(mean_keys - (longest_new + 1) / 2, 0.0)
    work = chunk_work(new_tokens / longest_new, longest_new, cached, heads, kernel, SCALAR)
    window = heads.window_tokens
    if window and cached + longest_new >= window:
        # Past the window the pairs no longer tell the cached length: all that matters is that it is long.
        work = chunk_work(new_tokens / longest_new, longest_new, cached + window, heads, kernel, SCALAR)
    return _terms(work, heads, kernel)


def chunk_work(
    count: Number, new: Number, cached: Number, heads: Heads, kernel: PrefillKernel, ops: Arithmetic
) -> PrefillWork:
    """The work of `count` equal chunks."""
    h, length = heads, new + cached
    window = ops.where(h.window_tokens > 0, h.window_tokens, _EVERYTHING)
    windowed = (h.window_tokens > 0) & (length > window)
    pairs = _visible_pairs(length, window, ops) - _visible_pairs(cached, window, ops)
    rows = ops.where(h.head_dim <= 64, kernel.format.rows_small_head, kernel.format.rows)
    group = h.num_heads // h.num_kv_heads if kernel.format.packs_groups else 1
    tiles = ceil_div(new * group, rows)
    tile_tokens = ops.minimum(rows / group, new)
    visits, longest = _visits(tile_tokens, pairs / new, length, window, windowed, ops)
    packs = count * (h.num_heads // group)
    kv_bytes = 2 * kernel.format.kv_bytes_per_element * h.num_kv_heads * h.head_dim
    read = kv_bytes * ops.minimum(length, window + new) + 4.0 * h.num_heads * new * h.head_dim
    written = new * (kv_bytes + 4.0 * h.num_kv_heads * h.head_dim)
    flops = 4.0 * count * h.num_heads * h.head_dim * pairs
    moved = (count * read, count * written)
    return PrefillWork(packs * tiles, packs * tiles * visits, *moved, flops, count * new, count, longest, windowed)


def _visible_pairs(tokens: Number, window: Number, ops: Arithmetic) -> Number:
    """Query-key pairs of a causal sequence: the sum over positions of min(position, window)."""
    inside = ops.minimum(tokens, window)
    return inside * (inside + 1) / 2 + ops.maximum(tokens - window, 0) * window


def _visits(
    tile_tokens: Number, mean_keys: Number, length: Number, window: Number, windowed: Number, ops: Arithmetic
) -> tuple[Number, Number]:
    """Key tiles a query tile walks over, on average and at most; each ragged edge costs half a tile."""
    most = ceil_div(length, KEY_TILE)
    mean = (mean_keys + 0.5 * (tile_tokens + KEY_TILE) * (1 + windowed)) / KEY_TILE
    longest = ops.minimum(most, (window + tile_tokens) / KEY_TILE + 1)
    return ops.maximum(ops.minimum(mean, most), 1), longest


def _total(works: Sequence[PrefillWork]) -> PrefillWork:
    if len(works) == 1:
        return works[0]
    sums = [sum(column) for column in list(zip(*works, strict=True))[:-2]]
    longest, windowed = max(w.longest_visits for w in works), any(w.windowed for w in works)
    return PrefillWork._make([*sums, longest, windowed])


def prefill_sizes(work: PrefillWork, heads: Heads) -> dict[str, Number]:
    """The sizes the residual table is laid out by."""
    return {
        "flops": work.flops,
        "new_tokens": work.new_tokens / work.chunks,
        "tiles": work.tiles,
        "visits": work.visits / work.tiles,
        "head_dim": heads.head_dim,
        "group": heads.num_heads / heads.num_kv_heads,
        "chunk_heads": work.chunks * heads.num_heads,
        "chunk_kv": work.chunks * heads.num_kv_heads,
    }


def prefill_formula(
    work: PrefillWork, heads: Heads, kernel: PrefillKernel, ops: Arithmetic
) -> tuple[Number, Number, Number, Number, Number, Number]:
    """(seconds, launch, compute, longest, memory, write) without the residual table."""
    p, chip, head_dim = kernel.params, kernel.chip, heads.head_dim
    rows = ops.where(head_dim <= 64, kernel.format.rows_small_head, kernel.format.rows)
    flops_per_s = chip.peak("bf16") * p.mma_efficiency * head_dim / (head_dim + p.half_head_dim) / chip.sms
    visit_s = ops.maximum(4.0 * rows * KEY_TILE * head_dim / flops_per_s, p.key_tile_s * (head_dim / 128) ** 0.5)
    tile_s = p.block_s + p.window_tile_s * work.windowed
    compute = (work.tiles * tile_s + work.visits * visit_s) / chip.sms
    longest = tile_s + work.longest_visits * visit_s
    busy = smooth_max(compute, longest, p.longest_power, ops)
    memory = work.read_bytes / (chip.hbm_bytes_per_s * p.hbm_efficiency)
    write = work.written_bytes * p.write_s_per_byte
    slow = 1.0 + p.throttle * busy / (busy + THROTTLE_AFTER_S)
    seconds = (p.launch_s + smooth_max(busy, memory, p.overlap_power, ops) + write) * slow
    return seconds, p.launch_s, compute, longest, memory, write
