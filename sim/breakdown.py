"""Where the time went, by operator and by what bounds it: derived afterwards from the recorded shapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.cost.shape import Chunk, RunShape
from sim.cost.step_timer import RooflineStepTimer
from sim.results import Table

_SAMPLES = 400


def breakdown(timer: RooflineStepTimer, steps: Table) -> list[dict[str, Any]]:
    """Seconds per operator and bound, over all steps of a run; the largest first.

    Up to 400 steps, spread evenly over the busy time, are priced again with the breakdown, and each speaks for an
    equal share of that time.
    """
    if not len(steps):
        return []
    n = steps["steps"].astype(np.int64)
    length = n * steps["first_step_ps"] + steps["slope_ps"] * (n * (n - 1) // 2)
    ends = np.cumsum(length.astype(float))
    total_s = float(ends[-1]) / 1e12
    samples = min(_SAMPLES, len(steps))
    rows = np.searchsorted(ends, (np.arange(samples) + 0.5) * ends[-1] / samples)
    seconds: dict[tuple[str, str], float] = {}
    for row, times in zip(*np.unique(rows, return_counts=True), strict=True):
        ops = timer.explain(_shape(timer, steps, int(row)))
        scale = total_s * int(times) / samples / sum(op.seconds for op in ops)
        for op in ops:
            key = op.name, op.cost.bound
            seconds[key] = seconds.get(key, 0.0) + op.seconds * scale
    ordered = sorted(seconds.items(), key=lambda item: (-item[1], item[0]))
    return [{"operator": name, "bound": bound, "seconds": value} for (name, bound), value in ordered]


def _shape(timer: RooflineStepTimer, steps: Table, row: int) -> RunShape:
    """The row's middle step; several chunks are taken as equal ones, and so are the contexts."""
    decodes, chunks = int(steps["decodes"][row]), int(steps["prefill_sequences"][row])
    context = int(steps["context_tokens"][row]) + decodes * (int(steps["steps"][row]) // 2)
    pieces: list[Chunk] = []
    if chunks:
        new = max(1, int(steps["prefill_tokens"][row]) // chunks)
        pairs = int(steps["prefill_pairs"][row]) / chunks
        pieces = [(max(0, round((pairs - new * (new + 1) / 2) / new)), new)] * chunks
    seen = [decodes * span.visible(context // decodes) if decodes else 0 for span in timer.spans]
    return RunShape(decodes, context, pieces, seen, [decodes] * len(seen))
