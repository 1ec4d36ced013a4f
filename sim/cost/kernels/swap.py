"""KV blocks between GPU and host memory: copies over PCIe, one per block or gathered into one.

A copy per block pays the host's call for each, which hides behind the wire when blocks are large; gathering first costs
a pass over GPU memory, and one copy.
"""

from __future__ import annotations

from dataclasses import dataclass

from sim.cost.kernels.arithmetic import Arithmetic, Number, smooth_max
from sim.cost.kernels.chip import Chip
from sim.cost.kernels.residual import NO_RESIDUAL, ResidualTable


@dataclass(frozen=True)
class SwapParams:
    """Fitted constants of one direction and way of copying. Defaults are neutral.

    launch_s: fixed cost of the call. copy_s: host time to issue one copy. pcie_efficiency: share of the link's rate.
    hbm_efficiency: share of HBM peak of the pass that gathers or scatters. overlap_power: see smooth_max.
    """

    launch_s: float
    copy_s: float = 0.0
    pcie_efficiency: float = 1.0
    hbm_efficiency: float = 1.0
    overlap_power: float = 8.0


@dataclass(frozen=True)
class SwapFormat:
    """`blockwise`: one copy per block; otherwise blocks are gathered into a buffer that moves in one copy."""

    blockwise: bool = False


@dataclass(frozen=True)
class SwapKernel:
    """Moving blocks in one direction, ready to be priced."""

    chip: Chip
    format: SwapFormat
    params: SwapParams
    residual: ResidualTable = NO_RESIDUAL


def swap_formula(blocks: Number, block_bytes: Number, kernel: SwapKernel, ops: Arithmetic) -> Number:
    """Seconds to move so many blocks, without the residual table."""
    p, chip = kernel.params, kernel.chip
    moved = blocks * block_bytes
    wire = moved / (chip.pcie_bytes_per_s * p.pcie_efficiency)
    if kernel.format.blockwise:
        return p.launch_s + smooth_max(wire, blocks * p.copy_s, p.overlap_power, ops)
    return p.launch_s + wire + 2 * moved / (chip.hbm_bytes_per_s * p.hbm_efficiency)
