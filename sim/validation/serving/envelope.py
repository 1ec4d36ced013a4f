"""From the errors of left-out runs to the envelope: what to expect of a run of a kind, and how often that holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from sim.trust import METRICS, Cell, Envelope, Errors, Traffic
from sim.validation.serving.case import WHOLE_RUN, Floats
from sim.validation.serving.score import Scored, comparable

_METRIC: Mapping[str, str] = {
    "ttft_mean": "ttft", "ttft": "ttft", "tpot_mean": "tpot", "tpot": "tpot", "e2e_mean": "e2e", "e2e_derived": "e2e",
    "out_tok_s": "throughput", "out_tok_s_gpu_derived": "throughput",
}  # fmt: skip
_TRAFFIC: Mapping[str, Traffic] = {"trace": "open loop", "closed_loop": "closed loop", "at_once": "all at once"}
_TAILS = (0.05, 0.95)
_BETWEEN = 2.0
"""Variance between models over that within one, in the intervals: so that they cover nine in ten of left-out runs."""
_NEXT_OF_KIN = {"vllm-0.15": "vllm-v1", "vllm-v1": "vllm-0.15"}
_FEWEST_VALUES, _FEWEST_MODELS = 20, 2
_LEVELS = ((0, 1, 2, 3), (0, 2, 3), (2, 3), (3,), ())
"""Parts of a kind (class, GPU, engine, traffic) that runs must share to speak for each other, the closest first."""

Kind = tuple[str, str, str, Traffic]


@dataclass(frozen=True)
class Point:
    """One metric of a left-out run: of what kind and model, and the logarithm of measured over predicted."""

    run: str
    kind: Kind
    model: str
    metric: str
    log_error: float


def points(scored: Sequence[Scored]) -> list[Point]:
    """The headline metrics of comparable lines; stages of a run rather than the whole where there are any."""
    staged = {(line.case.table, line.case.id) for line in scored if line.stage != WHOLE_RUN}
    found = []
    for line in scored:
        case, metric = line.case, _METRIC.get(line.metric)
        whole = line.stage == WHOLE_RUN and (case.table, case.id) in staged
        if metric is None or whole or not comparable(line) or case.traffic is None:
            continue
        scenario = case.scenario
        kind = (case.labels["class"], scenario["hardware"], scenario["engine"]["preset"], _TRAFFIC[case.traffic.client])
        error = float(np.log(line.actual / line.predicted))
        found.append(Point(f"{case.table} {case.id}", kind, case.labels["model"], metric, error))
    return found


def interval(known: Sequence[Point], kind: Kind, metric: str, without: str | None = None) -> tuple[float, float]:
    """The stated 90 % interval of log(measured / predicted) for a kind of run, from the runs most like it.

    Every model weighs alike. `without` leaves one out, to see how well the interval does on a model nobody measured.
    """
    others = [point for point in known if point.metric == metric and point.model != without]
    for level in _LEVELS:
        alike = [point for point in others if all(point.kind[i] == kind[i] for i in level)]
        if len(alike) >= _FEWEST_VALUES and len({point.model for point in alike}) >= _FEWEST_MODELS:
            return _quantiles(alike)
    return _quantiles(others)


def _quantiles(alike: Sequence[Point]) -> tuple[float, float]:
    values = np.array([point.log_error for point in alike])
    names = [point.model for point in alike]
    weights = np.array([1.0 / names.count(name) for name in names])
    order = np.argsort(values)
    passed = (weights[order].cumsum() - weights[order] / 2) / weights.sum()
    low, high = (float(np.interp(tail, passed, values[order])) for tail in _TAILS)
    # The next model is one more draw from what made these differ: few models show too little of that.
    wider = (high - low) / 2 * (math.sqrt(1.0 + _BETWEEN / len(set(names))) - 1.0)
    return low - wider, high + wider


def coverage(known: Sequence[Point]) -> dict[str, float]:
    """Metric -> share of left-out runs inside the interval that the other models state; `all` over the metrics."""
    hits: dict[str, list[bool]] = {}
    stated: dict[tuple[Kind, str, str], tuple[float, float]] = {}
    for point in known:
        key = point.kind, point.metric, point.model
        if key not in stated:
            stated[key] = interval(known, point.kind, point.metric, point.model)
        low, high = stated[key]
        hits.setdefault(point.metric, []).append(low <= point.log_error <= high)
    found = {metric: float(np.mean(hits[metric])) for metric in METRICS if metric in hits}
    return found | {"all": float(np.mean([hit for many in hits.values() for hit in many]))}


def envelope_of(known: Sequence[Point]) -> Envelope:
    """The table that labels of runs are read from."""
    kinds = sorted({point.kind for point in known})
    return Envelope(next_of_kin=_NEXT_OF_KIN, cells=tuple(_cell(known, kind) for kind in kinds))


def _cell(known: Sequence[Point], kind: Kind) -> Cell:
    own = [point for point in known if point.kind == kind]
    errors = {}
    for metric in METRICS:
        values = np.array([point.log_error for point in own if point.metric == metric])
        if len(values):
            errors[metric] = _errors(values, interval(known, kind, metric))
    model_class, gpu, engine, traffic = kind
    return Cell(
        model_class=model_class, gpu=gpu, engine=engine, traffic=traffic, runs=len({point.run for point in own}),
        models=len({point.model for point in own}), errors=errors,
    )  # fmt: skip


def _errors(log_errors: Floats, stated: tuple[float, float]) -> Errors:
    apes = 100.0 * np.abs(np.expm1(-log_errors))
    low, high = (round(value, 3) for value in stated)
    return Errors(
        runs=len(log_errors), median_pct=round(float(np.median(apes)), 1),
        p90_pct=round(float(np.percentile(apes, 90)), 1), log_error=(low, high),
    )  # fmt: skip


def save(table: Envelope, path: Path, command: str) -> None:
    """Write the table as package data."""
    head = f"# Errors of runs that were predicted without their own model. Written by `{command}`.\n"
    body = yaml.safe_dump(table.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=118)
    path.write_text(head + body, encoding="utf-8")
