"""All-reduce by implementation, and the other collectives by operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sim.cost.calibration import Key
from sim.cost.kernels.chip import Chip
from sim.cost.kernels.collectives import (
    TRAFFIC_PER_BYTE,
    CollectiveFormat,
    CollectiveKernel,
    collective_formula,
)
from sim.validation.arrays import ARRAY
from sim.validation.families.base import US, Family, Floats, Traffic, floats
from sim.validation.fit import Range
from sim.validation.residual_fit import Axes
from sim.validation.tables import stack_of

_MIB = 2**20
_CUSTOM_BELOW: Mapping[str, float] = {"vllm": 8 * _MIB, "trtllm": 2 * _MIB}
_SGLANG_BELOW = (16 * _MIB, 32 * _MIB)
"""Where NCCL takes over, read off the steps in the measured times; SGLang's limit depends on the GPU generation."""

_NCCL: Mapping[str, Range] = {
    "nccl_s": Range(10 * US, 1 * US, 100 * US),
    "nccl_hop_s": Range(1 * US, 0.02 * US, 10 * US, 0.0),
    "nccl_efficiency": Range(0.7, 0.2, 1.0),
    "floor_s": Range(3 * US, 0.5 * US, 60 * US, 0.0),
}
_CUSTOM: Mapping[str, Range] = {
    "launch_s": Range(4 * US, 0.3 * US, 60 * US),
    "hop_s": Range(0.1 * US, 0.005 * US, 3 * US, 0.0),
    "one_shot_efficiency": Range(0.4, 0.05, 1.0),
    "two_shot_s": Range(2 * US, 0.05 * US, 40 * US, 0.0),
    "two_shot_efficiency": Range(0.6, 0.1, 1.0),
}
_SWITCH: Mapping[str, Range] = {"switch_efficiency": Range(0.5, 0.1, 1.0)}
_KIB = 1024
_FINE = (256, *(4 * _KIB * 4**i for i in range(4)), *(_MIB * 2**i for i in range(5)), 64 * _MIB, 1024 * _MIB)
_COARSE = (256, 64 * _KIB, _MIB, 8 * _MIB, 64 * _MIB)
_PLAN: Sequence[Axes] = ((("bytes", _COARSE), ("n_gpus", (2, 4, 8))), (("bytes", _FINE),))
_TWO_GPU_PLAN: Sequence[Axes] = ((("bytes", _FINE),),)


class CollectiveFamily(Family):
    """`all_reduce` rows by implementation (graph and eager differ), `collectives_other` rows by operation."""

    op_class = "collective"
    tables = ("all_reduce", "collectives_other")
    point_columns = ("n_gpus", "bytes")
    shrink = 0.3

    def keys(self, table: str, rows: pd.DataFrame) -> list[Key | None]:
        """Implementation or operation, and stack."""
        names = rows.op if table == "collectives_other" else rows.implementation
        return [Key("collective", name, stack_of(src)) for name, src in zip(names, rows.source, strict=True)]

    def formats(self, key: Key, chip: Chip) -> Sequence[Any]:
        """The operation, and where the library's own kernel ends."""
        operation = key.format if key.format in TRAFFIC_PER_BYTE else "all_reduce"
        if not key.format.startswith("custom"):
            return (CollectiveFormat(operation),)
        below = _SGLANG_BELOW if key.stack == "sglang" else (_CUSTOM_BELOW.get(key.stack, 8 * _MIB),)
        return [CollectiveFormat(operation, limit) for limit in below]

    def formula(self, kernel: CollectiveKernel, rows: pd.DataFrame) -> Floats:
        """Seconds of one collective."""
        return np.asarray(collective_formula(*_columns(rows), kernel, ARRAY)[0], float)

    def sizes(self, kernel: CollectiveKernel, rows: pd.DataFrame) -> Mapping[str, Floats]:
        """Tensor size and number of GPUs."""
        tensor_bytes, n_gpus = _columns(rows)
        return floats({"bytes": tensor_bytes, "n_gpus": n_gpus})

    def traffic(self, kernel: CollectiveKernel, rows: pd.DataFrame) -> Traffic:
        """Bytes over the link, expressed as the HBM bytes that take as long (a roofline knows no link)."""
        tensor_bytes, n_gpus = _columns(rows)
        sent = TRAFFIC_PER_BYTE[kernel.format.operation] * (n_gpus - 1) / n_gpus * tensor_bytes
        chip = kernel.chip
        return Traffic(np.zeros(len(rows)), sent / chip.link_bytes_per_s * chip.hbm_bytes_per_s, "bf16")

    def ranges(self, kernel: CollectiveKernel, rows: pd.DataFrame) -> Mapping[str, Range]:
        """NCCL's four; the custom kernel's five where there is one; the switch's on full Hopper nodes."""
        several = rows.n_gpus.nunique() > 1
        chosen = {**_CUSTOM, **_NCCL} if kernel.format.custom_below_bytes else dict(_NCCL)
        if kernel.format.operation == "all_reduce" and kernel.chip.mma_rows >= 64 and (rows.n_gpus >= 8).any():
            chosen = {**chosen, **_SWITCH}
        return {n: r for n, r in chosen.items() if several or "hop" not in n}

    def residual_plan(self, key: Key, chip: Chip) -> Sequence[Axes]:
        """27 values; 12 where there are always two GPUs."""
        return _TWO_GPU_PLAN if key.format == "send_recv" else _PLAN


def _columns(rows: pd.DataFrame) -> tuple[Floats, Floats]:
    return rows.bytes.to_numpy(float), rows.n_gpus.to_numpy(float)
