"""The best option: branch and bound over configurations, with bounds that leave out nothing that could win."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sim.planner.executors import Executor, WorkersDied
from sim.planner.options import Option
from sim.planner.sizing import Question, Sizing, Survey, size, survey

_WAVE = 4
"""Options sized side by side. Fixed, so that the answer and its table depend on no machine."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Candidate:
    """An option and what became of it."""

    option: Option
    survey: Survey
    sizing: Sizing | None = None
    """None: not simulated, because it cannot be built or its bound rules it out."""
    pruned: str = ""
    """Why it was left out without a simulation of its own."""

    @property
    def gpus(self) -> int | None:
        """Of the whole fleet; None where there is none."""
        sizing = self.sizing
        return None if sizing is None or sizing.replicas is None else sizing.replicas * self.survey.gpus

    @property
    def usd_per_hour(self) -> float | None:
        """Of the fleet at the usual price."""
        price = self.option.price
        return None if price is None or self.gpus is None else self.gpus * price.mid

    @property
    def why_not(self) -> str:
        """Why this option has no fleet; empty when it has."""
        if self.survey.problem or self.pruned:
            return self.survey.problem or self.pruned
        return "" if self.sizing is None else self.sizing.reason


@dataclass(frozen=True)
class Found:
    """All candidates of a search, and the best of each GPU."""

    candidates: tuple[Candidate, ...]
    best: Mapping[str, Candidate] = field(default_factory=dict)

    @property
    def simulations(self) -> int:
        """How many fleets were simulated."""
        return sum(c.sizing.simulations for c in self.candidates if c.sizing is not None)

    @property
    def smallest(self) -> Candidate | None:
        """The fewest GPUs; among equals the cheapest, then the first."""
        return min(self.best.values(), key=_by_gpus, default=None)

    @property
    def cheapest(self) -> Candidate | None:
        """The lowest price per hour; among equals the fewest GPUs. None where no price is known."""
        priced = [c for c in self.best.values() if c.usd_per_hour is not None]
        return min(priced, key=_by_price, default=None)


def _by_gpus(candidate: Candidate) -> tuple[float, float, int]:
    usd = candidate.usd_per_hour
    return float(candidate.gpus or 0), float("inf") if usd is None else usd, candidate.option.number


def _by_price(candidate: Candidate) -> tuple[float, int, int]:
    return candidate.usd_per_hour or 0.0, candidate.gpus or 0, candidate.option.number


def search(
    question: Question, options: Sequence[Option], executor: Executor, on_progress: Progress = lambda done, total: None
) -> Found:
    """For every GPU the option that needs fewest of it; on one GPU that is the cheapest, too.

    Options are sized in the order of their bounds, GPU by GPU. One that could not beat the best so far, even with as
    few replicas as its bound allows, is pruned; any other is asked at once whether the largest fleet that would still
    beat the best holds, and only then how much smaller it may be.
    """
    done = 0

    def count(number: int = 1) -> None:
        nonlocal done
        done += number
        on_progress(done, 2 * len(options))

    surveys: dict[int, Survey] = {}
    for i, answer in executor.run(survey, [(question, option.overrides) for option in options]):
        surveys[i] = Survey(problem=str(answer)) if isinstance(answer, WorkersDied) else answer
        count()
    candidates: dict[int, Candidate] = {o.number: Candidate(o, surveys[i]) for i, o in enumerate(options)}
    best: dict[str, Candidate] = {}
    for hardware in dict.fromkeys(option.hardware for option in options):
        mine = [c for c in candidates.values() if c.option.hardware == hardware]
        finished = _search_one(question, mine, executor, count)
        candidates |= {c.option.number: c for c in finished}
        winner = min((c for c in finished if c.gpus is not None), key=_by_gpus, default=None)
        if winner is not None:
            best[hardware] = winner
    return Found(tuple(candidates.values()), best)


def _search_one(
    question: Question, candidates: Sequence[Candidate], executor: Executor, count: Callable[[int], None]
) -> list[Candidate]:
    """All options of one GPU."""
    finished = [c for c in candidates if c.survey.problem]
    todo = sorted((c for c in candidates if not c.survey.problem), key=_least)
    count(len(finished))
    best: Candidate | None = None
    while todo:
        wave: list[tuple[Candidate, int | None]] = []
        while todo and len(wave) < (_WAVE if best is not None else 1):
            candidate = todo.pop(0)
            cap = _cap(candidate, best)
            if cap is not None and cap < candidate.survey.least_replicas:
                finished.append(replace(candidate, pruned=_pruned(candidate)))
                count(1)
            else:
                wave.append((candidate, cap))
        tasks = [(question, c.option.overrides, c.survey, cap) for c, cap in wave]
        sized = dict(executor.run(size, tasks))
        for i, (candidate, _) in enumerate(wave):
            answer = sized[i]
            found = Sizing(None, reason=str(answer)) if isinstance(answer, WorkersDied) else answer
            ended = replace(candidate, sizing=found)
            finished.append(ended)
            count(1)
            if ended.gpus is not None and (best is None or _by_gpus(ended) < _by_gpus(best)):
                best = ended
    return finished


def _least(candidate: Candidate) -> tuple[int, int]:
    return candidate.survey.least_replicas * candidate.survey.gpus, candidate.option.number


def _cap(candidate: Candidate, best: Candidate | None) -> int | None:
    """The most replicas with which it would still beat the best: fewer GPUs, or as many and named before it."""
    if best is None or best.gpus is None:
        return None
    before = candidate.option.number < best.option.number
    return (best.gpus if before else best.gpus - 1) // candidate.survey.gpus


def _pruned(candidate: Candidate) -> str:
    least = candidate.survey.least_replicas * candidate.survey.gpus
    return f"at least {least} GPUs by its bound"
