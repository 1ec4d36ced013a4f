"""Time to combine tensors across the GPUs of a group."""

from __future__ import annotations

from sim.specs.efficiency import LinkEfficiency


def all_reduce_seconds(
    bytes_per_gpu: float, num_gpus: int, link_bytes_per_s: float, eff: LinkEfficiency
) -> tuple[float, float]:
    """Time of an all-reduce, and the part of it that is launch and synchronisation.

    Reduce-scatter and all-gather each move (n-1)/n of the tensor over a GPU's link in each direction (Thakur,
    Rabenseifner and Gropp 2005, section 4.5).
    """
    traffic = 2.0 * (num_gpus - 1) / num_gpus * bytes_per_gpu
    return eff.launch_floor_s + traffic / (link_bytes_per_s * eff.link_fraction), eff.launch_floor_s
