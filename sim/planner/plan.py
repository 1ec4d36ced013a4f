"""A capacity plan: the question as it is asked, and everything that answers it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sim.errors import ConfigError
from sim.planner.costs import Costs, costs_of
from sim.planner.executors import Executor
from sim.planner.options import Option, Search, options_of
from sim.planner.search import Candidate, Found, search
from sim.planner.sizing import Question, Sizing, survey
from sim.planner.study import Study, Wish, call, observe, study
from sim.planner.traffic import Traffic, traffic_of
from sim.planner.trial import Base, Outcome
from sim.scenario import LoadedScenario

Progress = Callable[[str, int, int], None]
"""Hears what is being done, how many parts of it are done, and of how many."""


@dataclass(frozen=True)
class Request:
    """What is asked of a plan."""

    base: Base
    hardware: tuple[str, ...] = ()
    """Profiles to choose from; empty: the scenario's."""
    search: Search = field(default_factory=Search)
    rate: float | None = None
    """Requests per second; None: those of the traffic, at its busiest."""
    headroom: float = 0.0
    """Share by which the fleet is sized for more than the rate."""
    spare: int = 0
    """Replicas that may fail: the fleet holds its objectives without them."""
    seeds: int = 3
    horizon_s: float = 120.0
    most_gpus: int = 1024
    draws: int = 10
    curves: bool = True


@dataclass(frozen=True)
class EqualLoad:
    """One replica of each option at the same rate per GPU: latency where nobody is near the edge."""

    rate_per_gpu: float
    outcomes: Mapping[str, tuple[Outcome, ...]]
    """By the keys of `Plan.studies`, seed by seed."""


@dataclass(frozen=True)
class Plan:
    """The answer."""

    request: Request
    scenario: LoadedScenario
    traffic: Traffic
    found: Found
    studies: Mapping[str, Study]
    """By GPU: the option that needs fewest."""
    costs: Mapping[str, Costs]
    equal_load: EqualLoad | None = None
    """The same fleets' replicas side by side, where that was asked for."""

    @property
    def slo(self) -> Mapping[str, float]:
        """The objectives."""
        return self.scenario.scenario.slo

    @property
    def rate(self) -> float | None:
        """Planned requests per second, without head-room."""
        return self.traffic.rate

    @property
    def cheapest(self) -> Study | None:
        """The lowest price per hour; None where nothing holds, or nothing has a price."""
        return self._of(self.found.cheapest)

    @property
    def smallest(self) -> Study | None:
        """The fewest GPUs."""
        return self._of(self.found.smallest)

    @property
    def winner(self) -> Study | None:
        """The cheapest; the smallest where there are no prices."""
        return self.cheapest or self.smallest

    def _of(self, candidate: Candidate | None) -> Study | None:
        number = None if candidate is None else candidate.option.number
        return next((one for one in self.studies.values() if one.candidate.option.number == number), None)

    def costs_of(self, one: Study) -> Costs:
        """What a studied fleet costs."""
        return next(self.costs[key] for key, other in self.studies.items() if other is one)

    def name_of(self, one: Study) -> str:
        """GPU and settings in a few words."""
        option = one.candidate.option
        return f"{option.hardware}, {option.label}"

    @property
    def nearest(self) -> tuple[Candidate, dict[str, float]] | None:
        """Where nothing holds: the option that comes closest, and objectives that it does hold. None: nothing runs.

        Those that are met are kept; those that are missed are raised to what was observed, rounded up.
        """
        if self.found.best:
            return None
        failed = [
            (worst, c, limits)
            for c in self.found.candidates
            if c.sizing is not None and c.sizing.outcomes
            for worst, limits in [_loosened(c.sizing.outcomes)]
            if worst < math.inf
        ]
        if not failed:
            return None
        _, candidate, limits = min(failed, key=lambda item: (item[0], item[1].option.number))
        return candidate, limits


def _loosened(outcomes: Sequence[Outcome]) -> tuple[float, dict[str, float]]:
    """By what factor the worst objective is missed, and objectives that would be held."""
    worst, limits = 1.0, dict[str, float]()
    if all(line["met"] for outcome in outcomes for line in outcome.summary["slo"]):
        return math.inf, {}  # it fails for another reason
    for line in (line for outcome in outcomes for line in outcome.summary["slo"]):
        observed = line["observed_ms"]
        if observed is None:
            return math.inf, {}
        worst = max(worst, observed / line["limit_ms"])
        needed = line["limit_ms"] if line["met"] else _rounded_up(observed)
        key = f"{line['metric'].replace('e2el', 'e2e')}_{line['statistic']}_ms"
        limits[key] = max(limits.get(key, 0.0), needed)
    return worst, limits


def _rounded_up(value: float) -> float:
    digit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / digit) * digit:.6g}")


def make_plan(request: Request, executor: Executor, on_progress: Progress = lambda what, done, total: None) -> Plan:
    """Search, then study the best option of each GPU. Raises ConfigError for a question that cannot be asked.

    A plan without a fleet (`winner` is None) is an answer, too: its candidates say why.
    """
    loaded, traffic, question, options = _asked(request)
    found = search(question, options, executor, lambda done, total: on_progress("searching", done, total))
    wish = Wish(traffic.rate, request.spare, request.draws, request.curves)
    studies = study(question, found.best, wish, executor, lambda done, total: on_progress("studying", done, total))
    return _answered(request, loaded, traffic, found, studies)


def fleet_capacity(
    request: Request, replicas: int, executor: Executor, on_progress: Progress = lambda what, done, total: None
) -> Plan:
    """The other way round: what so many replicas of the scenario (on each GPU asked for) can hold.

    The plan's rate is that of the traffic; `Study.capacity` is the answer. Raises ConfigError for traffic without a
    rate.
    """
    loaded, traffic, question, options = _asked(request)
    if traffic.rate is None:
        raise ConfigError("asks for a rate, but this traffic has none: clients or the batch set the pace",
                          key="--replicas", value=replicas)  # fmt: skip
    best: dict[str, Candidate] = {}
    candidates = []
    for option in options:
        candidate = Candidate(option, survey((question, option.overrides)))
        if not candidate.survey.problem:
            candidate = replace(candidate, sizing=Sizing(replicas))
            best.setdefault(f"{option.hardware}, {option.label}", candidate)
        candidates.append(candidate)
    wish = Wish(traffic.rate, 0, request.draws, request.curves, sizes=False)
    studies = study(question, best, wish, executor, lambda done, total: on_progress("studying", done, total))
    return _answered(request, loaded, traffic, Found(tuple(candidates), best), studies)


def at_equal_load(plan: Plan, executor: Executor) -> Plan:
    """The plan with a replica of each option at half the lowest of their highest rates per GPU."""
    rates = [one.capacity / (one.gpus - one.spare * one.candidate.survey.gpus)
             for one in plan.studies.values() if one.capacity is not None]  # fmt: skip
    if not rates:
        return plan
    rate = min(rates) / 2
    _, _, question, _ = _asked(plan.request)
    tasks = [
        (observe, (question, one.candidate.option.overrides, 1, rate * one.candidate.survey.gpus, seed))
        for one in plan.studies.values() for seed in question.seeds
    ]  # fmt: skip
    answers: dict[int, Any] = dict(executor.run(call, tasks))
    outcomes = {
        key: tuple(answers[i * len(question.seeds) + j] for j in range(len(question.seeds)))
        for i, key in enumerate(plan.studies)
    }
    return replace(plan, equal_load=EqualLoad(rate, outcomes))


def _asked(request: Request) -> tuple[LoadedScenario, Traffic, Question, list[Option]]:
    loaded = request.base.load({})
    if loaded.scenario.pools is not None:
        raise loaded.document.error(("pools",), "cannot be planned: plans count replicas that are alike")
    if not loaded.scenario.slo:
        raise ConfigError("a plan needs objectives: --slo ttft_p99=500ms,tpot_p99=50ms, or slo in the scenario",
                          key="--slo")  # fmt: skip
    traffic = traffic_of(loaded, rate=request.rate, horizon_s=request.horizon_s)
    hardware = request.hardware or (loaded.scenario.hardware,)
    options = options_of(loaded, list(dict.fromkeys(hardware)), request.search)
    for option in options:
        request.base.load(option.overrides)  # keys that do not exist are mistakes, not options that fail
    first = loaded.scenario.seed
    seeds = tuple(range(first, first + request.seeds))
    sized_for = None if traffic.rate is None else traffic.rate * (1 + request.headroom)
    question = Question(request.base, traffic, sized_for, seeds, request.most_gpus)
    return loaded, traffic, question, _with_stages(question, options)


_TP, _PP = "engine.tensor_parallel_size", "engine.pipeline_parallel_size"
_STAGES = (2, 3, 4, 6, 8)


def _with_stages(question: Question, options: Sequence[Option]) -> list[Option]:
    """The options, and several nodes as pipeline stages for a model that fits no single one."""
    found = list(options)
    for hardware in dict.fromkeys(option.hardware for option in options):
        mine = [option for option in options if option.hardware == hardware]
        largest = [o for o in mine if o.settings.get(_TP) == mine[0].gpu.gpus_per_node and not o.settings.get(_PP)]
        if any(not survey((question, option.overrides)).problem for option in largest):
            continue
        for option in largest:
            for stages in _STAGES:
                more = replace(option, number=len(found), settings={**option.settings, _PP: stages})
                if not survey((question, more.overrides)).problem:
                    found.append(more)
                    break
    return found


def _answered(
    request: Request, loaded: LoadedScenario, traffic: Traffic, found: Found, studies: Mapping[str, Study]
) -> Plan:
    tariff = loaded.scenario.cost
    rate = None if traffic.per_session else traffic.rate
    costs = {key: costs_of(one, tariff, rate) for key, one in studies.items()}
    return Plan(request, loaded, traffic, found, studies, costs)
