"""Kernels that pass once over activations: quantise, and the norms and activations among whole-layer operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sim.cost.calibration import Key
from sim.cost.kernels.chip import Chip
from sim.cost.kernels.elementwise import ElementwiseFormat, ElementwiseKernel, elementwise_formula
from sim.validation.arrays import ARRAY
from sim.validation.families.base import US, Family, Floats, Traffic, floats
from sim.validation.fit import Range
from sim.validation.residual_fit import Axes
from sim.validation.tables import stack_of

_RANGES: Mapping[str, Range] = {
    "launch_s": Range(2 * US, 0.2 * US, 60 * US),
    "hbm_efficiency": Range(0.7, 0.02, 1.0),
    "l2_speedup": Range(1.8, 1.0, 6.0),
    "l2_share": Range(0.8, 0.1, 4.0, 0.8, 0.8),
    "row_s": Range(1e-8, 1e-11, 1e-5, 0.0),
}
_PLAN: Sequence[Axes] = (
    (("rows", (1, 16, 128, 512, 2048, 16384)),),
    (("bytes", (1e3, 3e4, 3e5, 3e6, 1e7, 3e7, 6e7, 1e8, 1e9)),),
)
_SAME_KERNEL = {"post_attention_layernorm": "input_layernorm", "final_layernorm": "input_layernorm"}
_QUANTISE_BYTES = 3.0  # bf16 in, fp8 out
PASS_BYTES: Mapping[str, float] = {
    "rms_norm": 4, "add_rms_norm": 8, "silu_mul": 6, "rope": 4, "quantise_fp8": 3, "quantise_int8": 3, "kv_write": 4,
    "copy": 4, "argmax": 2, "top_k_top_p": 2,
}  # fmt: skip
"""Bytes read and written per element of a row's width, 16-bit elements; sampling reads each logit at least once."""


class ElementwiseFamily(Family):
    """`quantize`, `passes` and `block_moves` rows, and what is neither projection nor attention in `layer_ops`."""

    op_class = "elementwise"
    tables = ("quantize", "layer_ops", "passes", "block_moves")
    point_columns = ("token_rows", "bytes_per_row")

    def keys(self, table: str, rows: pd.DataFrame) -> list[Key | None]:
        """Operation and stack."""
        if table != "layer_ops":
            return [Key("elementwise", op, stack_of(src)) for op, src in zip(rows.op, rows.source, strict=True)]
        layers: list[Any] = list(rows.itertuples(index=False))
        return [
            Key("elementwise", _SAME_KERNEL.get(row.op, row.op), stack_of(row.source)) if row_bytes(row) else None
            for row in layers
        ]

    def prepare(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Tokens and bytes per token."""
        if "width" in rows.columns:
            return rows.assign(token_rows=rows.m, bytes_per_row=rows.width * rows.op.map(PASS_BYTES))
        if "blocks" in rows.columns:
            return rows.assign(token_rows=rows.blocks, bytes_per_row=2.0 * rows.block_bytes)
        if "num_tokens" not in rows.columns:
            return rows.assign(token_rows=rows.m, bytes_per_row=rows.k * _QUANTISE_BYTES)
        per_row = [row_bytes(row) or 0.0 for row in rows.itertuples(index=False)]
        return rows.assign(token_rows=rows.num_tokens, bytes_per_row=per_row)

    def formats(self, key: Key, chip: Chip) -> Sequence[Any]:
        """Nothing to choose."""
        return (ElementwiseFormat(),)

    def formula(self, kernel: ElementwiseKernel, rows: pd.DataFrame) -> Floats:
        """Seconds of one pass."""
        return np.asarray(elementwise_formula(*_columns(rows), kernel, ARRAY)[0], float)

    def sizes(self, kernel: ElementwiseKernel, rows: pd.DataFrame) -> Mapping[str, Floats]:
        """Rows and bytes."""
        count, per_row = _columns(rows)
        return floats({"rows": count, "bytes": count * per_row})

    def traffic(self, kernel: ElementwiseKernel, rows: pd.DataFrame) -> Traffic:
        """Bytes in and out."""
        count, per_row = _columns(rows)
        return Traffic(np.zeros(len(rows)), count * per_row, "bf16")

    def ranges(self, kernel: ElementwiseKernel, rows: pd.DataFrame) -> Mapping[str, Range]:
        """All five."""
        return _RANGES

    def residual_plan(self, key: Key, chip: Chip) -> Sequence[Axes]:
        """15 values."""
        return _PLAN


def _columns(rows: pd.DataFrame) -> tuple[Floats, Floats]:
    return rows.token_rows.to_numpy(float), rows.bytes_per_row.to_numpy(float)


def row_bytes(row: Any) -> float | None:
    """Bytes one token reads and writes in an operator of a layer (16-bit elements); None for projections."""
    head_dim = row.hidden // row.num_heads
    rotated = (row.num_heads // row.tp + max(row.num_kv_heads // row.tp, 1)) * head_dim
    elements = {
        "add": 3 * row.hidden,
        "input_layernorm": 2 * row.hidden,
        "post_attention_layernorm": 2 * row.hidden,
        "final_layernorm": 2 * row.hidden,
        "attn_rope": 2 * rotated,
        "rope": 2 * rotated,
        "mlp_act": 3 * row.inter // row.tp,
        "act_fn": 3 * row.inter // row.tp,
        "emb": 2 * row.hidden,
        "embedding": 2 * row.hidden,
    }
    found = elements.get(row.op)
    return None if found is None else 2.0 * found
