"""Two runs side by side, metric by metric, and whether the first is close enough to the second."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.errors import ConfigError
from sim.imports.measured import MeasuredRun, number, sort_key

HEADLINE = (
    "request_throughput",
    "output_throughput",
    "mean_ttft_ms",
    "median_ttft_ms",
    "mean_tpot_ms",
    "median_tpot_ms",
    "mean_e2el_ms",
    "median_e2el_ms",
)
"""What a gate looks at unless told otherwise. No tails: between repetitions of one measurement the p99 of TTFT moves by
up to a factor of three, means of E2E and TPOT by 1-2 % (repeated runs of vLLM 0.15.1, inference-sim/training)."""

_SETTINGS = {
    "model": "model",
    "hardware": "hardware",
    "request_rate": "request rate",
    "max_concurrency": "concurrency",
    "num_prompts": "number of requests",
    "burstiness": "burstiness",
}
_SAME_LENGTHS = 0.02


@dataclass(frozen=True)
class MetricRow:
    """One metric that both runs report, in the metric's own unit.

    `difference` is b - a; `ratio` is a / b and `error_pct` = 100 (a - b) / b: the error of a taken as a prediction of
    b, positive when a is too high. Both are None where b is 0 and a is not.
    """

    metric: str
    a: float
    b: float

    @property
    def difference(self) -> float:
        """b - a."""
        return self.b - self.a

    @property
    def ratio(self) -> float | None:
        """a / b."""
        if self.b == 0:
            return 1.0 if self.a == 0 else None
        return self.a / self.b

    @property
    def error_pct(self) -> float | None:
        """100 (a - b) / |b|, signed."""
        if self.b == 0:
            return 0.0 if self.a == 0 else None
        return 100.0 * (self.a - self.b) / abs(self.b)


@dataclass(frozen=True)
class Comparison:
    """The metrics two runs share, those that only one reports, and what a reader must know before judging them."""

    a: MeasuredRun
    b: MeasuredRun
    rows: tuple[MetricRow, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    notes: tuple[str, ...]

    def select(self, metrics: Sequence[str]) -> tuple[MetricRow, ...]:
        """The rows of the metrics named, in that order. Raises ConfigError for one that the runs do not share."""
        rows = {row.metric: row for row in self.rows}
        for metric in metrics:
            if metric in self.only_a or metric in self.only_b:
                lacks = self.b if metric in self.only_a else self.a
                raise ConfigError("is not reported by this run", file=lacks.path, key=metric)
            if metric not in rows:
                raise ConfigError("no such metric in either run", key="metrics", value=metric, choices=rows)
        return tuple(rows[metric] for metric in metrics)

    def exceeding(self, max_error_pct: float, metrics: Sequence[str] = ()) -> tuple[MetricRow, ...]:
        """The rows whose error is above the bound in size: of `metrics`, by default of the headline metrics shared.

        Raises ConfigError when there is nothing to judge: a gate that looked at nothing must not pass.
        """
        rows = self.select(metrics) if metrics else tuple(row for row in self.rows if row.metric in HEADLINE)
        if not rows:
            shared = (row.metric for row in self.rows)
            raise ConfigError("the runs share no headline metric; choose some", key="metrics", choices=shared)
        return tuple(row for row in rows if row.error_pct is None or abs(row.error_pct) > max_error_pct)


def compare_runs(a: MeasuredRun, b: MeasuredRun) -> Comparison:
    """Hold run `a` (usually simulated) against run `b` (usually measured).

    Raises ConfigError when they share no metric. Settings that differ (model, rate, number of requests, token lengths)
    are no error, they are named in `notes`.
    """
    shared = sorted(a.metrics.keys() & b.metrics.keys(), key=sort_key)
    if not shared:
        raise ConfigError(f"shares no metric with {b.path}", file=a.path)
    return Comparison(
        a,
        b,
        tuple(MetricRow(metric, a.metrics[metric], b.metrics[metric]) for metric in shared),
        _only(a.metrics, b.metrics),
        _only(b.metrics, a.metrics),
        (*_different_settings(a, b), *_different_lengths(a, b), *_own_notes(a, b)),
    )


def _only(one: Iterable[str], other: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(one) - set(other), key=sort_key))


def _different_settings(a: MeasuredRun, b: MeasuredRun) -> list[str]:
    notes = []
    for key, name in _SETTINGS.items():
        mine, theirs = a.meta.get(key), b.meta.get(key)
        if mine is not None and theirs is not None and not _same(key, mine, theirs):
            notes.append(f"the {name} differs: {_show(mine)} against {_show(theirs)}")
    return notes


def _same(key: str, mine: Any, theirs: Any) -> bool:
    if isinstance(mine, (int, float)) and isinstance(theirs, (int, float)):
        return mine == theirs or math.isclose(mine, theirs, rel_tol=1e-3)
    if key == "model":  # an id, or a path that ends in the model's name
        mine, theirs = (str(value).rstrip("/").rsplit("/", 1)[-1].lower() for value in (mine, theirs))
    return bool(mine == theirs)


def _different_lengths(a: MeasuredRun, b: MeasuredRun) -> list[str]:
    notes = []
    for key, name in (("total_input_tokens", "input"), ("total_output_tokens", "output")):
        mine, theirs = _per_request(a.metrics, key), _per_request(b.metrics, key)
        if mine is None or theirs is None or math.isclose(mine, theirs, rel_tol=_SAME_LENGTHS):
            continue
        notes.append(f"the mean {name} length differs: {mine:.1f} against {theirs:.1f} tokens per completed request")
    return notes


def _per_request(metrics: Mapping[str, float], key: str) -> float | None:
    total, completed = number(metrics.get(key)), number(metrics.get("completed"))
    return total / completed if total is not None and completed else None


def _own_notes(a: MeasuredRun, b: MeasuredRun) -> list[str]:
    return list(dict.fromkeys(f"{run.kind}: {note}" for run in (a, b) for note in run.notes))


def _show(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
