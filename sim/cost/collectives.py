"""Time to combine or exchange tensors across the GPUs of a group, inside a node and between nodes."""

from __future__ import annotations

from typing import Literal

from sim.cost.kernels.collectives import TRAFFIC_PER_BYTE
from sim.specs.efficiency import LinkEfficiency
from sim.specs.hardware import Gpu

Operation = Literal["all_reduce", "all_gather", "reduce_scatter", "alltoall", "send_recv"]


def ring_seconds(
    operation: Operation, tensor_bytes: float, num_gpus: int, link_bytes_per_s: float, eff: LinkEfficiency
) -> tuple[float, float]:
    """Time of a collective over equal links, and the part of it that is launch and synchronisation.

    An all-reduce is a reduce-scatter and an all-gather; each moves (n-1)/n of the tensor over a GPU's link in each
    direction (Thakur, Rabenseifner and Gropp 2005, section 4.5).
    """
    traffic = TRAFFIC_PER_BYTE[operation] * (num_gpus - 1) / num_gpus * tensor_bytes
    return eff.launch_floor_s + traffic / (link_bytes_per_s * eff.link_fraction), eff.launch_floor_s


def network_seconds(
    operation: Operation, tensor_bytes: float, num_gpus: int, gpu: Gpu, eff: LinkEfficiency
) -> tuple[float, float]:
    """What a group that spans nodes pays besides the collective inside each node.

    Every GPU of a node carries an equal share of the node's tensor over its own network port (hierarchical rings, as in
    NCCL); of an exchange, the share that leaves the node.
    """
    nodes = num_gpus // gpu.gpus_per_node
    share = tensor_bytes / (1 if operation in ("alltoall", "send_recv") else gpu.gpus_per_node)
    return ring_seconds(operation, share, nodes, gpu.network_bytes_per_s, eff)


def collective_seconds(
    operation: Operation, tensor_bytes: float, num_gpus: int, gpu: Gpu, eff: LinkEfficiency
) -> tuple[float, float]:
    """Time of a collective over `num_gpus` neighbouring GPUs, and the part of it that is launch and synchronisation.

    Raises ConfigError for a group of one.
    """
    inside = min(num_gpus, gpu.gpus_per_node)
    seconds, floor = ring_seconds(operation, tensor_bytes, inside, gpu.link_bytes_per_s(inside), eff)
    if num_gpus <= inside:
        return seconds, floor
    outside, more = network_seconds(operation, tensor_bytes, num_gpus, gpu, eff)
    return seconds + outside, floor + more
