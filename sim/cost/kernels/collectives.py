"""Collectives between the GPUs of one node: the all-reduce of tensor parallelism, and its relatives.

Small all-reduces use a custom kernel: one-shot (every GPU reads everybody's data) or two-shot (reduce-scatter, then
all-gather), whichever is faster (`custom_all_reduce.cuh` in vLLM, TensorRT-LLM and SGLang); large ones and all other
operations go through NCCL. Inside a CUDA graph there is no launch floor; outside there is.
"""

from __future__ import annotations

from dataclasses import dataclass

from sim.cost.kernels.arithmetic import SCALAR, Arithmetic, Number, Terms, smooth_max, terms
from sim.cost.kernels.chip import Chip
from sim.cost.kernels.residual import NO_RESIDUAL, ResidualTable

TRAFFIC_PER_BYTE = {
    "all_reduce": 2.0,
    "all_gather": 1.0,
    "reduce_scatter": 1.0,
    "alltoall": 1.0,
    "send_recv": 2.0,  # of two GPUs each sends everything, not half
}
"""Bytes a GPU sends, per byte of the tensor and per (n - 1) / n (NCCL tests, PERFORMANCE.md, "bus bandwidth")."""


@dataclass(frozen=True)
class CollectiveParams:
    """Fitted constants of one implementation on one GPU. Defaults are neutral.

    launch_s: fixed cost of the custom kernel. hop_s: more for each GPU beyond two. one_shot_efficiency,
    two_shot_efficiency, nccl_efficiency: share of the link's peak. two_shot_s: second synchronisation. nccl_s,
    nccl_hop_s: the same fixed costs for NCCL. switch_efficiency: share of the link's peak when the NVLink switch adds
    up (NVLink SHARP: full nodes of 8 from Hopper on; 0: the ring). floor_s: nothing is faster (host launch outside a
    CUDA graph).
    """

    launch_s: float
    hop_s: float = 0.0
    one_shot_efficiency: float = 1.0
    two_shot_s: float = 0.0
    two_shot_efficiency: float = 1.0
    nccl_s: float = 0.0
    nccl_hop_s: float = 0.0
    nccl_efficiency: float = 1.0
    switch_efficiency: float = 0.0
    floor_s: float = 0.0


_FLOOR_POWER = 8.0
FULL_NODE = 8


@dataclass(frozen=True)
class CollectiveFormat:
    """Which operation, and up to which tensor size the library uses its own kernel; larger ones go to NCCL."""

    operation: str = "all_reduce"
    custom_below_bytes: float = 0.0


@dataclass(frozen=True)
class CollectiveKernel:
    """One operation of one implementation on a GPU, ready to be priced."""

    chip: Chip
    format: CollectiveFormat
    params: CollectiveParams
    residual: ResidualTable = NO_RESIDUAL


def collective_s(tensor_bytes: float, n_gpus: int, kernel: CollectiveKernel) -> float:
    """Seconds of one collective on a tensor of `tensor_bytes` per GPU; nothing for a single GPU."""
    if n_gpus < 2:
        return 0.0
    seconds = collective_formula(tensor_bytes, n_gpus, kernel, SCALAR)[0]
    return float(seconds * kernel.residual.factor({"bytes": tensor_bytes, "n_gpus": n_gpus}))


def collective_terms(tensor_bytes: float, n_gpus: int, kernel: CollectiveKernel) -> Terms:
    """The same with its parts: launch (with hops), link, and the launch floor."""
    seconds, link = collective_formula(tensor_bytes, n_gpus, kernel, SCALAR)
    factor = kernel.residual.factor({"bytes": tensor_bytes, "n_gpus": n_gpus})
    fixed = max(seconds - link, 0.0)
    return terms(float(seconds * factor), {"launch": fixed, "link": link})


def collective_formula(
    tensor_bytes: Number, n_gpus: Number, kernel: CollectiveKernel, ops: Arithmetic
) -> tuple[Number, Number]:
    """(seconds, of these on the link) without the residual table."""
    p, link = kernel.params, kernel.chip.link_bytes_per_s
    sent = TRAFFIC_PER_BYTE[kernel.format.operation] * (n_gpus - 1) / n_gpus * tensor_bytes
    on_link = sent / (link * p.nccl_efficiency)
    if p.switch_efficiency:
        on_link = ops.where(n_gpus >= FULL_NODE, tensor_bytes / (link * p.switch_efficiency), on_link)
    seconds = p.nccl_s + p.nccl_hop_s * (n_gpus - 2) + on_link
    if kernel.format.custom_below_bytes > 0:
        custom = tensor_bytes < kernel.format.custom_below_bytes
        one_link = (n_gpus - 1) * tensor_bytes / (link * p.one_shot_efficiency)
        two_link = sent / (link * p.two_shot_efficiency)
        one, two = one_link, p.two_shot_s + two_link
        chosen = p.launch_s + p.hop_s * (n_gpus - 2) + ops.minimum(one, two)
        on_link = ops.where(custom, ops.where(one <= two, one_link, two_link), on_link)
        seconds = ops.where(custom, chosen, seconds)
    if p.floor_s:
        seconds = smooth_max(seconds, p.floor_s, _FLOOR_POWER, ops)
    return seconds, on_link
