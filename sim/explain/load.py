"""A scenario under more or less traffic, and the most that it serves within its objectives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sim.build import build, with_traffic
from sim.errors import ConfigError
from sim.metrics import summarise
from sim.run import run_setup
from sim.scenario import LoadedScenario, load_scenario
from sim.setup import Setup
from sim.units import PS_PER_S
from sim.workloads.arrivals import ClosedLoop, Stages
from sim.workloads.spec import WorkloadSpec

Settings = Mapping[str, Any]

DEFAULT_SLO: Settings = {"ttft_p99_ms": 2000.0, "tpot_p99_ms": 200.0}
"""Where a scenario states no objectives: those of MLPerf Inference 4.0 for Llama-2-70B in the server scenario."""
_PRECISION = 1.03
_FIRST_STRIDE, _FARTHEST = 1.25, 2.0**10
_MOST_REQUESTS = 20_000
"""Of one probe, however much traffic it is."""
_FAILURES = 0.01


@dataclass(frozen=True)
class Case:
    """A scenario and settings on top of it, as `--set` would make them. What it resolves to is worked out once."""

    source: str | Path | Mapping[str, Any]
    settings: Settings = field(default_factory=dict)
    requests: int | None = None
    """End the traffic of `run` after so many requests at its own load, if it would be longer."""
    like: Setup | None = field(default=None, compare=False, repr=False)
    """Of another case, from which this one differs in traffic alone: servers need not be built again."""

    def __reduce__(self) -> tuple[Any, ...]:
        """To other processes without what has been worked out."""
        return Case, (self.source, self.settings, self.requests)

    def having(self, settings: Settings) -> Case:
        """The same case with further settings."""
        return Case(self.source, {**self.settings, **settings}, self.requests)

    @cached_property
    def _as_given(self) -> LoadedScenario:
        return load_scenario(self.source, self.settings)

    @property
    def given_slo(self) -> bool:
        """Whether the scenario states objectives of its own."""
        return bool(self._as_given.scenario.slo)

    @cached_property
    def loaded(self) -> LoadedScenario:
        """The scenario with all settings, objectives included."""
        if self.given_slo:
            return self._as_given
        return load_scenario(self.source, {**self.settings, "slo": dict(DEFAULT_SLO)})

    @cached_property
    def setup(self) -> Setup:
        """Everything it resolves to. Raises ConfigError for what cannot run."""
        return self.fresh_setup()

    def fresh_setup(self) -> Setup:
        """The same as `setup`, for a run of its own."""
        return build(self.loaded) if self.like is None else with_traffic(self.like, self.loaded)

    def run(self) -> dict[str, Any]:
        """The summary of one run, and `offered_requests_per_s`: the rate of its workload, or of its trace's rows."""
        result = run_setup(self._shortened.fresh_setup())
        arrivals = result.requests["arrival_ps"]
        span_s = float(arrivals.max() - arrivals.min()) / PS_PER_S if len(arrivals) else 0.0
        seen = (len(arrivals) - 1) / span_s if span_s else None
        return {**summarise(result), "offered_requests_per_s": result.facts["workload"].get("mean_rate") or seen}

    def under(self, factor: float) -> Case:
        """The same under `factor` times the traffic. Raises ConfigError where it cannot be scaled.

        Single requests are the same ones at another pace, so that probes differ in nothing else. Where requests follow
        from others, more traffic is also more requests, for as long: at another pace alone all would begin at once.
        """
        settings = {**self._shortened.settings, **_scaled(self.setup.spec, factor)}
        key, requests = _length(self._shortened.setup.spec)
        if key is not None and requests is not None and _follows(self.setup.spec):
            settings[key] = max(requests, min(round(requests * factor), _MOST_REQUESTS))
        return Case(self.source, settings, None, self.setup)

    @cached_property
    def _shortened(self) -> Case:
        """What really runs at the scenario's own load: no more requests than were asked for."""
        if self.requests is None:
            return self
        key, most = _length(self.setup.spec)
        if key is None or (most is not None and most <= self.requests):
            return self
        return Case(self.source, {**self.settings, key: self.requests}, None, self.setup)

    @property
    def scalable(self) -> bool:
        """Whether there is more and less of this traffic: not if all of it comes at once."""
        try:
            return bool(_scaled(self.setup.spec, 1.0))
        except ConfigError:
            return False

    @property
    def gpus(self) -> int:
        """Of all replicas."""
        return sum(pool.scenario.replicas.count * pool.engine.layout.gpus for pool in self.setup.pools)


def _follows(spec: WorkloadSpec) -> bool:
    """Whether requests are sent because others have ended."""
    return spec.sessions is not None or spec.application is not None or isinstance(spec.arrival, ClosedLoop)


def _length(spec: WorkloadSpec) -> tuple[str | None, int | None]:
    if spec.trace is not None:
        return "workload.max_requests", spec.max_requests
    if spec.num_requests is None:
        return None, None
    return "workload.num_requests", spec.num_requests


def _scaled(spec: WorkloadSpec, factor: float) -> dict[str, Any]:
    arrival = spec.arrival
    if isinstance(arrival, ClosedLoop):
        return {"workload.arrival.concurrency": max(1, round(arrival.concurrency * factor))}
    if isinstance(arrival, Stages):
        stages = [stage.model_dump(mode="json") for stage in arrival.stages]
        return {"workload.arrival.stages": [{**stage, "rate": stage["rate"] * factor} for stage in stages]}
    rate = getattr(arrival, "rate", None)
    if rate is not None:
        return {"workload.arrival.rate": rate * factor}
    if arrival is None and spec.trace is not None:
        return {"workload.time_scale": spec.time_scale / factor}
    raise ConfigError("has no rate that could be raised", key="workload.arrival")


@dataclass(frozen=True)
class Served:
    """The most traffic that meets the objectives: `factor` times the scenario's own, and what a run of it gave.

    `factor` is 0 when even a thousandth of the traffic misses them, and 1 for traffic that cannot be scaled, whose
    throughput is then what counts. `summary` is that of the run at this load (of the last one that failed, for 0).
    """

    factor: float
    summary: Mapping[str, Any]
    open_loop: bool
    """Whether requests come by themselves. What is served is then the rate at which they come, not requests over the
    run's length: the run goes on until the last of them has drained."""

    @property
    def requests_per_s(self) -> float:
        """Served per second at that load; 0 when no load meets the objectives."""
        if not self.factor:
            return 0.0
        name = "offered_requests_per_s" if self.open_loop else "request_throughput"
        return float(self.summary[name] or 0.0)

    @property
    def steady_state(self) -> bool:
        """Whether the run at that load was long enough to say what would go on for ever."""
        return bool(self.summary["steady_state"]) or not self.open_loop

    @property
    def output_tokens_per_s(self) -> float:
        """Output of the requests served per second at that load."""
        tokens, requests = float(self.summary["total_output_tokens"]), float(self.summary["completed"])
        return self.requests_per_s * tokens / max(requests, 1.0)


def most_served(case: Case, start: float = 1.0) -> Served:
    """The largest traffic, to 3 %, that `case` serves with every objective met.

    Found by growing or shrinking the load from `start` times the scenario's own, in longer and longer strides, then by
    bisection; each probe is a whole run with the same seed. A load is served when every objective is met, the system
    is not overloaded, and at most one request in a hundred fails. It is taken for granted that what meets its
    objectives under some load does so under less.
    """
    if not case.scalable:
        return Served(1.0, case.run(), open_loop=False)
    low, high, best, worst = 0.0, 0.0, None, None
    factor, stride = start, _FIRST_STRIDE
    while not (low and high) and 1 / _FARTHEST <= factor / start <= _FARTHEST:
        summary = case.under(factor).run()
        if _meets(summary):
            low, best = factor, summary
        else:
            high, worst = factor, summary
        factor, stride = factor * stride if low else factor / stride, stride**1.5
    while low and high and high / low > _PRECISION:
        factor = (low * high) ** 0.5
        if isinstance(case.setup.spec.arrival, ClosedLoop) and _same_clients(case, factor, low, high):
            break
        summary = case.under(factor).run()
        if _meets(summary):
            low, best = factor, summary
        else:
            high = factor
    return Served(low, best or worst or {}, not isinstance(case.setup.spec.arrival, ClosedLoop))


def _same_clients(case: Case, factor: float, low: float, high: float) -> bool:
    """Clients are whole: between two numbers of them there may be no third."""
    clients = [_scaled(case.setup.spec, f)["workload.arrival.concurrency"] for f in (low, factor, high)]
    return clients[1] in (clients[0], clients[2])


def _meets(summary: Mapping[str, Any]) -> bool:
    failed = summary["failed"] > _FAILURES * summary["num_prompts"]
    met = all(line["met"] for line in summary["slo"])
    return bool(met and summary["completed"] and not failed and summary["regime"] != "OVERLOADED")
