"""Dense matrix products Y[m, n] = X[m, k] W[k, n]: the projections and MLP layers of every step.

The tile picture follows NVIDIA's "Matrix Multiplication Background" guide (tile and wave quantisation): the output is
cut into tiles, tiles are dealt to SMs in waves, and one tile costs a prologue plus k times the slower of the tensor
core and the feed of operands into the SM.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from sim.cost.kernels.arithmetic import (
    SCALAR,
    THROTTLE_AFTER_S,
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


@dataclass(frozen=True)
class GemmFormat:
    """How a scheme stores and multiplies: the tensor-core format, and bytes per weight and per activation element.

    `quantises_activations` says that the time includes a separate pass that reads bf16 activations and writes them in
    the multiply format, in chunks of `quantise_chunk` elements of a row. `tile_by_rows` lists (rows up to, tile rows,
    tile columns, tiles in a cluster) for libraries that pick one tile by m instead of trying several.
    `epilogue_bytes`: memory traffic per output element of a separate pass that scales the result.
    `benchmark_copies`: copies of the weights that the benchmark cycles through (matters for its L2 state only).
    """

    multiply: str
    weight_bytes: float
    activation_bytes: float
    quantises_activations: bool = False
    quantise_chunk: int = 128
    benchmark_copies: int = 6
    tile_by_rows: tuple[tuple[float, int, int, int], ...] = ()
    epilogue_bytes: float = 0.0


@dataclass(frozen=True)
class GemmParams:
    """Fitted constants of one scheme on one GPU and software stack. Defaults are neutral: the term is absent.

    launch_s: fixed cost of the call. mma_efficiency, hbm_efficiency: share of the tensor-core and HBM peaks reached.
    l2_speedup, l2_share: bandwidth of L2 over that of HBM, and the part of L2 a repeated benchmark can use.
    overlap_power: how well memory and compute overlap (see smooth_max). tile_s: prologue and epilogue of a tile.
    feed_bytes_per_s: operand bytes one SM can take in (0: no limit). wave_hardness: 1 when a last partial wave costs
    a whole one, 0 when it costs its share. throttle: slow-down of very long products under the power limit.
    split_k_s: fixed cost of a second pass that sums split-K parts. quantise_efficiency: share of HBM peak of the
    quantise pass. quantise_row_s: fixed cost of a row in it. ragged_rows: slow-down when there are over 128 rows and
    their number is not a multiple of 16.
    """

    launch_s: float
    mma_efficiency: float = 1.0
    hbm_efficiency: float = 1.0
    l2_speedup: float = 1.0
    l2_share: float = 0.5
    overlap_power: float = 8.0
    tile_s: float = 0.0
    feed_bytes_per_s: float = 0.0
    wave_hardness: float = 1.0
    throttle: float = 0.0
    split_k_s: float = 0.0
    quantise_efficiency: float = 1.0
    quantise_row_s: float = 0.0
    ragged_rows: float = 0.0


TILES = (
    (16, 64),
    (16, 128),
    (16, 256),
    (64, 64),
    (64, 128),
    (64, 256),
    (128, 64),
    (128, 128),
    (128, 256),
    (256, 64),
    (256, 128),
)
SPLITS = (2, 4, 8)
_WIDEST = 256

_FEED_POWER = 4
QUANTISE_L2_GAIN = 0.5
RAGGED_MULTIPLE, RAGGED_ABOVE = 16, 128
STREAMING_ROWS = 64
_NEVER_S = 1e3


@dataclass(frozen=True)
class GemmKernel:
    """A scheme's GEMM on a GPU, ready to be priced."""

    chip: Chip
    format: GemmFormat
    params: GemmParams
    residual: ResidualTable = NO_RESIDUAL

    @cached_property
    def tiles(self) -> list[tuple[int, int, float]]:
        """(rows, columns, seconds per step along k) of each tile the library may choose."""
        shapes = [(t[1], t[2]) for t in self.format.tile_by_rows] or TILES
        return [(rows, cols, self._seconds_per_k(rows, cols)) for rows, cols in shapes]

    def _seconds_per_k(self, rows: int, cols: int) -> float:
        # Up to 16 rows Hopper kernels swap the operands, so that the wide side fills the 64 rows of the instruction.
        issued_rows = max(rows, self.chip.mma_rows) if rows > 16 else rows
        flops_per_s = self.chip.peak(self.format.multiply) * self.params.mma_efficiency / self.chip.sms
        operands = rows * self.format.activation_bytes + cols * self.format.weight_bytes
        multiply_s, feed = 2.0 * issued_rows * cols / flops_per_s, self.params.feed_bytes_per_s
        return float(smooth_max(multiply_s, operands / feed, _FEED_POWER, SCALAR)) if feed else multiply_s

    @cached_property
    def hbm_bytes_per_s(self) -> float:
        """Bandwidth this kernel reaches from HBM."""
        return self.chip.hbm_bytes_per_s * self.params.hbm_efficiency

    def without_residual(self) -> GemmKernel:
        """The bare formula."""
        return replace(self, residual=NO_RESIDUAL)


def gemm_s(m: int, n: int, k: int, kernel: GemmKernel, cold: bool = True) -> float:
    """Seconds of one product. `cold`: weights come from HBM, as they do in serving; False repeats a benchmark that
    cycles six copies of the weights, small ones staying in L2.
    """
    seconds = gemm_formula(m, n, k, kernel, cold, SCALAR)[0]
    return float(seconds * kernel.residual.factor(gemm_sizes(m, n, k)))


def gemm_terms(m: int, n: int, k: int, kernel: GemmKernel, cold: bool = True) -> Terms:
    """The same time with its parts: launch, compute, memory, and the quantise pass where there is one."""
    seconds, compute, memory, quantise = gemm_formula(m, n, k, kernel, cold, SCALAR)
    factor = kernel.residual.factor(gemm_sizes(m, n, k))
    parts = {"launch": kernel.params.launch_s, "compute": compute, "memory": memory, "quantise": quantise}
    return terms(seconds * factor, parts)


def gemm_sizes(m: Number, n: Number, k: Number) -> dict[str, Number]:
    """The sizes the residual table is laid out by.

    `tiles` of 128x128 outputs; `busy_tiles` the same, but 1 for up to 64 rows, where the weights' bytes decide and
    waves of tiles do not matter; `ragged` 2 for odd numbers of rows.
    """
    ragged = (m % RAGGED_MULTIPLE != 0) & (m > RAGGED_ABOVE)
    tiles = ceil_div(m, 128) * ceil_div(n, 128)
    busy_tiles = 1 + (tiles - 1) * (m > STREAMING_ROWS)
    return {"m": m, "n": n, "k": k, "tiles": tiles, "busy_tiles": busy_tiles, "ragged": 1 + ragged}


def gemm_formula(
    m: Number, n: Number, k: Number, kernel: GemmKernel, cold: bool, ops: Arithmetic
) -> tuple[Number, Number, Number, Number]:
    """(seconds, compute, memory, quantise pass) without the residual table; whole numbers or arrays of them."""
    p = kernel.params
    compute = _by_rows_s(m, n, k, kernel, ops) if kernel.format.tile_by_rows else _best_tile_s(m, n, k, kernel, ops)
    if p.ragged_rows:
        compute = compute * (1.0 + p.ragged_rows * ((m % RAGGED_MULTIPLE != 0) & (m > RAGGED_ABOVE)))
    memory, quantise = _memory_s(m, n, k, kernel, cold, ops)
    busy = smooth_max(compute, memory, p.overlap_power, ops)
    seconds = (p.launch_s + quantise + busy) * (1.0 + p.throttle * compute / (compute + THROTTLE_AFTER_S))
    return seconds, compute, memory, quantise


def _memory_s(
    m: Number, n: Number, k: Number, kernel: GemmKernel, cold: bool, ops: Arithmetic
) -> tuple[Number, Number]:
    f, p = kernel.format, kernel.params
    hbm, l2 = kernel.hbm_bytes_per_s, kernel.hbm_bytes_per_s * p.l2_speedup
    weights = n * k * f.weight_bytes
    memory = weights / hbm
    if not cold:
        hot = l2_resident_share(weights * f.benchmark_copies, p.l2_share * kernel.chip.l2_bytes)
        memory = memory * (1.0 - hot) + weights / l2 * hot
    # Activations were written by the kernel before, so they are always in L2 when they fit.
    memory = memory + (m * k * f.activation_bytes + m * n * 2.0) / l2
    if not f.quantises_activations:
        return memory, 0.0
    passed = m * (ceil_div(k, f.quantise_chunk) * f.quantise_chunk) * (2.0 + f.activation_bytes)
    passed = passed + m * n * f.epilogue_bytes
    hot = l2_resident_share(passed, kernel.chip.l2_bytes)
    stream = passed / (kernel.chip.hbm_bytes_per_s * p.quantise_efficiency) * (1.0 - hot * QUANTISE_L2_GAIN)
    return memory, stream + m * p.quantise_row_s


def _best_tile_s(m: Number, n: Number, k: Number, kernel: GemmKernel, ops: Arithmetic) -> Number:
    """The fastest tile, with the sum over k split when there are fewer tiles than SMs."""
    p, sms, minimum, maximum = kernel.params, kernel.chip.sms, ops.minimum, ops.maximum
    tile_s, hard, soft = p.tile_s, p.wave_hardness, 1.0 - p.wave_hardness
    partial_s_per_split = m * n * 8.0 / (kernel.hbm_bytes_per_s * p.l2_speedup)
    best = _NEVER_S
    shorter = 0
    for rows, cols, per_k in kernel.tiles:
        if rows > shorter > 0 and ops.every(m <= shorter):
            break  # a taller tile computes more padding in the same number of blocks
        blocks = -(-m // rows) * -(-n // cols)
        waves = hard * -(-blocks // sms) + soft * maximum(blocks / sms, 1.0)
        best = minimum(best, waves * (tile_s + k * per_k))
        for split in SPLITS:
            enough = blocks >= sms
            if ops.every(enough):
                break
            blocks = blocks * 2
            waves = hard * -(-blocks // sms) + soft * maximum(blocks / sms, 1.0)
            merge = p.split_k_s + split * partial_s_per_split + enough * _NEVER_S
            best = minimum(best, waves * (tile_s + -(-k // split) * per_k) + merge)
        shorter = rows if cols == _WIDEST else shorter
    return best


def _by_rows_s(m: Number, n: Number, k: Number, kernel: GemmKernel, ops: Arithmetic) -> Number:
    """The one tile that the library's dispatch table prescribes for m rows."""
    p, sms = kernel.params, kernel.chip.sms
    seconds: Number = 0.0
    above = 0.0
    for (rows_up_to, _, _, cluster), (rows, cols, per_k) in zip(kernel.format.tile_by_rows, kernel.tiles, strict=True):
        blocks = ceil_div(m, rows * cluster) * cluster * ceil_div(n, cols)
        waves = p.wave_hardness * ceil_div(blocks, sms) + (1 - p.wave_hardness) * ops.maximum(blocks / sms, 1.0)
        chosen = (m > above) & (m <= rows_up_to)
        seconds = ops.where(chosen, waves * (p.tile_s + k * per_k), seconds)
        above = rows_up_to
    return seconds
