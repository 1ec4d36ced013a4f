"""Fused experts by weight format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sim.cost.calibration import Key
from sim.cost.kernels.chip import Chip
from sim.cost.kernels.moe import Experts, MoeFormat, MoeKernel, MoeWork, moe_formula, moe_sizes, moe_work
from sim.validation.arrays import ARRAY
from sim.validation.families.base import US, Family, Floats, Traffic, floats, integers
from sim.validation.fit import Range
from sim.validation.residual_fit import Axes
from sim.validation.tables import stack_of

_STORED: Mapping[str, tuple[str, float]] = {
    "bf16": ("bf16", 2.0),
    "fp8_block": ("fp8", 1.0 + 4 / 128**2),
    "w4a16": ("bf16", 0.5 + 2 / 128),
    "w4a16_mxfp4": ("bf16", 0.5 + 1 / 32),
}
_TILE_RULES: Sequence[tuple[tuple[float, int], ...]] = (
    ((32.0, 16), (96.0, 32), (512.0, 64), (1e9, 128)),  # fused_moe default configuration since vLLM 0.19
    ((64.0, 16), (1e9, 64)),  # the same, block-quantised
    ((128.0, 16), (512.0, 32), (2048.0, 64), (1e9, 128)),  # typical of tuned configurations
)
_RANGES: Mapping[str, Range] = {
    "launch_s": Range(20 * US, 2 * US, 200 * US),
    "mma_efficiency": Range(0.7, 0.1, 1.0),
    "hbm_efficiency": Range(0.85, 0.2, 1.0),
    "overlap_power": Range(3.0, 1.0, 12.0, if_high=8.0),
    "tile_s": Range(1 * US, 0.02 * US, 30 * US, 0.0),
    "feed_bytes_per_s": Range(100e9, 3e9, 1000e9, if_high=0.0),
    "wave_hardness": Range(0.3, 0.02, 1.0, 0.0),
    "reread": Range(0.2, 0.005, 1.0, 0.0),
    "pair_s": Range(1e-9, 2e-11, 1e-7, 0.0),
    "pair_s_per_byte": Range(0.3e-12, 0.01e-12, 5e-12, 0.0),
    "expert_s": Range(0.05 * US, 0.0005 * US, 2 * US, 0.0),
    "skew_load": Range(1.5, 0.05, 10.0, 0.0),
}
_TOKENS = (1, 4, 16, 32, 64, 96, 128, 256, 512, 768, 1024, 2048, 4096, 20480)
_PLAN: Sequence[Axes] = (
    (("tokens", _TOKENS), ("local_experts", (1, 8, 32, 128))),
    (("pairs_per_expert", (0.01, 0.1, 0.5, 1, 4, 16, 64, 256, 1024, 16384)), ("skew", (1, 2))),
    (("inter", (96, 384, 1536, 6144, 16384)), ("tokens", (1, 16, 128, 1024, 8192))),
)


class MoeFamily(Family):
    """`moe`: balanced and power-law routing, tensor or expert parallel."""

    op_class = "moe"
    tables = ("moe",)
    point_columns = ("num_tokens", "hidden", "inter", "topk", "num_experts", "tp", "ep", "distribution")
    shape_columns = ("hidden", "inter")

    def keys(self, table: str, rows: pd.DataFrame) -> list[Key | None]:
        """Scheme and stack."""
        return [Key("moe", s, stack_of(src)) for s, src in zip(rows.scheme, rows.source, strict=True)]

    def formats(self, key: Key, chip: Chip) -> Sequence[Any]:
        """The scheme with each rule for the tile height; the best fitting one is kept."""
        stored = _STORED.get(key.format)
        return () if stored is None else [MoeFormat(*stored, rule) for rule in _TILE_RULES]

    def formula(self, kernel: MoeKernel, rows: pd.DataFrame) -> Floats:
        """Seconds of the layer on the measured rank."""
        return np.asarray(moe_formula(self._work(kernel, rows), _experts(rows), kernel, ARRAY)[0], float)

    def sizes(self, kernel: MoeKernel, rows: pd.DataFrame) -> Mapping[str, Floats]:
        """Tokens, experts and their width."""
        return floats(moe_sizes(self._work(kernel, rows), _experts(rows)))

    def traffic(self, kernel: MoeKernel, rows: pd.DataFrame) -> Traffic:
        """6 hidden x inter FLOPs per pair; the weights of active experts once, activations of each pair."""
        work, experts = self._work(kernel, rows), _experts(rows)
        inter = experts.inter / experts.tensor_parallel
        matrix = 3.0 * experts.hidden * inter
        weights = work.active_experts * matrix * kernel.format.weight_bytes
        return Traffic(2.0 * work.pairs * matrix, weights + work.pairs * 4.0 * experts.hidden, kernel.format.multiply)

    def ranges(self, kernel: MoeKernel, rows: pd.DataFrame) -> Mapping[str, Range]:
        """All twelve."""
        return _RANGES

    def residual_plan(self, key: Key, chip: Chip) -> Sequence[Axes]:
        """101 values."""
        return _PLAN

    def _work(self, kernel: MoeKernel, rows: pd.DataFrame) -> MoeWork:
        skewed = rows.distribution.str.startswith("power").to_numpy(bool)
        return moe_work(rows.num_tokens.to_numpy(np.int64), _experts(rows), kernel, skewed, ARRAY)


def _experts(rows: pd.DataFrame) -> Experts:
    return Experts(*integers(rows, "hidden", "inter", "topk", "num_experts", "tp", "ep"))
