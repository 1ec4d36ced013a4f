"""What a latency is made of: seconds per operator class and counts of host work, on the schedule that was simulated.

A request's latency is the sum of the steps that pass while it is under way. As long as the schedule stays, it is linear
in the engine's parameters, so that one simulation serves a whole fit. In closed loops and queues the schedule hardly
depends on how fast everything is; elsewhere the fit goes on from a new simulation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sim.breakdown import shape_of
from sim.cost.calibrated_kernels import op_class
from sim.cost.scaled_kernels import CLASSES
from sim.cost.step_timer import StepPricer
from sim.request import State
from sim.results import RunResult, Table
from sim.setup import Setup
from sim.units import PS_PER_S
from sim.validation.serving.case import Floats, Part

FILTER = "top-k/top-p filter"
KERNELS = (*CLASSES, FILTER)
"""What a step's time on the GPU is divided into."""
STEP_COUNTS = ("step_s", "sequence_s", "token_s")
REQUEST_COUNTS = ("request_s", "prompt_token_s")
NAMES = (*KERNELS, *STEP_COUNTS, *REQUEST_COUNTS, "rest")
"""Columns of shares: seconds for kernels and for time in which no step ran; for host work how often its time counts."""
_SAMPLES = 100

Shares = Mapping[str, Floats]
"""`ttft`, `e2e` and `tpot` (means over requests), `itl` (over tokens) and `duration`, each by NAMES."""


@dataclass(frozen=True)
class _Meter:
    """Cumulated shares of a replica's steps at any moment."""

    moments_ps: Floats
    sums: Floats

    def between(self, start_ps: Floats, end_ps: Floats) -> Floats:
        """Shares of the steps between moments, one row per pair."""
        found = np.zeros((len(start_ps), len(NAMES)))
        for column in range(self.sums.shape[1]):
            at = self.sums[:, column]
            found[:, column] = np.interp(end_ps, self.moments_ps, at) - np.interp(start_ps, self.moments_ps, at)
        return found


def shares_of(setup: Setup, result: RunResult, parts: tuple[Part, ...]) -> tuple[Shares, ...]:
    """Per part of a case, what its mean latencies and its duration consist of; nothing where no request completed."""
    if not len(result.steps):
        return tuple({} for _ in parts)
    meter, front = _meter(setup, result.steps), _front_end(setup, result.requests)
    return tuple(_shares(meter, front, setup.engine.host, result.requests, part) for part in parts)


def total(shares: Floats, host: Mapping[str, float], factors: Mapping[str, float] | None = None) -> float:
    """The seconds that shares come to: host times as given, kernels slower by `factors` (1 where none is given)."""
    weights = [host.get(name, 1.0 if factors is None else factors.get(name, 1.0)) for name in NAMES]
    return float(shares @ np.array(weights))


def _shares(meter: _Meter, front: Floats, host: Mapping[str, float], table: Table, part: Part) -> Shares:
    number, done = table["request_id"], table["state"] == State.COMPLETED
    chosen = done & (number >= part.first) & (number < part.last)
    if not chosen.any():
        return {}
    arrival, first, finish = (
        table[name][chosen].astype(float) for name in ("arrival_ps", "first_token_ps", "finish_ps")
    )
    gaps, costs = table["output_tokens"][chosen] - 1, np.array([host[name] for name in REQUEST_COUNTS])
    ttft = meter.between(arrival + (front[chosen] @ costs) * PS_PER_S, first)
    ttft[:, len(KERNELS) + len(STEP_COUNTS) : -1] = front[chosen]
    after = meter.between(first, finish)
    for rows, length in ((ttft, first - arrival), (after, finish - first)):
        rows[:, -1] = length / PS_PER_S - rows @ _weights(host)
    duration = meter.between(arrival.min(keepdims=True), finish.max(keepdims=True))[0]
    duration[-1] = (finish.max() - arrival.min()) / PS_PER_S - duration @ _weights(host)
    found = {"ttft": ttft.mean(axis=0), "e2e": (ttft + after).mean(axis=0), "duration": duration}
    several = gaps > 0
    if several.any():
        found["tpot"] = (after[several] / gaps[several, None]).mean(axis=0)
        found["itl"] = after[several].sum(axis=0) / gaps[several].sum()
    return found


def _weights(host: Mapping[str, float]) -> Floats:
    return np.array([*(1.0 for _ in KERNELS), *(host[name] for name in (*STEP_COUNTS, *REQUEST_COUNTS)), 0.0])


def _front_end(setup: Setup, table: Table) -> Floats:
    """How often each request waits for `request_s` and `prompt_token_s` on its way to a scheduler."""
    host = setup.engine.host
    token_s = host["prompt_token_s"]
    waits = np.zeros((len(table), len(REQUEST_COUNTS)))
    waits[:, 0] = 1.0
    if token_s:
        free = 0.0
        arrivals, tokens = table["arrival_ps"] / PS_PER_S, table["prompt_tokens"]
        for i in np.lexsort((table["request_id"], arrivals)):
            free = max(free, arrivals[i]) + token_s * tokens[i]
            waits[i, 1] = (free - arrivals[i]) / token_s
    return waits


def _meter(setup: Setup, steps: Table) -> _Meter:
    """Each step's time, divided as in the nearest of some steps that are priced operator by operator."""
    host, stages = setup.engine.host, setup.engine.layout.pp
    n = steps["steps"].astype(float)
    length = (n * steps["first_step_ps"] + steps["slope_ps"] * (n * (n - 1) / 2)) / PS_PER_S
    sampled = (steps["decodes"] + steps["prefill_sequences"]) * n
    tokens = (steps["decodes"] * n) + steps["prefill_tokens"]
    counts = np.stack([n * stages, sampled, tokens], axis=1)
    on_gpu = length - counts @ np.array([host[name] for name in STEP_COUNTS])
    sums = np.concatenate([_divided(setup.timer, steps, on_gpu), counts], axis=1).cumsum(axis=0)
    starts = steps["start_ps"].astype(float)
    moments = np.stack([starts, starts + length * PS_PER_S], axis=1).ravel()
    before = np.concatenate([np.zeros((1, sums.shape[1])), sums[:-1]])
    return _Meter(np.maximum.accumulate(moments), np.stack([before, sums], axis=1).reshape(len(moments), -1))


def _divided(timer: StepPricer, steps: Table, seconds: Floats) -> Floats:
    """Seconds of each row by operator class: the fractions of sampled rows, with and without prompts apart."""
    found = np.zeros((len(seconds), len(KERNELS)))
    mixed = steps["prefill_sequences"] > 0
    for kind in (mixed, ~mixed):
        rows = np.flatnonzero(kind)
        if len(rows):
            passed = seconds[rows].cumsum()
            at = np.unique(np.searchsorted(passed, (np.arange(_SAMPLES) + 0.5) / _SAMPLES * passed[-1]))
            chosen = rows[np.minimum(at, len(rows) - 1)]
            fractions = np.array([_fractions(timer, steps, int(row)) for row in chosen])
            for column in range(len(KERNELS)):
                found[rows, column] = seconds[rows] * np.interp(rows, chosen, fractions[:, column])
    return found


def _fractions(timer: StepPricer, steps: Table, row: int) -> Floats:
    found = dict.fromkeys(KERNELS, 0.0)
    for op in timer.explain(shape_of(timer, {name: int(column[row]) for name, column in steps.columns.items()})):
        name = op.name if op.name == FILTER else op_class(op.name)
        if name is not None:
            found[name] += op.seconds
    return np.array(list(found.values())) / sum(found.values())
