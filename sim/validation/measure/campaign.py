"""Working through a list of problems: skip what is known, time the rest, keep each result, stop in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sim.validation.measure.problems import Problem
from sim.validation.measure.record import Measurement, Record, from_seconds
from sim.validation.measure.timing import Pace, Run, Stopwatch, measure


class Bench(Protocol):
    """A machine that can run problems."""

    watch: Stopwatch

    def prepare(self, problem: Problem) -> tuple[Run, int]:
        """What runs the problem, and how many launches of it that is. Raises when it cannot be run here."""

    def clocks(self) -> dict[str, float]:
        """What the device says of its clocks and power now."""


@dataclass
class Campaign:
    """Measures problems on a bench into a record, within a budget of seconds on the given clock."""

    bench: Bench
    record: Record
    clock: Callable[[], float]
    pace: Pace = field(default_factory=Pace)
    on_progress: Callable[[int, int, Measurement], None] = lambda done, total, latest: None

    def run(self, problems: Sequence[Problem], environment: dict[str, Any], budget_s: float) -> list[Measurement]:
        """Measure what the record lacks; everything it then holds.

        A problem that fails is recorded with its error and not tried again. No problem is begun after the budget.
        """
        found = self.record.open(environment)
        known = {one.key for one in found}
        until = self.clock() + budget_s
        for done, problem in enumerate(problems):
            if problem.key in known:
                continue
            if self.clock() >= until:
                break
            latest = self._measure(problem)
            self.record.append(latest)
            found.append(latest)
            self.on_progress(done + 1, len(problems), latest)
        return found

    def _measure(self, problem: Problem) -> Measurement:
        try:
            run, launches = self.bench.prepare(problem)
            timing = measure(run, launches, self.bench.watch, self.pace)
        except Exception as error:  # one kernel that cannot run must not cost the others
            text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            return Measurement(problem.table, problem.columns, error=text)
        return from_seconds(problem, timing.seconds, timing.spread, timing.repeats, self.bench.clocks())
