"""What is worth knowing of a fleet once it is found: how sure, how far from the edge, at what cost, and what limits it.

Every part is an independent simulation, so that an executor can run them side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sim.breakdown import breakdown
from sim.cost.calibrated_kernels import class_errors
from sim.cost.shape import RunShape
from sim.cost.uncertainty import draw_factors
from sim.planner.executors import Executor, WorkersDied
from sim.planner.search import Candidate
from sim.planner.sizing import Question, Survey, highest_rate, nearby
from sim.planner.trial import Bench, Outcome, bench_of
from sim.planner.vllm_serve import vllm_serve
from sim.results import RunResult
from sim.rng import stream
from sim.run import run_setup
from sim.setup import Setup
from sim.units import PS_PER_S

LOADS = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5)
"""Rates of the curves, as shares of the highest that the fleet holds."""


@dataclass(frozen=True)
class Anatomy:
    """What one replica is made of and what its time goes into, at the planned load."""

    bounds: Mapping[str, float]
    """Share of the busy time by what bounds it: compute, memory, link, launch, host."""
    communication: float
    """Share of the busy time in transfers between GPUs, including waiting for their latency."""
    answer_token_s: float
    """Time of a replica per answer token: a decode step over the sequences in it."""
    prompt_token_s: float
    """Time of a replica per prompt token: what it adds to a step."""
    memory: Mapping[str, int]
    num_kv_tokens: int
    command: tuple[str, ...]
    command_notes: tuple[str, ...]


@dataclass(frozen=True)
class CurvePoint:
    """The fleet at one rate, over the seeds."""

    rate: float
    outcomes: tuple[Outcome, ...]

    def mean(self, name: str) -> float:
        """Mean over the seeds of a number of the summary; NaN where one has none."""
        return float(np.mean(self.values(name)))

    def values(self, name: str) -> list[float]:
        """Seed by seed."""
        return [float("nan") if (v := o.summary[name]) is None else float(v) for o in self.outcomes]


@dataclass(frozen=True)
class Draw:
    """The fleet with operator times off by one draw from their errors, under traffic of another seed."""

    outcome: Outcome
    """At the planned rate, all replicas running."""
    least_replicas: int | None
    """The fewest that hold; None: more than twice as many."""
    capacity: float | None
    """The highest rate that the planned replicas hold; None: less than half of what they do as predicted."""


@dataclass(frozen=True)
class Study:
    """All of it, of one candidate."""

    candidate: Candidate
    replicas: int
    """Spare ones included."""
    spare: int
    anatomy: Anatomy
    observed: tuple[Outcome, ...]
    """At the planned rate with every replica running, seed by seed."""
    capacity: float | None
    """The highest rate that the replicas hold without the spare ones, to 2 %; None where traffic has no rate."""
    curve: tuple[CurvePoint, ...] = ()
    draws: tuple[Draw, ...] = field(default=())
    sized: bool = True
    """Whether the number of replicas was searched; false where it was given."""

    @property
    def gpus(self) -> int:
        """Of the whole fleet."""
        return self.replicas * self.candidate.survey.gpus

    @property
    def confidence(self) -> float | None:
        """Share of the draws in which the fleet, without its spare replicas, holds its objectives."""
        needed = self.replicas - self.spare
        if not self.sized:
            return None
        held = [draw.least_replicas is not None and draw.least_replicas <= needed for draw in self.draws]
        return float(np.mean(held)) if held else None

    def interval(self, name: str, level: float = 0.9) -> tuple[float, float] | None:
        """Of a number of the summary at the planned rate, over draws and seeds; None where nothing was repeated."""
        values = [o.summary[name] for o in (*self.observed, *(d.outcome for d in self.draws))]
        known = [float(v) for v in values if v is not None]
        if len(known) < 2:
            return None
        tail = (1 - level) / 2
        low, high = np.quantile(known, [tail, 1 - tail])
        return float(low), float(high)

    def capacity_interval(self, level: float = 0.9) -> tuple[float, float] | None:
        """Of the highest rate, over prediction and draws; one that holds less than half of it counts as half."""
        if self.capacity is None or not self.draws:
            return None
        found = [self.capacity, *(self.capacity / 2 if d.capacity is None else d.capacity for d in self.draws)]
        tail = (1 - level) / 2
        low, high = np.quantile(found, [tail, 1 - tail])
        return float(low), float(high)

    def least_replicas_interval(self, level: float = 0.9) -> tuple[int, int | None] | None:
        """Fewest replicas over the draws, spare ones added; None at the upper end: more than twice as many."""
        if not self.draws or not self.sized:
            return None
        found = sorted(10**9 if d.least_replicas is None else d.least_replicas for d in self.draws)
        tail = (1 - level) / 2
        low, high = np.quantile(found, [tail, 1 - tail], method="closest_observation")
        return int(low) + self.spare, None if high >= 10**9 else int(high) + self.spare


@dataclass(frozen=True)
class Wish:
    """How much of a study is wanted."""

    rate: float | None
    """Planned requests per second, head-room not included."""
    spare: int = 0
    draws: int = 0
    curves: bool = True
    sizes: bool = True
    """Whether a draw asks how many replicas it takes; false where their number is given."""


Part = tuple[Callable[..., Any], tuple[Any, ...]]


def study(
    question: Question, found: Mapping[str, Candidate], wish: Wish, executor: Executor,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Study]:  # fmt: skip
    """A study of each candidate, by the same keys. Raises RuntimeError when a part could not be computed at all."""
    capacities = _run({(key,): (highest_rate, (question, *_known(c), _held(c))) for key, c in found.items()}, executor)
    parts: dict[tuple[Any, ...], Part] = {}
    for key, candidate in found.items():
        option, _ = _known(candidate)
        fleet = _held(candidate) + wish.spare
        parts[key, "anatomy"] = (anatomy, (question, option, fleet, wish.rate))
        for seed in question.seeds:
            parts[key, "observed", seed] = (observe, (question, option, fleet, wish.rate, seed))
            if wish.curves and capacities[key,] is not None:
                for load in LOADS:
                    rate = load * capacities[key,]
                    parts[key, "curve", load, seed] = (observe, (question, option, _held(candidate), rate, seed))
        for i in range(wish.draws):
            parts[key, "draw", i] = (drawn, (question, candidate, wish, capacities[key,], i))
    answers = _run(parts, executor, on_progress)
    return {key: _assembled(key, c, wish, question, capacities[key,], answers) for key, c in found.items()}


def _assembled(
    key: str, candidate: Candidate, wish: Wish, question: Question, capacity: float | None,
    answers: Mapping[tuple[Any, ...], Any],
) -> Study:  # fmt: skip
    seeds = question.seeds
    curve: tuple[CurvePoint, ...] = ()
    if wish.curves and capacity is not None:
        curve = tuple(
            CurvePoint(load * capacity, tuple(answers[key, "curve", load, seed] for seed in seeds)) for load in LOADS
        )
    return Study(
        candidate, _held(candidate) + wish.spare, wish.spare, answers[key, "anatomy"],
        tuple(answers[key, "observed", seed] for seed in seeds), capacity, curve,
        tuple(answers[key, "draw", i] for i in range(wish.draws)), wish.sizes,
    )  # fmt: skip


def _held(candidate: Candidate) -> int:
    if candidate.sizing is None or candidate.sizing.replicas is None:
        raise ValueError(f"{candidate.option.hardware} has no fleet to study")
    return candidate.sizing.replicas


def _known(candidate: Candidate) -> tuple[Mapping[str, Any], Survey]:
    return candidate.option.overrides, candidate.survey


def _run(
    parts: Mapping[tuple[Any, ...], Part], executor: Executor,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[tuple[Any, ...], Any]:  # fmt: skip
    keys, answers = list(parts), {}
    for i, answer in executor.run(call, list(parts.values())):
        if isinstance(answer, WorkersDied):
            raise RuntimeError(f"{keys[i]}: {answer}")
        answers[keys[i]] = answer
        on_progress(len(answers), len(keys))
    return answers


def call(part: Part) -> Any:
    """A function and its arguments, as a task of an executor."""
    function, arguments = part
    return function(*arguments)


def observe(question: Question, option: Mapping[str, Any], replicas: int, rate: float | None, seed: int) -> Outcome:
    """One fleet at one rate."""
    return bench_of(question.base, option).run(question.traffic.at(rate), replicas=replicas, rate=rate, seed=seed)


def drawn(question: Question, candidate: Candidate, wish: Wish, capacity: float | None, i: int) -> Draw:
    """Repetition `i`: its own traffic, and one factor per operator class from the errors of the calibration."""
    (option, known), replicas, seed = _known(candidate), _held(candidate), question.seeds[0]
    setup = bench_of(question.base, option).build(question.traffic.at(question.rate))
    factors = draw_factors(class_errors(setup.kernels, setup.timer.forward), stream(seed, "uncertainty", i))
    question = replace(question, seeds=(seed + i,))
    held = None
    if capacity is not None:
        held = highest_rate(question, option, known, replicas, factors, capacity)
    if not wish.sizes:
        traffic = question.traffic.at(wish.rate)
        outcome = Bench(question.base, option, factors).run(traffic, replicas=replicas, rate=wish.rate, seed=seed + i)
        return Draw(outcome, None, held)
    least, outcome = nearby(question, option, known, replicas, factors)
    if wish.spare or wish.rate != question.rate:
        bench, traffic = Bench(question.base, option, factors), question.traffic.at(wish.rate)
        outcome = bench.run(traffic, replicas=replicas + wish.spare, rate=wish.rate, seed=seed + i)
    return Draw(outcome, least, held)


def anatomy(question: Question, option: Mapping[str, Any], replicas: int, rate: float | None) -> Anatomy:
    """What the time and memory of a replica go into, from one simulation at the planned load."""
    traffic = {**question.traffic.at(rate), "replicas.count": replicas, "seed": question.seeds[0]}
    setup = bench_of(question.base, option).build(traffic)
    result = run_setup(setup)
    bounds, communication = _shares(setup, result)
    answer_s, prompt_s = _token_seconds(setup, result)
    words, notes = vllm_serve(setup)
    block_size = setup.engine.kv_cache["block_size"]
    return Anatomy(bounds, communication, answer_s, prompt_s, setup.memory.as_dict(), setup.num_blocks * block_size,
                   tuple(words), tuple(notes))  # fmt: skip


_TRANSFERS = ("all-reduce", "gather", "scatter", "hand-over")


def _shares(setup: Setup, result: RunResult) -> tuple[dict[str, float], float]:
    rows = breakdown(setup.timer, result.steps)
    total = sum(row["seconds"] for row in rows) or 1.0
    shares: dict[str, float] = {}
    for row in rows:
        shares[row["bound"]] = shares.get(row["bound"], 0.0) + row["seconds"] / total
    moving = sum(row["seconds"] for row in rows if any(word in row["operator"] for word in _TRANSFERS))
    return dict(sorted(shares.items(), key=lambda item: -item[1])), moving / total


def _token_seconds(setup: Setup, result: RunResult) -> tuple[float, float]:
    """Seconds of a replica per answer token and per prompt token, at the mean batch of the run's decode steps."""
    steps = result.steps
    decoding = steps["decodes"] > 0
    weights = steps["steps"][decoding].astype(np.float64)
    if not len(weights):
        return _chunk_s(setup, 0, 0, 1), _chunk_s(setup, 0, 0, 1)
    decodes = max(1, round(float(np.average(steps["decodes"][decoding], weights=weights))))
    contexts = steps["context_tokens"][decoding] / steps["decodes"][decoding]
    context = round(float(np.average(contexts, weights=weights)))
    chunk = max(16, min(setup.engine.max_num_batched_tokens - decodes, 1024))
    alone, beside = _chunk_s(setup, decodes, context, 0), _chunk_s(setup, decodes, context, chunk)
    return alone / decodes, (beside - alone) / chunk


def _chunk_s(setup: Setup, decodes: int, context: int, chunk: int) -> float:
    """A step of decodes and one prompt chunk."""
    spans = setup.timer.spans
    seen = [decodes * span.visible(context) for span in spans]
    chunks = [(0, chunk)] if chunk else []
    shape = RunShape(decodes, decodes * context, chunks, seen, [decodes] * len(spans))
    total_ps: int = setup.timer.run(shape, 1).total_ps
    return total_ps / PS_PER_S
