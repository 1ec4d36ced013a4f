"""The durations of many like steps in closed form: exact integers, whatever the number of steps."""

from __future__ import annotations

import math
from typing import Protocol

from sim.cost.shape import RunShape

Piece = tuple[int, int, int, int, int]
"""(first step, start, first duration, slope, steps): steps whose durations form an arithmetic series.

Step i of the piece lasts `first duration + i * slope` picoseconds, i = 0 .. steps - 1; `start` counts from the start of
the run. A plain tuple, because every run makes one.
"""


class StepTimes:
    """The times of `steps` successive steps, as pieces. All times count from the start of the run."""

    __slots__ = ("pieces", "steps", "total_ps")

    def __init__(self, steps: int, total_ps: int, pieces: list[Piece]) -> None:
        self.steps, self.total_ps, self.pieces = steps, total_ps, pieces

    def end_of(self, steps: int) -> int:
        """When `steps` steps have ended (0 gives 0)."""
        if steps == self.steps:
            return self.total_ps
        first, start, a, b, _ = self.pieces[-1]
        if first <= steps < self.steps:  # mostly it is the last piece: at lead 1 a run is left one step before its end
            n = steps - first
            return start + n * a + b * (n * (n - 1) >> 1)
        for first, start, a, b, k in self.pieces:
            if steps <= first + k:
                n = steps - first
                return start + n * a + b * (n * (n - 1) >> 1)
        raise ValueError(f"the run has {self.steps} steps, not {steps}")

    def first_boundary(self, elapsed_ps: int) -> tuple[int, int]:
        """The first boundary at or after `elapsed_ps` (0 < elapsed <= total): (steps ended by then, its time)."""
        first = start = a = b = k = 0
        for first, start, a, b, k in self.pieces:  # noqa: B007 (the piece found is used below)
            if start + k * a + b * (k * (k - 1) >> 1) >= elapsed_ps:
                break
        else:
            raise ValueError(f"the run ends at {self.total_ps}, before {elapsed_ps}")
        d, c = elapsed_ps - start, 2 * a - b
        # The inverse of the series in floats, corrected in integers: exact at any size.
        j = int((math.sqrt(c * c + 8.0 * b * d) - c) / (2 * b)) if b else d // a
        if j < 1:
            j = 1
        elif j > k:
            j = k
        t = j * a + b * (j * (j - 1) >> 1)
        while t < d:
            t += a + b * j
            j += 1
        while j > 1 and t - (a + b * (j - 1)) >= d:
            j -= 1
            t -= a + b * j
        return first + j, start + t

    def ended_by(self, elapsed_ps: int) -> int:
        """How many steps have ended at or before `elapsed_ps`."""
        if elapsed_ps <= 0:
            return 0
        if elapsed_ps >= self.total_ps:
            return self.steps
        steps, time = self.first_boundary(elapsed_ps)
        return steps if time == elapsed_ps else steps - 1


def one_step(duration_ps: int) -> StepTimes:
    """A run of a single step."""
    return StepTimes(1, duration_ps, [(0, 0, duration_ps, 0, 1)])


class StepTimer(Protocol):
    """Prices steps. The engine calls `run` for every plan; it is the hot path of the program."""

    def run(self, shape: RunShape, max_steps: int) -> StepTimes:
        """Durations of at least one and at most `max_steps` steps, beginning with `shape`.

        A shape with chunks is one step. Within a run, contexts grow as `RunShape` says and nothing else changes.
        The answer must not depend on how a run is cut: the second step of a run lasts as long as the first step of
        a run that begins with the grown shape.
        """
        ...
