"""Moving KV blocks over PCIe."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sim.cost.kernels.arithmetic import SCALAR
from sim.cost.kernels.chip import Chip
from sim.cost.kernels.gemm import GemmFormat, GemmKernel, GemmParams, gemm_s
from sim.cost.kernels.swap import SwapFormat, SwapKernel, SwapParams, swap_formula

MIB = 1 << 20


def _seconds(chip: Chip, blocks: int, block_bytes: int, *, blockwise: bool) -> float:
    kernel = SwapKernel(
        replace(chip, pcie_bytes_per_s=50e9), SwapFormat(blockwise), SwapParams(1e-5, copy_s=5e-6, pcie_efficiency=0.8)
    )
    return float(swap_formula(blocks, block_bytes, kernel, SCALAR))


def test_large_blocks_are_bound_by_the_wire(chip: Chip) -> None:
    """64 blocks of 2 MiB take their bytes over four fifths of the link's rate, whatever the host does."""
    wire = 64 * 2 * MIB / 40e9
    assert _seconds(chip, 64, 2 * MIB, blockwise=True) == pytest.approx(1e-5 + wire, rel=0.001)


def test_small_blocks_are_bound_by_the_host(chip: Chip) -> None:
    """A thousand copies of 4 KiB cost their issue; gathered into one copy they cost a tenth of that or less."""
    one_by_one = _seconds(chip, 1000, 4096, blockwise=True)
    assert one_by_one == pytest.approx(1e-5 + 1000 * 5e-6, rel=0.01)
    assert _seconds(chip, 1000, 4096, blockwise=False) < one_by_one / 10


def test_gathering_passes_over_gpu_memory(chip: Chip) -> None:
    """The gathered way reads and writes the blocks once more, at HBM's rate."""
    more = _seconds(chip, 64, 2 * MIB, blockwise=False) - 1e-5 - 64 * 2 * MIB / 40e9
    assert more == pytest.approx(2 * 64 * 2 * MIB / 3e12)


def test_an_unfused_epilogue_costs_its_traffic(chip: Chip) -> None:
    """Scaling an int32 product in a pass of its own adds eight bytes per output element."""
    params = GemmParams(3e-6, quantise_efficiency=1.0)
    form = GemmFormat("int8", 1.0, 1.0, True)
    fused, apart = (
        gemm_s(8192, 8192, 8192, GemmKernel(chip, f, params)) for f in (form, replace(form, epilogue_bytes=8.0))
    )
    assert apart - fused == pytest.approx(8 * 8192 * 8192 / 3e12, rel=0.05)
