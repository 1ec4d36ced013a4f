"""One simulation of a fleet, and whether it holds its objectives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sim.build import build
from sim.documents import canonical_json
from sim.metrics import summarise
from sim.regime import Regime
from sim.request import Reason
from sim.run import run_setup
from sim.scenario import LoadedScenario, load_scenario
from sim.setup import Setup
from sim.workloads.builder import build_workload
from sim.written_workload import written_workload

_FAILED_SHARE = 0.01
_TOO_LONG = Reason.TOO_LONG.name.lower()


@dataclass(frozen=True)
class Base:
    """The scenario that all trials vary: where it stands, and what the command line changes in it."""

    source: str | Mapping[str, Any]
    overrides: Mapping[str, Any]

    def load(self, overrides: Mapping[str, Any]) -> LoadedScenario:
        """The scenario with these overrides on top. Raises ConfigError."""
        return load_scenario(self.source, {**self.overrides, **overrides}, dict.fromkeys(overrides, "the plan"))


@dataclass(frozen=True)
class Outcome:
    """What a simulated fleet did."""

    replicas: int
    rate: float | None
    seed: int
    summary: Mapping[str, Any]
    trust: str
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Every objective met, nearly every request served, and a backlog that does not grow without end."""
        return self.why_not == ""

    @property
    def too_long(self) -> int:
        """Requests beyond the model's context: every fleet refuses them."""
        return int(self.summary["failures"].get(_TOO_LONG, 0))

    @property
    def why_not(self) -> str:
        """What is not held, in words; empty when all is."""
        told = self.summary
        fitting = told["num_prompts"] - self.too_long
        served = told["completed"] / max(1, fitting)
        if served < 1 - _FAILED_SHARE or not told["completed"]:
            return f"{1 - served:.0%} of the requests are not served"
        missed = [f"{o['metric']} {o['statistic']} {_ms(o['observed_ms'])} > {_ms(o['limit_ms'])} ms"
                  for o in told["slo"] if not o["met"]]  # fmt: skip
        if missed:
            return ", ".join(missed)
        return "the queue grows without end" if told["regime"] == Regime.OVERLOADED else ""


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


class Bench:
    """Simulates one option under changing traffic; what does not depend on the traffic is worked out once."""

    def __init__(self, base: Base, overrides: Mapping[str, Any], factors: Mapping[str, float] | None = None) -> None:
        self._base, self._overrides, self._factors = base, overrides, factors
        self._built: Setup | None = None
        self.simulations = 0

    def build(self, traffic: Mapping[str, Any]) -> Setup:
        """The option under some traffic (keys of `workload`, `replicas`, `seed`). Raises ConfigError where it cannot.

        GPU, engine and memory, and the price tables of steps that have been simulated, are kept from the first time.
        """
        loaded = self._base.load({**self._overrides, **traffic})
        built = self._built
        if built is None:
            self._built = built = build(loaded, self._factors)
            return built
        written = written_workload(loaded)
        with written.blamed():
            workload = build_workload(
                written.spec, seed=loaded.scenario.seed, max_model_len=built.engine.max_model_len,
                beside=written.document.path,
            )  # fmt: skip
        return replace(built, scenario=loaded.scenario, written=written, workload=workload)

    def run(self, traffic: Mapping[str, Any], *, replicas: int, rate: float | None, seed: int) -> Outcome:
        """Simulate `replicas` copies under the traffic."""
        result = run_setup(self.build({**traffic, "replicas.count": replicas, "seed": seed}))
        if result.manifest["interrupted"]:
            raise KeyboardInterrupt
        self.simulations += 1
        facts = result.facts
        return Outcome(replicas, rate, seed, summarise(result), str(facts["trust"]), tuple(facts["notes"]))


_KEPT: dict[str, Bench] = {}
_MOST_KEPT = 4


def bench_of(base: Base, overrides: Mapping[str, Any]) -> Bench:
    """The option's bench in this process: tasks of one option that land in one process share its price tables."""
    key = canonical_json([base.source, base.overrides, overrides])
    if key not in _KEPT:
        if len(_KEPT) == _MOST_KEPT:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[key] = Bench(base, overrides)
    return _KEPT[key]
