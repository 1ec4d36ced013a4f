"""The facts of one GPU that kernel costs depend on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sim.specs.hardware import Gpu

_WARP_GROUP_MMA = ("hopper",)


@dataclass(frozen=True)
class Chip:
    """Datasheet facts of one GPU: the roofs that calibrated efficiencies are fractions of.

    `flops_per_s` holds dense peaks by number format (`bf16`, `fp8`, `int8`, ...); `link_bytes_per_s` is one direction.
    `mma_rows` is the smallest tile height of the tensor-core instruction: 64 for Hopper's warp-group MMA, 16 before
    (PTX ISA, wgmma.mma_async and mma.sync shapes). `pcie_bytes_per_s`: to the host, one direction; 0 where unknown.
    """

    name: str
    flops_per_s: Mapping[str, float]
    hbm_bytes_per_s: float
    sms: int
    l2_bytes: float
    link_bytes_per_s: float
    mma_rows: int = 16
    vector_ops_per_s: float = math.inf
    """32-bit operations of the vector units, which unpack quantised weights and caches."""
    pcie_bytes_per_s: float = 0.0

    def peak(self, number_format: str) -> float:
        """Dense peak FLOP/s of a format; formats the tensor cores lack multiply in 16 bit."""
        known = self.flops_per_s
        return known.get(number_format) or known.get("bf16") or known["fp16"]


def chip_of(gpu: Gpu) -> Chip:
    """The chip of a hardware profile."""
    return Chip(
        name=gpu.name,
        flops_per_s={name: float(rate) for name, rate in gpu.tensor_flops.items()},
        hbm_bytes_per_s=float(gpu.memory_bandwidth_bytes_per_s),
        sms=int(gpu.sm_count),
        l2_bytes=float(gpu.l2_bytes),
        link_bytes_per_s=float(gpu.nvlink_bytes_per_s or gpu.pcie_bytes_per_s),
        vector_ops_per_s=gpu.vector_ops_per_s,
        mma_rows=64 if gpu.generation in _WARP_GROUP_MMA else 16,
        pcie_bytes_per_s=float(gpu.pcie_bytes_per_s),
    )
