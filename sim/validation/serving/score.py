"""Predicted against measured: one line per metric of every part, and what they amount to by group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.validation.serving.case import Case
from sim.validation.serving.predict import Predicted

GROUPS = ("gpu", "class", "engine", "regime")


@dataclass(frozen=True)
class Scored:
    """One metric of one part of a case. Times are in ms; `regime` is what was predicted, `actual_regime` measured."""

    case: Case
    stage: int
    metric: str
    predicted: float
    actual: float
    regime: str
    actual_regime: str

    @property
    def ape(self) -> float:
        """Absolute error in per cent of the measurement."""
        return abs(self.error)

    @property
    def error(self) -> float:
        """Signed error in per cent of the measurement, positive when the prediction is too high."""
        return 100.0 * (self.predicted / self.actual - 1.0)

    @property
    def labels(self) -> Mapping[str, str]:
        """What the line can be grouped by."""
        return {**self.case.labels, "table": self.case.table, "regime": self.actual_regime}

    def as_json(self) -> dict[str, Any]:
        """The line as files hold it."""
        return {
            "id": self.case.id, "table": self.case.table, "stage": self.stage, "metric": self.metric,
            "predicted": self.predicted, "actual": self.actual, "ape": self.ape, "regime": self.regime,
            "actual_regime": self.actual_regime, "doubt": self.case.doubt,
            **{key: self.case.labels.get(key, "") for key in ("gpu", "model", "class", "engine")},
        }  # fmt: skip


@dataclass(frozen=True)
class Line:
    """Errors of one metric over a group, in per cent."""

    table: str
    group: str
    name: str
    metric: str
    n: int
    mean: float
    median: float
    p90: float
    bias: float

    def as_json(self) -> dict[str, Any]:
        """The line as files hold it."""
        return {
            "table": self.table, "by": self.group, "group": self.name, "metric": self.metric, "n": self.n,
            "mean_ape": self.mean, "median_ape": self.median, "p90_ape": self.p90, "bias": self.bias,
        }  # fmt: skip


def score(pairs: Iterable[tuple[Case, Predicted]]) -> list[Scored]:
    """Every metric that was both measured and predicted."""
    found = []
    for case, predicted in pairs:
        regimes = _regime(case, predicted.overloaded), _regime(case, case.overloaded)
        for part, values in zip(case.parts, predicted.parts, strict=False):
            found += [
                Scored(case, part.stage, metric, value, part.measured[metric], *regimes)
                for metric, value in values.items()
            ]
    return found


def summarise(scored: Sequence[Scored], by: str) -> list[Line]:
    """Errors by table, by the values of one label (`by`; "all" for none) and by metric."""
    groups: dict[tuple[str, str, str], list[Scored]] = {}
    for line in scored:
        groups.setdefault((line.case.table, line.labels.get(by, "all"), line.metric), []).append(line)
    return [_line(table, by, name, metric, lines) for (table, name, metric), lines in groups.items()]


def comparable(line: Scored) -> bool:
    """Whether the figures say something about a server.

    Those of an overloaded run measure the client's patience, and some contradict themselves.
    """
    case = line.case
    return (
        line.actual_regime != "overloaded"
        and not case.doubt
        and not (case.doubted_metrics and line.metric.startswith(case.doubted_metrics))
    )


def failed(pairs: Iterable[tuple[Case, Predicted]], suspect: bool) -> dict[str, dict[str, list[str]]]:
    """Table -> reason -> ids of the rows without a prediction; rows marked as suspect apart from the others."""
    found: dict[str, dict[str, list[str]]] = {}
    for case, predicted in pairs:
        if predicted.problem and case.suspect is suspect:
            found.setdefault(case.table, {}).setdefault(predicted.problem, []).append(case.id)
    return found


def doubted(pairs: Iterable[tuple[Case, Predicted]]) -> dict[str, dict[str, list[str]]]:
    """Table -> reason -> ids of the rows that are predicted, but whose figures contradict themselves."""
    found: dict[str, dict[str, list[str]]] = {}
    for case, predicted in pairs:
        if case.doubt and not predicted.problem:
            found.setdefault(case.table, {}).setdefault(case.doubt, []).append(case.id)
    return found


def coverage(pairs: Sequence[tuple[Case, Predicted]]) -> dict[str, tuple[int, int]]:
    """Table -> (rows predicted, rows that should be): suspect rows do not count."""
    counts: dict[str, tuple[int, int]] = {}
    for case, predicted in pairs:
        if not case.suspect:
            done, total = counts.get(case.table, (0, 0))
            counts[case.table] = done + (not predicted.problem), total + 1
    return counts


def _regime(case: Case, overloaded: bool | None) -> str:
    if overloaded is not None:
        return "overloaded" if overloaded else "stable"
    client = case.traffic.client if case.traffic is not None else ""
    return {"closed_loop": "closed loop", "at_once": "all at once"}.get(client, "")


def _line(table: str, by: str, name: str, metric: str, lines: Sequence[Scored]) -> Line:
    apes, errors = [line.ape for line in lines], [line.error for line in lines]
    return Line(
        table,
        by,
        name,
        metric,
        len(lines),
        float(np.mean(apes)),
        float(np.median(apes)),
        float(np.percentile(apes, 90)),
        float(np.median(errors)),
    )
