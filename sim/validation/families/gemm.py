"""Dense GEMMs: the table of shapes, and the projections among the whole-layer operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sim.cost.calibration import Key
from sim.cost.kernels.chip import Chip
from sim.cost.kernels.gemm import GemmFormat, GemmKernel, gemm_formula, gemm_sizes
from sim.validation.arrays import ARRAY
from sim.validation.families.base import US, Family, Floats, Traffic, floats, integers
from sim.validation.fit import Range
from sim.validation.measure.record import STACK
from sim.validation.residual_fit import Axes
from sim.validation.tables import rotates_operands, stack_of

_CUTLASS_FP8 = ((64.0, 64, 64, 1), (128.0, 64, 128, 1), (1e9, 128, 128, 2))
"""(rows up to, tile rows, tile columns, cluster): the default dispatch of vLLM's scaled_mm for Hopper."""

_INT4_GROUP_OF_128 = 0.5 + 2 / 128
FORMATS: Mapping[str, GemmFormat] = {
    "bf16": GemmFormat("bf16", 2.0, 2.0),
    "fp8": GemmFormat("fp8", 1.0, 1.0, True, quantise_chunk=2048, tile_by_rows=_CUTLASS_FP8),
    "fp8_block": GemmFormat("fp8", 1.0 + 4 / 128**2, 1.0, True),
    "w8a16": GemmFormat("bf16", 1.0, 2.0),
    "w4a16": GemmFormat("bf16", _INT4_GROUP_OF_128, 2.0),
    "w8a8_int8": GemmFormat("int8", 1.0, 1.0),
    "w8a8_int8_sgl": GemmFormat("int8", 1.0, 1.0, True, quantise_chunk=2048),
}

OWN_FORMATS: Mapping[str, GemmFormat] = {
    **{name: FORMATS[name] for name in ("bf16", "w4a16")},
    "fp16": GemmFormat("fp16", 2.0, 2.0),
    "fp8": GemmFormat("fp8", 1.0, 1.0, True, quantise_chunk=2048),
    # An int32 product, written and read again, is scaled in a pass of its own.
    "w8a8_int8": GemmFormat("int8", 1.0, 1.0, True, quantise_chunk=2048, epilogue_bytes=8.0),
    "nf4": GemmFormat("bf16", _INT4_GROUP_OF_128, 2.0),
    "w4a16_torch": GemmFormat("bf16", 0.5 + 4 / 128, 2.0),
}
"""Formats of this package's own kernels."""

_RANGES: Mapping[str, Range] = {
    "launch_s": Range(3 * US, 0.3 * US, 40 * US),
    "mma_efficiency": Range(0.85, 0.3, 1.0),
    "hbm_efficiency": Range(0.85, 0.4, 1.0),
    "l2_speedup": Range(1.8, 1.0, 5.0),
    "l2_share": Range(0.5, 0.15, 4.0, 0.5, 0.5),
    "overlap_power": Range(3.0, 1.05, 12.0, if_high=8.0),
    "tile_s": Range(1 * US, 0.05 * US, 10 * US, 0.0),
    "feed_bytes_per_s": Range(60e9, 8e9, 800e9, if_high=0.0),
    "wave_hardness": Range(0.6, 0.05, 1.0, 0.0),
    "throttle": Range(0.1, 0.001, 0.6, 0.0),
    "split_k_s": Range(0.6 * US, 0.05 * US, 40 * US, 0.0),
    "ragged_rows": Range(0.05, 0.002, 0.6, 0.0),
}
_QUANTISE_RANGES: Mapping[str, Range] = {
    "quantise_efficiency": Range(0.6, 0.02, 1.0),
    "quantise_row_s": Range(2e-9, 2e-11, 5e-8, 0.0),
}
_NOT_WITH_ONE_TILE = ("split_k_s", "l2_share")
_NOT_WITH_QUANTISE = ("split_k_s", "l2_share", "l2_speedup")
"""A dozen parameters at most: the schemes with a quantise pass go without those that matter least there."""

_ROWS = (1, 8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 16384)
_DEPTHS = (512, 1536, 4096, 16384)
_TILES = (1, 8, 32, 64, 108, 132, 198, 264, 396, 528, 1056, 4224)
_FINE_TILES = (1, 8, 16, 32, 48, 64, 96, 132, 160, 198, 264, 330, 396, 528, 792, 1056, 4224)


def _autotuned(tiles: str) -> Sequence[Axes]:
    return (
        (("m", (1, 16, 64, 128, 256, 512, 1024, 4096)), ("n", (512, 1536, 6144))),
        ((tiles, _FINE_TILES), ("k", _DEPTHS)),
        (("ragged", (1, 2)), ("m", (128, 512, 2048))),
    )


def _plan(tiles: str) -> Sequence[Axes]:
    return (
        (("m", _ROWS), ("n", (512, 2048, 12288))),
        ((tiles, _TILES), ("k", _DEPTHS)),
        (("m", (1, 16, 128, 512, 2048)), ("k", (512, 1024, 4096))),
    )


_SMALL_PLAN: Sequence[Axes] = ((("m", (1, 16, 64, 128, 256, 512, 1024, 4096)), ("n", (1024, 4096, 16384))),)

_VOCABULARY = {"Llama-3": 128256, "Llama-2": 32000}


class GemmFamily(Family):
    """`gemm` rows by scheme; projections of `layer_ops` as bf16 of the stack that measured them."""

    op_class = "gemm"
    tables = ("gemm", "layer_ops")
    point_columns = ("m", "n", "k")
    shape_columns = ("n", "k")

    def keys(self, table: str, rows: pd.DataFrame) -> list[Key | None]:
        """Scheme and stack of `gemm` rows; of layer operators, those that are projections."""
        if table == "gemm":
            return [Key("gemm", s, stack_of(src)) for s, src in zip(rows.scheme, rows.source, strict=True)]
        return [
            Key("gemm", "bf16", stack_of(row.source)) if layer_shape(row) else None
            for row in rows.itertuples(index=False)
        ]

    def prepare(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Layer operators as products of num_tokens rows."""
        if "m" in rows.columns:
            return rows
        shapes = [layer_shape(row) or (1, 1) for row in rows.itertuples(index=False)]
        return rows.assign(m=rows.num_tokens, n=[n for n, _ in shapes], k=[k for _, k in shapes])

    def formats(self, key: Key, chip: Chip) -> Sequence[Any]:
        """Layer benchmarks repeat one layer, so one copy of the weights stays in L2; the others cycle six."""
        known = (OWN_FORMATS if key.stack == STACK else FORMATS).get(key.format)
        if known is None:
            return ()
        if key.stack in ("vidur", "llmservingsim"):
            return (GemmFormat("bf16", 2.0, 2.0, benchmark_copies=1),)
        return (known,)

    def formula(self, kernel: GemmKernel, rows: pd.DataFrame) -> Floats:
        """Seconds in the benchmark's own L2 state."""
        m, n, k = _mnk(rows)
        return np.asarray(gemm_formula(m, n, k, kernel, rotates_operands(rows), ARRAY)[0])

    def sizes(self, kernel: GemmKernel, rows: pd.DataFrame) -> Mapping[str, Floats]:
        """Rows, columns, depth and 128x128 tiles of the output."""
        return floats(gemm_sizes(*_mnk(rows)))

    def traffic(self, kernel: GemmKernel, rows: pd.DataFrame) -> Traffic:
        """2 m n k FLOPs; each operand and the 16-bit output once."""
        m, n, k = (column.astype(float) for column in _mnk(rows))
        f = kernel.format
        return Traffic(2 * m * n * k, n * k * f.weight_bytes + m * k * f.activation_bytes + 2 * m * n, f.multiply)

    def ranges(self, kernel: GemmKernel, rows: pd.DataFrame) -> Mapping[str, Range]:
        """At most a dozen, by what the format has."""
        if not kernel.format.quantises_activations:
            return _RANGES
        drop = _NOT_WITH_QUANTISE if not kernel.format.tile_by_rows else _NOT_WITH_ONE_TILE
        return {n: r for n, r in {**_RANGES, **_QUANTISE_RANGES}.items() if n not in drop}

    def residual_plan(self, key: Key, chip: Chip) -> Sequence[Axes]:
        """About 100 values, finest in tiles for cuBLAS; 24 for the few hundred rows of a layer benchmark."""
        if key.stack in ("vidur", "llmservingsim"):
            return _SMALL_PLAN
        # Libraries on Hopper choose tiles by n for few rows too; on Ampere that would spill waves into streaming.
        tiles = "tiles" if chip.mma_rows >= 64 else "busy_tiles"
        return _autotuned(tiles) if key.format == "bf16" else _plan(tiles)


def _mnk(rows: pd.DataFrame) -> tuple[Any, Any, Any]:
    m, n, k = integers(rows, "m", "n", "k")
    return m, n, k


def layer_shape(row: Any) -> tuple[int, int] | None:
    """(n, k) of a projection measured as part of a layer; None for other operators."""
    head_dim = row.hidden // row.num_heads
    kv = max(row.num_kv_heads // row.tp, 1) * head_dim
    heads, inter = row.hidden // row.tp, row.inter // row.tp
    vocabulary = next((v for name, v in _VOCABULARY.items() if row.model.startswith(name)), None)
    shapes = {
        "attn_pre_proj": (heads + 2 * kv, row.hidden),
        "attn_post_proj": (row.hidden, heads),
        "mlp_up_proj": (2 * inter, row.hidden),
        "mlp_down_proj": (row.hidden, inter),
        "q_proj": (heads, row.hidden),
        "k_proj": (kv, row.hidden),
        "v_proj": (kv, row.hidden),
        "qkv_proj": (heads + 2 * kv, row.hidden),
        "o_proj": (row.hidden, heads),
        "gate_proj": (inter, row.hidden),
        "up_proj": (inter, row.hidden),
        "down_proj": (row.hidden, inter),
    }
    if row.op == "lm_head" and vocabulary:
        return vocabulary // row.tp, row.hidden
    return shapes.get(row.op)
