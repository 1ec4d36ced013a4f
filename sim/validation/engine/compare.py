"""The simulator against runs of the small engine: host costs fitted at one rate of one model, held at all others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from sim.build import build
from sim.cost.shape import RunShape
from sim.cost.step_timer import HostWork, StepPricer
from sim.errors import ConfigError
from sim.results import Table
from sim.run import run_setup
from sim.scenario import load_scenario
from sim.setup import Setup
from sim.units import PS_PER_S
from sim.validation.engine.serve import ServedLog, StepLog
from sim.workloads.replay import TraceReplay
from sim.workloads.trace_table import Trace

Floats = npt.NDArray[np.float64]
METRICS = ("ttft", "tpot", "e2e")
_LENGTHS = ("prompt_tokens", "output_tokens")
BOUND_PCT = 5.0
NOISES = 2.0
_SLOWEST = 0.99
"""Steps above this quantile of unexplained time are left out of the fit: compilations, other processes."""


@dataclass(frozen=True)
class ServedRun:
    """One run of the small engine. `share` of the saturated rate; None for a burst."""

    model: str
    share: float | None
    rate: float | None
    repeat: int
    log: ServedLog


@dataclass(frozen=True)
class Served:
    """A file of runs: where and with what settings they were served."""

    environment: Mapping[str, Any]
    limits: Mapping[str, int]
    runs: Sequence[ServedRun]
    path: Path


@dataclass(frozen=True)
class Compared:
    """A mean latency of one rate: measured over all repeats and predicted, in seconds. Rates of the fit say so."""

    model: str
    share: float | None
    metric: str
    measured_s: float
    predicted_s: float
    noise_pct: float
    repeats: int
    fitted: bool

    @property
    def error_pct(self) -> float:
        """How far the prediction is off."""
        return 100 * (self.predicted_s / self.measured_s - 1)

    @property
    def bound_pct(self) -> float:
        """What it may be off: five per cent, or twice the deviation between repeats where that is more."""
        return max(BOUND_PCT, NOISES * self.noise_pct)

    @property
    def judged(self) -> bool:
        """Whether the bound applies: below saturation, and not where host costs were fitted."""
        return self.share is not None and not self.fitted

    def as_json(self) -> dict[str, Any]:
        """All of it, rounded."""
        shown = {"error_pct": round(self.error_pct, 2), "bound_pct": round(self.bound_pct, 2), "judged": self.judged}
        return {**asdict(self), **shown}


def read_served(path: Path) -> Served:
    """A file that a GPU session wrote. Raises ConfigError when it is none."""
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        runs = [
            ServedRun(run["model"], run["share"], run["rate"], run["repeat"], ServedLog.from_json(run["log"]))
            for run in written["runs"]
        ]
        return Served(written["environment"], written["limits"], runs, path)
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", file=path) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"holds no runs of the small engine ({error!r})", file=path) from error


def setup_of(model: str, limits: Mapping[str, int], hardware: str, host: HostWork | None = None) -> Setup:
    """The simulated counterpart of the small engine."""
    engine = {
        "preset": "small-engine",
        "max_num_seqs": limits["max_running"],
        "max_num_batched_tokens": limits["token_budget"],
        "max_model_len": limits["max_len"],
        "num_gpu_blocks_override": limits["num_blocks"],
        "kv_cache": {"block_size": limits["block_tokens"]},
        "host": {} if host is None else asdict(host),
    }
    traffic = {"arrival": {"kind": "all_at_once"}, "num_requests": 1, "input_tokens": 1, "output_tokens": 1}
    scenario = {"name": "small-engine", "model": model, "hardware": hardware, "workload": traffic, "engine": engine}
    return build(load_scenario(scenario))


def price_steps(timer: StepPricer, steps: Sequence[StepLog]) -> Floats:
    """What the simulator says of the steps that were really taken, one by one."""
    shapes = [RunShape(step.decodes, step.context_tokens, list(step.chunks)) for step in steps]
    return np.array([timer.run(shape, 1).total_ps / PS_PER_S for shape in shapes])


def fit_host(timer: StepPricer, steps: Sequence[StepLog]) -> HostWork:
    """Host costs per step, sequence and token that best explain what the GPU's price leaves of the steps' times."""
    left = np.array([step.seconds for step in steps]) - price_steps(timer, steps)
    tokens = [step.decodes + sum(new for _, new in step.chunks) for step in steps]
    causes = np.column_stack([np.ones(len(steps)), [step.decodes + len(step.chunks) for step in steps], tokens])
    usual = left <= np.quantile(left, _SLOWEST)
    costs, _ = nnls(causes[usual], left[usual])
    return HostWork(*(float(f"{cost:.4g}") for cost in costs))


def simulate_served(run: ServedRun, setup: Setup, path: Path) -> Table:
    """The same requests, at the same times, through the simulator; `path` is the file that they are from."""
    asked = run.log.asked
    arrival_ps = np.array([round(one.arrival_s * PS_PER_S) for one in asked], np.int64)
    prompts, outputs = (np.array([getattr(a, name) for a in asked], np.int64) for name in _LENGTHS)
    trace = Trace("small engine", path, arrival_ps, prompts, outputs, len(asked))
    return run_setup(replace(setup, workload=TraceReplay(trace))).requests


def measured_means(log: ServedLog) -> dict[str, float]:
    """Mean TTFT, TPOT and E2E of a served run, in seconds."""
    arrival = np.array([one.arrival_s for one in log.asked])
    outputs = np.array([one.output_tokens for one in log.asked])
    return _means(arrival, np.array(log.first_token_s), np.array(log.finish_s), outputs)


def predicted_means(requests: Table) -> dict[str, float]:
    """The same of a simulated one."""
    times = [requests[name] / PS_PER_S for name in ("arrival_ps", "first_token_ps", "finish_ps")]
    return _means(times[0], times[1], times[2], requests["output_tokens"])


def _means(arrival: Floats, first: Floats, finish: Floats, outputs: npt.NDArray[Any]) -> dict[str, float]:
    several = outputs > 1
    gaps = (finish - first)[several] / (outputs[several] - 1)
    tpot = float(gaps.mean()) if several.any() else 0.0
    return {"ttft": float((first - arrival).mean()), "tpot": tpot, "e2e": float((finish - arrival).mean())}


def compare(served: Served, hardware: str) -> tuple[HostWork, list[Compared]]:
    """Host costs from the first rate of the first model, and every rate of every model against its simulation."""
    rates = [run for run in served.runs if run.share is not None]
    if not rates:
        raise ConfigError("has no run at a rate to fit host costs to", key="runs")
    first = rates[0]
    fitted = [run for run in rates if (run.model, run.share) == (first.model, first.share)]
    steps = [step for run in fitted for step in run.log.steps]
    host = fit_host(setup_of(first.model, served.limits, hardware).timer, steps)
    lines = []
    for model in dict.fromkeys(run.model for run in served.runs):
        setup = setup_of(model, served.limits, hardware, host)
        for share in dict.fromkeys(run.share for run in served.runs if run.model == model):
            runs = [run for run in served.runs if (run.model, run.share) == (model, share)]
            lines += list(_compare_rate(runs, setup, served.path, (model, share) == (first.model, first.share)))
    return host, lines


def _compare_rate(runs: Sequence[ServedRun], setup: Setup, path: Path, fitted: bool) -> Iterator[Compared]:
    measured = [measured_means(run.log) for run in runs]
    predicted = predicted_means(simulate_served(runs[0], setup, path))
    for metric in METRICS:
        values = np.array([one[metric] for one in measured])
        noise = 100 * float(values.std(ddof=1) / values.mean()) if len(values) > 1 else 0.0
        yield Compared(
            runs[0].model, runs[0].share, metric, float(values.mean()), predicted[metric], noise, len(runs), fitted
        )
