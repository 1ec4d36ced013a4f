"""Where the time went, by operator and by what bounds it: derived afterwards from the recorded shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.cost.shape import NOTHING_SHARED, Chunk, RunShape
from sim.cost.step_timer import StepPricer
from sim.cost.vision_timer import VisionTimer
from sim.results import Table

_SAMPLES = 400
_SHAPE_COLUMNS = ("decodes", "context_tokens", "steps", "prefill_sequences", "prefill_tokens", "prefill_pairs",
                  "kv_shared_blocks", "first_step_ps")  # fmt: skip


def breakdown(timer: StepPricer, steps: Table, block_tokens: int = 0) -> list[dict[str, Any]]:
    """Seconds per operator and bound, over all steps of a run; the largest first.

    `block_tokens` of the KV cache says how many tokens are shared, where attention makes use of that.

    Up to 400 steps, spread evenly over the busy time, are priced again with the breakdown, and each speaks for an
    equal share of that time.
    """
    seconds: dict[tuple[str, str], float] = {}
    for shape, share_s in sampled_steps(timer, steps, block_tokens):
        ops = timer.explain(shape)
        scale = share_s / sum(op.seconds for op in ops)
        for op in ops:
            key = op.name, op.cost.bound
            seconds[key] = seconds.get(key, 0.0) + op.seconds * scale
    ordered = sorted(seconds.items(), key=lambda item: (-item[1], item[0]))
    return [{"operator": name, "bound": bound, "seconds": value} for (name, bound), value in ordered]


def sampled_steps(timer: StepPricer, steps: Table, block_tokens: int = 0) -> Iterator[tuple[RunShape, float]]:
    """Shapes of up to 400 steps, spread evenly over the busy time, and the seconds of it that each speaks for."""
    total_ps = 0.0
    for ends in _ends_of_busy_time(steps):
        total_ps = float(ends[-1])
    samples = min(_SAMPLES, len(steps))
    for row, times in _rows_at(steps, (np.arange(samples) + 0.5) * total_ps / max(samples, 1)):
        shape = shape_of(timer, row, block_tokens)
        if isinstance(timer, VisionTimer):  # rows count no images: the step's time says how many there were
            shape.images = timer.images_in(shape, row["first_step_ps"])
        yield shape, total_ps / 1e12 * times / samples


def _ends_of_busy_time(steps: Table) -> Iterator[npt.NDArray[np.float64]]:
    """Busy time of all replicas up to the end of each row, in picoseconds, batch by batch."""
    passed = 0.0
    for batch in steps.batches(("steps", "first_step_ps", "slope_ps")):
        n = batch["steps"].astype(np.int64)
        length = n * batch["first_step_ps"] + batch["slope_ps"] * (n * (n - 1) // 2)
        ends = np.cumsum(np.append(passed, length.astype(float)))[1:]
        passed = ends[-1]
        yield ends


def _rows_at(steps: Table, moments: npt.NDArray[np.float64]) -> Iterator[tuple[Mapping[str, int], int]]:
    """The rows in progress at some moments (ascending) of the busy time, and at how many of them."""
    for ends, batch in zip(_ends_of_busy_time(steps), steps.batches(_SHAPE_COLUMNS), strict=True):
        here, moments = np.split(moments, [np.searchsorted(moments, ends[-1], side="right")])
        for row, times in zip(*np.unique(np.searchsorted(ends, here), return_counts=True), strict=True):
            yield {name: int(batch[name][row]) for name in _SHAPE_COLUMNS}, int(times)


def shape_of(timer: StepPricer, row: Mapping[str, int], block_tokens: int = 0) -> RunShape:
    """The row's middle step; several chunks are taken as equal ones, and so are the contexts and what they share."""
    decodes, chunks = row["decodes"], row["prefill_sequences"]
    context = row["context_tokens"] + decodes * (row["steps"] // 2)
    pieces: list[Chunk] = []
    if chunks:
        new = max(1, row["prefill_tokens"] // chunks)
        pairs = row["prefill_pairs"] / chunks
        pieces = [(max(0, round((pairs - new * (new + 1) / 2) / new)), new)] * chunks
    seen = [decodes * span.visible(context // decodes) if decodes else 0 for span in timer.spans]
    stored = min(row["kv_shared_blocks"] * block_tokens // max(1, decodes - 1), context // max(1, decodes))
    shared = (stored, stored * decodes) if decodes > 1 else NOTHING_SHARED
    return RunShape(decodes, context, pieces, seen, [decodes] * len(seen), shared)
