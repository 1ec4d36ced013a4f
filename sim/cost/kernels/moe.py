"""Fused mixture-of-experts layers: gate/up projection, activation and down projection of the chosen experts.

A grouped GEMM: tokens are sorted by expert and every expert's rows are padded to whole tiles, so few tokens per expert
cost whole tiles and whole weight matrices (Gale et al., "MegaBlocks", 2022, section 4; `fused_moe` in vLLM).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sim.cost.kernels.arithmetic import SCALAR, Arithmetic, Number, Terms, ceil_div, smooth_max, terms
from sim.cost.kernels.chip import Chip
from sim.cost.kernels.residual import NO_RESIDUAL, ResidualTable

TILE_COLUMNS = 128
_FEED_POWER = 4
_LOAD_CLASSES = 8
_ALMOST = 1e-6


class Experts(NamedTuple):
    """One MoE layer as the model defines it, and how it is sharded. `inter` and `count` are totals, not per GPU."""

    hidden: Number
    inter: Number
    top_k: Number
    count: Number
    tensor_parallel: Number = 1
    expert_parallel: Number = 1


@dataclass(frozen=True)
class MoeFormat:
    """How experts are stored and multiplied; `rows_by_tokens` lists (tokens up to, tile rows) of the kernel library."""

    multiply: str
    weight_bytes: float
    rows_by_tokens: tuple[tuple[float, int], ...]


@dataclass(frozen=True)
class MoeParams:
    """Fitted constants of one scheme on one GPU and software stack. Defaults are neutral.

    launch_s: fixed cost of the layer's kernels. mma_efficiency, hbm_efficiency, overlap_power, tile_s,
    feed_bytes_per_s, wave_hardness: as for GEMM. reread: share of an expert's weights read again for each further
    tile of rows. pair_s: sorting, per token-expert pair. pair_s_per_byte: activation and weighted sum, which pass over
    the pairs of all expert-parallel ranks. expert_s: bookkeeping per expert. skew_load: excess load of the busiest
    expert-parallel rank under skewed routing, for one expert per rank; it falls with the root of experts per rank.
    """

    launch_s: float
    mma_efficiency: float = 1.0
    hbm_efficiency: float = 1.0
    overlap_power: float = 8.0
    tile_s: float = 0.0
    feed_bytes_per_s: float = 0.0
    wave_hardness: float = 0.0
    reread: float = 0.0
    pair_s: float = 0.0
    pair_s_per_byte: float = 0.0
    expert_s: float = 0.0
    skew_load: float = 0.0


@dataclass(frozen=True)
class MoeKernel:
    """A scheme's fused experts on a GPU, ready to be priced."""

    chip: Chip
    format: MoeFormat
    params: MoeParams
    residual: ResidualTable = NO_RESIDUAL


class MoeWork(NamedTuple):
    """What one GPU does: token-expert pairs, experts that get any, and tiles of rows (by the tokens of the step)."""

    tokens: Number
    pairs: Number
    local_experts: Number
    active_experts: Number
    tiles: Number
    tile_rows: Number
    skewed: Number


def moe_s(
    tokens: int, experts: Experts, kernel: MoeKernel, active_experts: float | None = None, skewed: bool = False
) -> float:
    """Seconds of one layer's experts on one GPU for `tokens` (of all GPUs that share the experts).

    `active_experts` is the number of this GPU's experts that any token chose, when the caller knows better than
    balanced routing (all of them, once there are enough pairs). `skewed`: power-law routing as the tables define it.
    """
    work = moe_work(tokens, experts, kernel, skewed, SCALAR, active_experts)
    seconds = moe_formula(work, experts, kernel, SCALAR)[0]
    return float(seconds * kernel.residual.factor(moe_sizes(work, experts)))


def moe_terms(
    tokens: int, experts: Experts, kernel: MoeKernel, active_experts: float | None = None, skewed: bool = False
) -> Terms:
    """The same with its parts: launch (with sorting), compute, memory."""
    work = moe_work(tokens, experts, kernel, skewed, SCALAR, active_experts)
    seconds, *parts = moe_formula(work, experts, kernel, SCALAR)
    factor = kernel.residual.factor(moe_sizes(work, experts))
    return terms(float(seconds * factor), dict(zip(("launch", "compute", "memory"), map(float, parts), strict=True)))


def moe_work(
    tokens: Number,
    experts: Experts,
    kernel: MoeKernel,
    skewed: Number,
    ops: Arithmetic,
    active_experts: Number | None = None,
) -> MoeWork:
    """Pairs, active experts and tiles under balanced, given or power-law routing."""
    local = experts.count / experts.expert_parallel
    mean_pairs = tokens * experts.top_k / experts.expert_parallel
    spread = (1.0 - 1.0 / experts.expert_parallel) / local
    busier = ops.where(skewed, 1.0 + kernel.params.skew_load * spread**0.5, 1.0)
    pairs = ops.minimum(mean_pairs * busier, tokens * ops.minimum(experts.top_k, local))
    rows = _tile_rows(tokens, kernel.format, ops)
    if active_experts is None:
        active = ops.maximum(ops.minimum(pairs, local), 1.0)
        tiles = active * ceil_div(pairs / active - _ALMOST, rows)
        if not ops.every(skewed == 0):
            skew_active, skew_tiles = _power_law(tokens, pairs, local, rows, ops)
            active, tiles = ops.where(skewed, skew_active, active), ops.where(skewed, skew_tiles, tiles)
    else:
        active = ops.maximum(active_experts, 1.0)
        tiles = active * ceil_div(pairs / active - _ALMOST, rows)
    return MoeWork(tokens, pairs, local, active, tiles, rows, skewed)


def _tile_rows(tokens: Number, fmt: MoeFormat, ops: Arithmetic) -> Number:
    rows: Number = fmt.rows_by_tokens[-1][1]
    for up_to, smaller in reversed(fmt.rows_by_tokens[:-1]):
        rows = ops.where(tokens <= up_to, smaller, rows)
    return rows


def _power_law(tokens: Number, pairs: Number, local: Number, rows: Number, ops: Arithmetic) -> tuple[Number, Number]:
    """(active experts, tiles) when loads follow a power law of exponent 1.2, the skew of the measured tables."""
    least = (0.8 * tokens + 1.0) ** -0.2
    loads = [(1.0 + (least - 1.0) * (i + 0.5) / _LOAD_CLASSES) ** -5.0 for i in range(_LOAD_CLASSES)]
    scale = pairs / local * _LOAD_CLASSES / sum(loads)
    active, tiles = 0.0, 0.0
    for load in loads:
        expected = ops.minimum(load * scale, tokens)
        chosen = 1.0 - ops.exp(-expected)
        active = active + chosen
        tiles = tiles + ops.maximum(chosen, ceil_div(expected, rows) * (expected > 1) + chosen * (expected <= 1))
    share = local / _LOAD_CLASSES
    # No expert sees a token twice, so what the cap cut off went to other experts: the tiles must hold all pairs.
    return ops.maximum(active * share, 1.0), ops.maximum(ops.maximum(tiles * share, pairs / rows), 1.0)


def moe_sizes(work: MoeWork, experts: Experts) -> dict[str, Number]:
    """The sizes the residual table is laid out by."""
    inter = experts.inter / experts.tensor_parallel
    return {
        "tokens": work.tokens,
        "pairs_per_expert": work.pairs / work.local_experts,
        "weights": work.local_experts * experts.hidden * inter,
        "inter": inter,
        "local_experts": work.local_experts,
        "skew": 1.0 + work.skewed,
    }


def moe_formula(
    work: MoeWork, experts: Experts, kernel: MoeKernel, ops: Arithmetic
) -> tuple[Number, Number, Number, Number]:
    """(seconds, launch, compute, memory) without the residual table."""
    p = kernel.params
    inter = experts.inter / experts.tensor_parallel
    up = _grouped_gemm(2 * inter, experts.hidden, work, kernel, ops)
    down = _grouped_gemm(experts.hidden, inter, work, kernel, ops)
    all_pairs = work.tokens * experts.top_k
    passed_bytes = 2.0 * all_pairs * (3 * inter + 2 * experts.hidden)
    launch = p.launch_s + p.expert_s * work.local_experts + p.pair_s * all_pairs + p.pair_s_per_byte * passed_bytes
    return launch + up[0] + down[0], launch, up[1] + down[1], up[2] + down[2]


def _grouped_gemm(
    n: Number, k: Number, work: MoeWork, kernel: MoeKernel, ops: Arithmetic
) -> tuple[Number, Number, Number]:
    f, p, chip = kernel.format, kernel.params, kernel.chip
    rows = work.tile_rows
    sm_flops_per_s = chip.peak(f.multiply) * p.mma_efficiency / chip.sms
    per_k = 2.0 * ops.maximum(rows, chip.mma_rows) * TILE_COLUMNS / sm_flops_per_s
    if p.feed_bytes_per_s:
        feed = (rows * 2.0 + TILE_COLUMNS * f.weight_bytes) / p.feed_bytes_per_s
        per_k = smooth_max(per_k, feed, _FEED_POWER, ops)
    blocks = work.tiles * ceil_div(n, TILE_COLUMNS)
    waves = p.wave_hardness * ceil_div(blocks, chip.sms) + (1 - p.wave_hardness) * ops.maximum(blocks / chip.sms, 1.0)
    compute = waves * (p.tile_s + k * per_k)
    again = 1.0 + p.reread * (work.tiles / work.active_experts - 1.0)
    weights = work.active_experts * n * k * f.weight_bytes * again
    memory = (weights + work.pairs * 2.0 * (n + k)) / (chip.hbm_bytes_per_s * p.hbm_efficiency)
    return smooth_max(compute, memory, p.overlap_power, ops), compute, memory
