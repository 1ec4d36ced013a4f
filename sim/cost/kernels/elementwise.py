"""Kernels that pass once over the activations: norms, rotary embedding, activation, residual add, embedding, quantise.

They have no tensor-core work: the time is a launch, then bytes over a bandwidth that is the L2's while the data fit.
"""

from __future__ import annotations

from dataclasses import dataclass

from sim.cost.kernels.arithmetic import SCALAR, Arithmetic, Number, Terms, l2_resident_share, smooth_max, terms
from sim.cost.kernels.chip import Chip
from sim.cost.kernels.residual import NO_RESIDUAL, ResidualTable


@dataclass(frozen=True)
class ElementwiseParams:
    """Fitted constants of one operation on one GPU and software stack. Defaults are neutral.

    launch_s: fixed cost. hbm_efficiency: share of HBM peak; below 0.2 the kernel is limited by instructions.
    l2_speedup, l2_share: as for GEMM. row_s: fixed cost of a token's row, divided over the SMs.
    """

    launch_s: float
    hbm_efficiency: float = 1.0
    l2_speedup: float = 1.0
    l2_share: float = 0.8
    row_s: float = 0.0
    overlap_power: float = 8.0


@dataclass(frozen=True)
class ElementwiseFormat:
    """Nothing varies: bytes per row are an argument."""


@dataclass(frozen=True)
class ElementwiseKernel:
    """One operation on a GPU, ready to be priced."""

    chip: Chip
    format: ElementwiseFormat
    params: ElementwiseParams
    residual: ResidualTable = NO_RESIDUAL


def elementwise_s(rows: int, bytes_per_row: float, kernel: ElementwiseKernel) -> float:
    """Seconds to read and write `bytes_per_row` bytes for each of `rows` tokens.

    There is no cold branch: activations were written by the kernel before, and stay in L2 when they fit.
    """
    seconds = elementwise_formula(rows, bytes_per_row, kernel, SCALAR)[0]
    return float(seconds * kernel.residual.factor({"rows": rows, "bytes": rows * bytes_per_row}))


def elementwise_terms(rows: int, bytes_per_row: float, kernel: ElementwiseKernel) -> Terms:
    """The same with its parts: launch and memory."""
    seconds, memory = elementwise_formula(rows, bytes_per_row, kernel, SCALAR)
    factor = kernel.residual.factor({"rows": rows, "bytes": rows * bytes_per_row})
    return terms(float(seconds * factor), {"launch": kernel.params.launch_s, "memory": float(memory)})


def elementwise_formula(
    rows: Number, bytes_per_row: Number, kernel: ElementwiseKernel, ops: Arithmetic
) -> tuple[Number, Number]:
    """(seconds, memory) without the residual table."""
    p, chip = kernel.params, kernel.chip
    moved = rows * bytes_per_row
    hot = l2_resident_share(moved, p.l2_share * chip.l2_bytes)
    memory = moved / (chip.hbm_bytes_per_s * p.hbm_efficiency) * (1.0 - hot + hot / p.l2_speedup)
    busy = smooth_max(memory, rows * p.row_s / chip.sms, p.overlap_power, ops) if p.row_s else memory
    return p.launch_s + busy, memory
