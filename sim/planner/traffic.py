"""The traffic that a plan is made for: a scenario's own, at any rate, or the busiest stretch of a day."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sim.errors import ConfigError
from sim.scenario import LoadedScenario
from sim.units import PS_PER_S
from sim.workloads.arrivals import Constant, Renewal, Stages
from sim.workloads.builder import build_workload, find_trace
from sim.workloads.spec import WorkloadSpec
from sim.workloads.traces import read_trace
from sim.written_workload import written_workload

LEAST_REQUESTS = 1000
"""Of one simulation: a 99th percentile is then drawn from the ten slowest."""
_DAY_PARTS = 24


@dataclass(frozen=True)
class Day:
    """How the rate changes over a recorded or staged day: mean arrivals per second of equal parts."""

    part_s: float
    rates: tuple[float, ...]
    peak_at_s: float
    """Where the busiest stretch begins, which the plan is made for."""


@dataclass(frozen=True)
class Traffic:
    """Traffic whose rate can be changed; `rate` is None where clients or the batch set the pace."""

    rate: float | None
    overrides: Mapping[str, Any]
    """Keys of the scenario, `workload` included, that all rates share."""
    trace_rate: float | None = None
    """The recorded mean rate of the stretch that is replayed; None for traffic from laws."""
    horizon_s: float = 120.0
    day: Day | None = None
    per_session: bool = False
    """Whether the rate counts new sessions, each of several requests."""
    lengths_of_trace: bool = False
    """Whether a trace gives the lengths and a law the arrivals."""
    rows: int | None = None
    """How many requests a trace has in its stretch."""
    notes: tuple[str, ...] = field(default=())

    def at(self, rate: float | None) -> dict[str, Any]:
        """Overrides for a simulation at this rate, for so long that percentiles mean something.

        Arrivals of two rates with one seed are the same draws on another time scale: differences between simulations
        are those of the systems (common random numbers).
        """
        if rate is None or self.rate is None:
            return dict(self.overrides)
        requests = self.requests(rate)
        if self.lengths_of_trace:
            pace: dict[str, Any] = {"workload.arrival.rate": rate, "workload.max_requests": requests}
        elif self.trace_rate is not None:
            pace = {"workload.time_scale": self.trace_rate / rate, "workload.max_requests": requests}
        else:
            pace = {"workload.arrival.rate": rate, "workload.num_requests": requests, "workload.duration_s": None}
        return {**self.overrides, **pace}

    def requests(self, rate: float) -> int:
        """Requests of a simulation at this rate."""
        wanted = max(LEAST_REQUESTS, math.ceil(rate * self.horizon_s))
        return wanted if self.rows is None else min(wanted, self.rows)

    def span_s(self, rate: float | None) -> float:
        """Seconds from the first to the last arrival of such a simulation, about."""
        return 0.0 if rate is None or self.rate is None else self.requests(rate) / rate


def traffic_of(loaded: LoadedScenario, *, rate: float | None, horizon_s: float) -> Traffic:
    """The traffic of a scenario, at `rate` requests per second if that is said, else at its own (or its peak) rate.

    Raises ConfigError when a rate is asked for that the workload cannot have.
    """
    spec = written_workload(loaded).spec
    if spec.trace is not None and spec.arrival is None:
        return _recorded(loaded, spec, rate, horizon_s)
    arrival = spec.arrival
    if isinstance(arrival, Stages):
        return _staged(arrival, rate, horizon_s)
    if isinstance(arrival, (Renewal, Constant)):
        several = spec.sessions is not None
        notes = ("the rate is that of new sessions, each of several requests",) if several else ()
        return Traffic(
            arrival.rate if rate is None else rate, {}, horizon_s=horizon_s, per_session=several, notes=notes,
            lengths_of_trace=spec.trace is not None,
        )  # fmt: skip
    if rate is not None:
        kind = "trace" if arrival is None else arrival.kind
        raise ConfigError(f"means nothing for this traffic ({kind}): clients or the batch set the pace", key="--rate",
                          value=rate)  # fmt: skip
    return Traffic(None, {}, horizon_s=horizon_s)


def _staged(arrival: Stages, rate: float | None, horizon_s: float) -> Traffic:
    """The busiest stage, for as long as the horizon; a rate asked for is that of the peak."""
    busiest = max(range(len(arrival.stages)), key=lambda i: arrival.stages[i].rate)
    peak = arrival.stages[busiest]
    begins = sum(stage.duration_s for stage in arrival.stages[:busiest])
    scale = 1.0 if rate is None else rate / peak.rate
    ends = np.cumsum([stage.duration_s for stage in arrival.stages])
    part_s = float(ends[-1]) / _DAY_PARTS
    rates = []
    for i in range(_DAY_PARTS):
        sent = 0.0
        for stage, end in zip(arrival.stages, ends, strict=True):
            overlap = min(end, (i + 1) * part_s) - max(end - stage.duration_s, i * part_s)
            sent += stage.rate * max(0.0, float(overlap))
        rates.append(scale * sent / part_s)
    chosen = {"workload.arrival": {"kind": peak.kind, "rate": scale * peak.rate}}
    note = f"planned for the busiest of {len(arrival.stages)} stages, {scale * peak.rate:g} requests/s"
    return Traffic(scale * peak.rate, chosen, horizon_s=horizon_s, day=Day(part_s, tuple(rates), begins), notes=(note,))


def _recorded(loaded: LoadedScenario, spec: WorkloadSpec, rate: float | None, horizon_s: float) -> Traffic:
    """The busiest stretch of a trace, as long as the horizon; a rate asked for is that of the stretch."""
    written = written_workload(loaded)
    workload = build_workload(spec, seed=loaded.scenario.seed, beside=written.document.path)
    path = find_trace(str(spec.trace), beside=written.document.path)
    fixed = {"workload": {**spec.model_dump(mode="json", exclude_defaults=True), "trace": str(path.resolve())}}
    if not read_trace(path, seed=loaded.scenario.seed).timed:
        if rate is not None:
            raise ConfigError("the trace has no arrival times: give its workload an arrival", key="--rate", value=rate)
        return Traffic(None, fixed, horizon_s=horizon_s)
    times_s = np.array([request.arrival_ps for request in workload], dtype=np.float64) / PS_PER_S
    span_s = max(float(times_s[-1] - times_s[0]), 1e-9)
    some = min(LEAST_REQUESTS, len(times_s) - 1)
    stretch_s = min(span_s, max(horizon_s, float(np.min(times_s[some:] - times_s[: len(times_s) - some]))))
    counts = np.searchsorted(times_s, times_s + stretch_s) - np.arange(len(times_s))
    first = int(np.argmax(counts))
    peak_rate = float(counts[first]) / stretch_s
    # The trace's own clock: the spec's time_scale has been applied to what was read here.
    begins, ends = (spec.start_s + float(t) / spec.time_scale for t in (times_s[first], times_s[first] + stretch_s))
    stretch = {**fixed["workload"], "start_s": begins, "end_s": ends}
    wanted = peak_rate if rate is None else rate
    counts_by_part, _ = np.histogram(times_s - times_s[0], bins=_DAY_PARTS, range=(0.0, span_s))
    part_s = span_s / _DAY_PARTS
    day = Day(part_s, tuple(float(n) / part_s * wanted / peak_rate for n in counts_by_part), float(times_s[first]))
    note = f"planned for the busiest {stretch_s:,.0f} s of the trace, from {times_s[first]:,.0f} s on: " \
           f"{peak_rate:.3g} requests/s against {len(times_s) / span_s:.3g} on average"  # fmt: skip
    return Traffic(wanted, {"workload": stretch}, trace_rate=peak_rate * spec.time_scale, horizon_s=stretch_s, day=day,
                   rows=int(counts[first]), notes=(note,))  # fmt: skip
