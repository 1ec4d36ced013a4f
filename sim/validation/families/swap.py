"""Swaps of KV blocks over PCIe, by direction and way of copying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sim.cost.calibration import Key
from sim.cost.kernels.chip import Chip
from sim.cost.kernels.swap import SwapFormat, SwapKernel, swap_formula
from sim.validation.arrays import ARRAY
from sim.validation.families.base import US, Family, Floats, Traffic, floats
from sim.validation.fit import Range
from sim.validation.residual_fit import Axes
from sim.validation.tables import stack_of

_RANGES: Mapping[str, Range] = {
    "launch_s": Range(15 * US, 0.5 * US, 500 * US),
    "pcie_efficiency": Range(0.8, 0.05, 1.0),
}
_BLOCKWISE: Mapping[str, Range] = {"copy_s": Range(5 * US, 0.2 * US, 50 * US)}
_PLAN: Sequence[Axes] = ((("bytes", (3e4, 3e5, 3e6, 3e7, 1e9)), ("blocks", (1, 16, 256, 4096))),)


class SwapFamily(Family):
    """`swap` rows."""

    op_class = "swap"
    tables = ("swap",)
    point_columns = ("blocks", "block_bytes")

    def keys(self, table: str, rows: pd.DataFrame) -> list[Key | None]:
        """Direction and way, and stack."""
        return [Key("swap", how, stack_of(src)) for how, src in zip(rows.how, rows.source, strict=True)]

    def formats(self, key: Key, chip: Chip) -> Sequence[Any]:
        """Nothing where the link is unknown."""
        return (SwapFormat(key.format.endswith("blockwise")),) if chip.pcie_bytes_per_s else ()

    def formula(self, kernel: SwapKernel, rows: pd.DataFrame) -> Floats:
        """Seconds of one swap."""
        return np.asarray(swap_formula(*_columns(rows), kernel, ARRAY), float)

    def sizes(self, kernel: SwapKernel, rows: pd.DataFrame) -> Mapping[str, Floats]:
        """Blocks and bytes."""
        blocks, size = _columns(rows)
        return floats({"blocks": blocks, "bytes": blocks * size})

    def traffic(self, kernel: SwapKernel, rows: pd.DataFrame) -> Traffic:
        """Bytes over the link, as the HBM bytes that take as long (a roofline knows no link)."""
        blocks, size = _columns(rows)
        chip = kernel.chip
        return Traffic(np.zeros(len(rows)), blocks * size / chip.pcie_bytes_per_s * chip.hbm_bytes_per_s, "bf16")

    def ranges(self, kernel: SwapKernel, rows: pd.DataFrame) -> Mapping[str, Range]:
        """The cost of a copy only where there is one per block."""
        return {**_RANGES, **_BLOCKWISE} if kernel.format.blockwise else _RANGES

    def residual_plan(self, key: Key, chip: Chip) -> Sequence[Axes]:
        """20 values."""
        return _PLAN


def _columns(rows: pd.DataFrame) -> tuple[Floats, Floats]:
    return rows.blocks.to_numpy(float), rows.block_bytes.to_numpy(float)
