"""A small cost model and small workloads for tests of the engine: strange on purpose, and quick."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sim.cost.shape import RunShape
from sim.cost.step_times import Piece, StepTimes
from sim.request import Request


class ToyTimer:
    """Decode time is piecewise affine in the total context, with kinks every `cell` tokens; chunks cost by pairs.

    A coarse `tick_ps` makes all durations multiples of it, so that steps and arrivals often fall on one instant.
    """

    def __init__(self, tick_ps: int = 1, cell: int = 64) -> None:
        self.tick_ps, self.cell = tick_ps, cell

    def duration(self, decodes: int, context: int, chunks: list[tuple[int, int]]) -> int:
        """Of one step."""
        ticks = 3 + 2 * (decodes > 0) + decodes // 3 + sum(n + n * cached // 50 for cached, n in chunks)
        if decodes:
            first, slope = self._knot(context // self.cell)
            ticks += first + slope * (context % self.cell)
        return ticks * self.tick_ps

    def _knot(self, i: int) -> tuple[int, int]:
        value = lambda j: 5 * j + (j * j) % 7  # noqa: E731
        return self.cell * value(i), max(0, value(i + 1) - value(i))

    def run(self, shape: RunShape, max_steps: int) -> StepTimes:
        """As many steps as asked for, one piece per cell."""
        chunks = [tuple(c) for c in shape.chunks]
        pieces: list[Piece] = []
        done = total = 0
        context = shape.context_tokens
        while done < max_steps:
            first = self.duration(shape.decodes, context, chunks)
            slope = self._knot(context // self.cell)[1] * shape.decodes * self.tick_ps if shape.decodes else 0
            steps = 1 if chunks else -(-(self.cell - context % self.cell) // shape.decodes)
            steps = min(steps, max_steps - done)
            slope = slope if steps > 1 else 0
            pieces.append((done, total, first, slope, steps))
            total += steps * first + slope * (steps * (steps - 1) // 2)
            done, context = done + steps, context + steps * shape.decodes
            if chunks:
                break
        return StepTimes(done, total, pieces)


@dataclass
class ListWorkload:
    """Given requests, and follow-ups made by a function of (request, now)."""

    requests: list[Request]
    follow_up: Callable[[Request, int], Request | None] = lambda request, now: None
    notes: tuple[str, ...] = ()
    has_prefixes: bool = False
    ended: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def on_finish(self, request: Request, now_ps: int) -> Iterable[Request]:
        """One follow-up or none; remembers who ended, in order."""
        self.ended.append(request.id)
        following = self.follow_up(request, now_ps)
        return () if following is None else (following,)

    @property
    def num_requests(self) -> int:
        """As many as were given."""
        return len(self.requests)

    def describe(self) -> dict[str, Any]:
        """Only that it is a list."""
        return {"kind": "list"}
