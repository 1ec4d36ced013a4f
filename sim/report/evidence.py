"""Everything a report draws on, worked out once from the tables of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sim.latencies import LatencySamples, Sample
from sim.metrics import summarise
from sim.results import RunResult
from sim.series import Series, series_of


@dataclass(frozen=True)
class Evidence:
    """A run, its summary, its latency samples and its series over time."""

    result: RunResult
    summary: Mapping[str, Any]
    samples: Mapping[str, Sample]
    series: Series

    @classmethod
    def of(cls, result: RunResult) -> Evidence:
        """The costly part of a report: one pass over every token gap and every step."""
        samples, series = LatencySamples(result), series_of(result)
        return cls(result, summarise(result, samples, series), samples, series)

    @property
    def slo_limits_ms(self) -> dict[str, list[tuple[str, float]]]:
        """Metric -> (statistic, limit) of the objectives on it."""
        limits: dict[str, list[tuple[str, float]]] = {}
        for line in self.summary["slo"]:
            limits.setdefault(line["metric"], []).append((line["statistic"], line["limit_ms"]))
        return limits
