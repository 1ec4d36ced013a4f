"""Decode attention: every running sequence reads its whole KV cache to produce one token (the flash-decoding kernels).

A block of the kernel streams the KV of one KV head of one sequence; when there are fewer blocks than the GPU holds,
the context is split over several of them and a second pass merges the parts (Dao et al., "Flash-Decoding for
long-context inference", 2023; the split rule follows `num_splits_heuristic` of flash-attention 2.x).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sim.cost.kernels.arithmetic import (
    SCALAR,
    Arithmetic,
    Number,
    Terms,
    ceil_div,
    l2_resident_share,
    smooth_max,
    terms,
)
from sim.cost.kernels.chip import Chip
from sim.cost.kernels.residual import NO_RESIDUAL, ResidualTable


class Heads(NamedTuple):
    """The attention layout on one GPU: query heads, KV heads, elements per head, sliding window (0: none)."""

    num_heads: Number
    num_kv_heads: Number
    head_dim: Number
    window_tokens: Number = 0


@dataclass(frozen=True)
class DecodeParams:
    """Fitted constants of one KV format on one GPU and software stack. Defaults are neutral.

    launch_s: fixed cost of the layer call. hbm_efficiency: share of HBM peak reached. l2_speedup, l2_share: as for
    GEMM, for benchmarks that read the same KV again. overlap_power: see smooth_max. block_s: fixed cost of a block.
    stream_bytes_per_s: what one block alone can read. merge_s: the pass that merges a split context. regroup_s: the
    copies that gather grouped query heads of several sequences. io_s_per_byte: queries in, outputs out, new KV
    written. mma_efficiency: share of the tensor-core peak. wave_hardness: see GemmParams. window_s: extra time of a
    context longer than its window. most_splits: parts a context is cut into at most.
    """

    launch_s: float
    hbm_efficiency: float = 1.0
    l2_speedup: float = 1.0
    l2_share: float = 0.5
    overlap_power: float = 8.0
    block_s: float = 0.0
    stream_bytes_per_s: float = 1e12
    merge_s: float = 0.0
    regroup_s: float = 0.0
    io_s_per_byte: float = 0.0
    mma_efficiency: float = 1.0
    wave_hardness: float = 0.0
    window_s: float = 0.0
    most_splits: float = 64.0


PAGE_TOKENS = 64
QUERY_ROWS = 64
_SPLIT_BELOW = 0.8


@dataclass(frozen=True)
class DecodeFormat:
    """How KV is stored and what the library does with it.

    `splits_ungrouped`: whether it also splits a context when every query head has its own KV head (flash-attention 2
    as vLLM 0.14 calls it does not; flash-attention 3 does).
    """

    kv_bytes_per_element: float = 2.0
    splits_ungrouped: bool = True


@dataclass(frozen=True)
class DecodeKernel:
    """Decode attention with one KV format on a GPU, ready to be priced."""

    chip: Chip
    format: DecodeFormat
    params: DecodeParams
    residual: ResidualTable = NO_RESIDUAL


class DecodeWork(NamedTuple):
    """What a batch of decoding sequences asks of the kernel."""

    sequences: Number
    context_tokens: Number
    longest_tokens: Number
    past_window: Number
    kv_bytes: Number


def decode_s(
    sequences: int, total_context_tokens: float, heads: Heads, kernel: DecodeKernel, cold: bool = True
) -> float:
    """Seconds of one layer's decode attention for sequences whose contexts (cached and new token) sum to the total.

    `total_context_tokens` counts what is attended to: with a sliding window, at most the window per sequence.
    Sequences are taken to be of similar length; `cold` reads KV from HBM, as serving does.
    """
    work = decode_work(sequences, total_context_tokens / sequences, heads, kernel, SCALAR)
    seconds = decode_formula(work, heads, kernel, cold, SCALAR)[0]
    return float(seconds * kernel.residual.factor(decode_sizes(work, heads)))


def decode_terms(
    sequences: int, total_context_tokens: float, heads: Heads, kernel: DecodeKernel, cold: bool = True
) -> Terms:
    """The same with its parts: launch (with merge and copies), memory, blocks, compute, and queries in and out."""
    work = decode_work(sequences, total_context_tokens / sequences, heads, kernel, SCALAR)
    seconds, *parts = decode_formula(work, heads, kernel, cold, SCALAR)
    names = ("launch", "memory", "blocks", "compute", "io")
    factor = kernel.residual.factor(decode_sizes(work, heads))
    return terms(float(seconds * factor), dict(zip(names, map(float, parts), strict=True)))


def decode_work(
    sequences: Number, context_tokens: Number, heads: Heads, kernel: DecodeKernel, ops: Arithmetic
) -> DecodeWork:
    """The work of `sequences` that each have `context_tokens`, the token being computed included."""
    window = heads.window_tokens
    past_window = (window > 0) & (context_tokens > window)
    seen = ops.where(past_window, window, context_tokens)
    kv_bytes = sequences * heads.num_kv_heads * seen * heads.head_dim * 2 * kernel.format.kv_bytes_per_element
    return DecodeWork(sequences, seen, seen, past_window, kv_bytes)


def decode_sizes(work: DecodeWork, heads: Heads) -> dict[str, Number]:
    """The sizes the residual table is laid out by."""
    return {
        "kv_bytes": work.kv_bytes,
        "context": work.context_tokens,
        "blocks": work.sequences * heads.num_kv_heads,
        "sequences": work.sequences,
        "group": heads.num_heads / heads.num_kv_heads,
        "head_dim": heads.head_dim,
    }


def decode_formula(
    work: DecodeWork, heads: Heads, kernel: DecodeKernel, cold: bool, ops: Arithmetic
) -> tuple[Number, Number, Number, Number, Number, Number]:
    """(seconds, launch, memory, blocks, compute, io) without the residual table."""
    p, chip = kernel.params, kernel.chip
    group = heads.num_heads / heads.num_kv_heads
    tiles = work.sequences * heads.num_kv_heads * ceil_div(group, QUERY_ROWS)
    memory_s_per_byte = _seconds_per_byte(work.kv_bytes, kernel, cold)
    splits, blocks_s = _blocks_s(work, tiles, heads, kernel, memory_s_per_byte, ops)
    compute = 4.0 * QUERY_ROWS * tiles * work.longest_tokens * heads.head_dim / (chip.peak("bf16") * p.mma_efficiency)
    memory = work.kv_bytes * memory_s_per_byte
    copies = (work.sequences > 1) & (heads.num_kv_heads > 1) & (group > 1)
    launch = p.launch_s + p.merge_s * (splits > 1) + p.regroup_s * copies + p.window_s * work.past_window
    new_kv = heads.num_kv_heads * 2 * (2 + kernel.format.kv_bytes_per_element)
    io = p.io_s_per_byte * work.sequences * heads.head_dim * (4.0 * heads.num_heads + new_kv)
    busy = smooth_max(smooth_max(memory, blocks_s, p.overlap_power, ops), compute, p.overlap_power, ops)
    return launch + busy + io, launch, memory, blocks_s, compute, io


def _seconds_per_byte(kv_bytes: Number, kernel: DecodeKernel, cold: bool) -> Number:
    p = kernel.params
    from_hbm = 1.0 / (kernel.chip.hbm_bytes_per_s * p.hbm_efficiency)
    if cold:
        return from_hbm
    hot = l2_resident_share(kv_bytes, p.l2_share * kernel.chip.l2_bytes)
    return from_hbm * (1.0 - hot + hot / p.l2_speedup)


def _blocks_s(
    work: DecodeWork, tiles: Number, heads: Heads, kernel: DecodeKernel, memory_s_per_byte: Number, ops: Arithmetic
) -> tuple[Number, Number]:
    """(splits, time of the waves of blocks): in a part-filled last wave a block streams at its own limit."""
    p, slots = kernel.params, kernel.chip.sms
    pages = ceil_div(work.longest_tokens, PAGE_TOKENS)
    most = ops.minimum(ops.maximum(pages / 2, 1.0), p.most_splits)
    if not kernel.format.splits_ungrouped:
        most = ops.where(heads.num_heads > heads.num_kv_heads, most, 1.0)
    splits = ops.where(tiles < _SPLIT_BELOW * slots, ops.maximum(ops.minimum(slots // tiles, most), 1.0), 1.0)
    block_bytes = ceil_div(pages, splits) * PAGE_TOKENS * heads.head_dim * 2 * kernel.format.kv_bytes_per_element
    alone = p.block_s + block_bytes / p.stream_bytes_per_s
    blocks = tiles * splits
    full_waves = blocks // slots
    tail = blocks - full_waves * slots
    wave_s = ops.maximum(slots * block_bytes * memory_s_per_byte, alone)
    tail_s = ops.maximum(tail * block_bytes * memory_s_per_byte, alone) * (tail > 0)
    hard = full_waves * wave_s + tail_s
    soft = ops.maximum(blocks / slots, 1.0) * alone
    return splits, p.wave_hardness * hard + (1.0 - p.wave_hardness) * soft
