"""Timing work that runs behind the host's back: warm up, repeat between marks in the stream, take the median."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

Run = Callable[[], None]


class Stopwatch(Protocol):
    """Points in the stream of a device's work, and the time between them."""

    def mark(self) -> Any:
        """A point after everything that has been launched so far."""

    def seconds(self, start: Any, end: Any) -> float:
        """Device time between two marks; waits until the later one has been passed."""


@dataclass(frozen=True)
class Pace:
    """How long one measurement may take: warm-up, and then as many repeats as fit, within limits."""

    warm_up_s: float = 0.01
    measure_s: float = 0.03
    fewest: int = 5
    most: int = 100


@dataclass(frozen=True)
class Timing:
    """The median time of one launch, how far single repeats lay apart, and how many there were."""

    seconds: float
    spread: float
    repeats: int


def measure(run: Run, launches: int, watch: Stopwatch, pace: Pace) -> Timing:
    """Time `run`, which issues so many launches of the same size; the result is per launch.

    `spread` is the distance between the tenth and ninetieth percentile over the median. Repeats are timed one by one,
    between marks that do not wait for each other, so the device is never idle between them.
    """
    each = _warm_up(run, watch, pace)
    repeats = max(pace.fewest, min(pace.most, round(pace.measure_s / max(each, 1e-9))))
    marks = [watch.mark()]
    for _ in range(repeats):
        run()
        marks.append(watch.mark())
    times = [watch.seconds(start, end) for start, end in itertools.pairwise(marks)]
    deciles = statistics.quantiles(times, n=10) if len(times) > 1 else times * 9
    middle = statistics.median(times)
    return Timing(middle / launches, (deciles[8] - deciles[0]) / middle if middle else 0.0, repeats)


def _warm_up(run: Run, watch: Stopwatch, pace: Pace) -> float:
    """Run until the clocks are up; seconds of one run at the end of it."""
    spent, each = 0.0, 0.0
    for _ in range(pace.most):
        start = watch.mark()
        run()
        each = watch.seconds(start, watch.mark())
        spent += each
        if spent >= pace.warm_up_s:
            break
    return each


def copies_to_outgrow(cache_bytes: float, set_bytes: float, most: int = 64) -> int:
    """Sets of operands to rotate through so that none is left in a cache when its turn comes again: twice its size."""
    return max(1, min(most, -(-2 * int(cache_bytes) // max(int(set_bytes), 1))))
