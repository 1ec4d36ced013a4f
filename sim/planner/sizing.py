"""How many replicas one option needs, and which rate so many hold: bisection over simulations of the whole fleet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sim.errors import ConfigError
from sim.planner.bounds import LeastWork, least_work
from sim.planner.traffic import Traffic
from sim.planner.trial import Base, Bench, Outcome, bench_of

_GROWTH = 1.5
GRID_STEP = 1.02
"""Rates are searched on the grid 1.02^k, so that two questions about one fleet get comparable answers."""
_LOWEST, _HIGHEST = -470, 700  # 1.02^k: from 1 request in 3 hours to a million per second
_BELOW, _ABOVE = 35, 25  # of the grid: half, and 1.6 times
_IDLE_SHARE = 0.02
"""Of its time that a replica works when it counts as idle."""


@dataclass(frozen=True)
class Survey:
    """What is known of an option before anything is simulated."""

    problem: str = ""
    """Why it cannot be built; empty when it can."""
    gpus: int = 0
    """Of one replica."""
    work: LeastWork | None = None
    least_replicas: int = 1
    num_blocks: int = 0
    trust: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """What is asked of every option."""

    base: Base
    traffic: Traffic
    rate: float | None
    """Requests per second that the fleet must hold, head-room included; None: the traffic's own pace."""
    seeds: tuple[int, ...]
    most_gpus: int


@dataclass(frozen=True)
class Sizing:
    """How many replicas an option needs."""

    replicas: int | None
    """None: no fleet will do, or none that would be better than what is known already."""
    outcomes: tuple[Outcome, ...] = ()
    """Of that fleet, seed by seed; without one, of the fleet that failed."""
    reason: str = ""
    beaten: bool = False
    """Whether a larger fleet was not tried because it could not win."""
    simulations: int = 0
    tried: Mapping[int, bool] = field(default_factory=dict)
    """Fleet sizes simulated, and whether they held."""


def survey(task: tuple[Question, Mapping[str, Any]]) -> Survey:
    """Build an option, and bound what it can do."""
    question, overrides = task
    traffic = question.traffic
    try:
        setup = bench_of(question.base, overrides).build(traffic.at(question.rate))
        work = least_work(setup)
    except ConfigError as error:
        return Survey(problem=error.problem)
    requests = float(setup.workload.num_requests or 1)
    span_s = traffic.span_s(question.rate)
    return Survey(
        "", setup.engine.layout.gpus, work, work.replicas(requests, span_s), setup.num_blocks, setup.kernels.trust,
        setup.notes,
    )  # fmt: skip


def size(task: tuple[Question, Mapping[str, Any], Survey, int | None]) -> Sizing:
    """The fewest replicas that hold the objectives with every seed; more than `cap` need not be tried."""
    question, overrides, known, cap = task
    return _Fleet(question, overrides, known).smallest(cap)


class _Fleet:
    """Simulated fleets of one option, each size once."""

    def __init__(
        self, question: Question, overrides: Mapping[str, Any], known: Survey,
        factors: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        self._question, self._known = question, known
        self._bench = (
            bench_of(question.base, overrides) if factors is None else Bench(question.base, overrides, factors)
        )
        self._before = self._bench.simulations
        self._traffic = question.traffic.at(question.rate)
        self._outcomes: dict[int, tuple[Outcome, ...]] = {}

    def holds(self, replicas: int) -> bool:
        """Whether so many replicas hold the objectives with every seed; the first seed that fails is enough."""
        if replicas not in self._outcomes:
            found: list[Outcome] = []
            for seed in self._question.seeds:
                outcome = self._bench.run(self._traffic, replicas=replicas, rate=self._question.rate, seed=seed)
                found.append(outcome)
                if not outcome.holds:
                    break
            self._outcomes[replicas] = tuple(found)
        return all(outcome.holds for outcome in self._outcomes[replicas])

    def smallest(self, cap: int | None, start: int | None = None) -> Sizing:
        """Bisection between a fleet that fails and one that holds: more replicas never hold less."""
        most = max(1, self._question.most_gpus // self._known.gpus)
        low = self._known.least_replicas if start is None else start
        if low > most:
            return self._none(f"needs more than {self._question.most_gpus} GPUs", beaten=False)
        if cap is not None:
            if not self.holds(cap):
                why = self._outcomes[cap][-1].why_not
                return self._none(f"{cap} replicas: {why}", beaten=True, outcomes=self._outcomes[cap])
            return self._between(low - 1, cap)
        idle = self._idle()
        if idle is not None and not idle.holds:
            return self._none(f"even idle: {idle.why_not}", beaten=False, outcomes=(idle,))
        failed, here = low - 1, low
        while not self.holds(here):
            if here >= most:
                why = self._outcomes[here][-1].why_not
                return self._none(f"{here} replicas: {why}", beaten=False, outcomes=self._outcomes[here])
            failed, here = here, min(most, max(here + 1, math.ceil(here * _GROWTH)))
        return self._between(failed, here)

    def _between(self, failed: int, held: int) -> Sizing:
        while held - failed > 1:
            middle = (failed + held) // 2
            if self.holds(middle):
                held = middle
            else:
                failed = middle
        return Sizing(
            held, self._outcomes[held], simulations=self._bench.simulations - self._before, tried=self._tried()
        )

    def _idle(self) -> Outcome | None:
        """One replica with hardly anything to do: what no fleet can improve on. None where traffic has no rate."""
        question, work = self._question, self._known.work
        if question.rate is None or work is None:
            return None
        rate = _IDLE_SHARE / work.alone_s
        return self._bench.run(question.traffic.at(min(rate, question.rate)), replicas=1, rate=rate,
                               seed=question.seeds[0])  # fmt: skip

    def _none(self, reason: str, *, beaten: bool, outcomes: tuple[Outcome, ...] = ()) -> Sizing:
        return Sizing(None, outcomes, reason, beaten, self._bench.simulations - self._before, self._tried())

    def _tried(self) -> dict[int, bool]:
        return {n: all(outcome.holds for outcome in found) for n, found in sorted(self._outcomes.items())}


def nearby(
    question: Question, overrides: Mapping[str, Any], known: Survey, replicas: int, factors: Mapping[str, float]
) -> tuple[int | None, Outcome]:
    """The fewest replicas when operator times are off by `factors`, searched from `replicas` on; and how those do."""
    fleet = _Fleet(question, overrides, known, factors)
    least = replicas
    if fleet.holds(replicas):
        while least > 1 and fleet.holds(least - 1):
            least -= 1
        return least, fleet._outcomes[replicas][0]
    most = max(replicas + 1, 2 * replicas)
    found = next((n for n in range(replicas + 1, most + 1) if fleet.holds(n)), None)
    return found, fleet._outcomes[replicas][0]


def highest_rate(
    question: Question, overrides: Mapping[str, Any], known: Survey, replicas: int,
    factors: Mapping[str, float] | None = None, near: float | None = None,
) -> float | None:  # fmt: skip
    """The highest rate of the grid 1.02^k that so many replicas hold with every seed; None when even the lowest fails.

    Bisection over k with fixed ends: a looser objective never lowers the answer. Rates beyond what the least work per
    request allows are not simulated. `near` narrows the search to half and 1.6 times that rate.
    """
    if question.rate is None or known.work is None:
        return None
    bench = bench_of(question.base, overrides) if factors is None else Bench(question.base, overrides, factors)
    traffic, work = question.traffic, known.work

    def holds(k: int) -> bool:
        rate = GRID_STEP**k
        if factors is None and work.replicas(traffic.requests(rate), traffic.span_s(rate)) > replicas:
            return False
        return all_hold(bench, traffic.at(rate), replicas, rate, question.seeds)

    centre = None if near is None else round(math.log(near, GRID_STEP))
    low, high = (_LOWEST, _HIGHEST) if centre is None else (centre - _BELOW, centre + _ABOVE)
    ends = low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return GRID_STEP**low if low > ends else None


def all_hold(bench: Bench, traffic: Mapping[str, Any], replicas: int, rate: float | None, seeds: Sequence[int]) -> bool:
    """Whether the fleet holds its objectives with every seed; it stops at the first that fails."""
    return all(bench.run(traffic, replicas=replicas, rate=rate, seed=seed).holds for seed in seeds)
