"""Software pipelining inside a kernel: while one tile is computed, the next ones are on their way."""

from __future__ import annotations

LOAD_LATENCY_CYCLES = 470
"""From a load to its data out of device memory: 466 cycles on A100, 479 on H100 (Luo et al. 2024, "Benchmarking and
dissecting the Nvidia Hopper GPU architecture", from memory)."""


def pipelined_seconds(compute_s: float, memory_s: float, tiles: float, stages: int, latency_s: float = 0.0) -> float:
    """Time of a loop over `tiles` tiles with `stages` buffers, whose loads and products last so long in all.

    A buffer is loaded, waited for and computed on, and then free for the tile `stages` later: the steady state takes
    the largest of a tile's compute, its memory time, and (latency + both) / stages. The first tile has nobody to
    overlap with (prologue and epilogue). One stage gives the sum, many give the maximum.
    """
    tiles = max(tiles, 1.0)
    compute, memory = compute_s / tiles, memory_s / tiles
    alone = latency_s + memory + compute
    return (tiles - 1.0) * max(compute, memory, alone / stages) + alone
