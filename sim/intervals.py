"""Error bars of a whole run: it is repeated with other seeds, and errors are drawn from their known distribution."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.build import build
from sim.cost.calibrated_kernels import class_errors
from sim.cost.uncertainty import draw_factors
from sim.metrics import summarise
from sim.rng import stream
from sim.run import run_setup, runs_like
from sim.scenario import LoadedScenario
from sim.trust import Cell

_DRAWS = 40
_ERRORS = {"ttft": "ttft", "tpot": "tpot", "itl": "tpot", "e2el": "e2e", "throughput": "throughput"}
"""What a metric's name contains -> the metric of the envelope."""
Floats = npt.NDArray[np.float64]
HEADLINE = (
    *(f"{of}_{metric}_ms" for metric in ("ttft", "tpot", "itl", "e2el") for of in ("mean", "median", "p99")),
    "request_throughput", "output_throughput", "total_token_throughput", "request_goodput", "slo_attainment",
)  # fmt: skip


def intervals(
    loaded: LoadedScenario,
    repetitions: int,
    *,
    level: float = 0.9,
    jobs: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Intervals of the headline metrics over `repetitions` runs.

    Each repetition draws its own traffic (seed, seed + 1, ...). Where servers like this one were measured, the errors
    of those runs widen the interval (`sim.trust`). Elsewhere each repetition draws one factor per operator class from
    the distribution of the calibration's errors: kernels of a class are off together, classes independently. Returns
    `{level, repetitions, metrics: {name: [low, high]}}`; a metric that some repetition lacks is left out.
    """
    from joblib import Parallel, delayed  # here: most runs have no error bars, and it takes a fifth of a second

    setup = build(loaded)
    known = runs_like(setup, setup.workload.describe())
    errors = {} if known is not None else class_errors(setup.kernels, setup.timer.forward)
    tasks = (delayed(_repeat)(loaded, errors, i) for i in range(repetitions))
    found = []
    workers = Parallel(n_jobs=jobs or os.cpu_count() or 1, return_as="generator")
    for done, values in enumerate(workers(tasks), start=1):
        found.append(values)
        if on_progress is not None:
            on_progress(done)
    tail = (1 - level) / 2
    metrics = {}
    for name in HEADLINE:
        values = [one[name] for one in found]
        if all(value is not None for value in values):
            spread = np.outer(values, _measured_over_predicted(known, name))
            metrics[name] = [float(value) for value in np.quantile(spread, [tail, 1 - tail])]
    return {"level": level, "repetitions": repetitions, "metrics": metrics}


def _measured_over_predicted(known: Cell | None, metric: str) -> Floats:
    """Evenly spread draws of the ratio, by what is known of runs like this one; 1 where nothing is."""
    found = next((name for word, name in _ERRORS.items() if word in metric), None)
    if known is None or found not in known.errors:
        return np.ones(1)
    low, high = known.errors[found].log_error
    probability = (np.arange(_DRAWS) + 0.5) / _DRAWS
    return np.asarray(np.exp(np.interp(probability, (0.0, 0.05, 0.95, 1.0), (low, low, high, high))))


def _repeat(loaded: LoadedScenario, errors: Mapping[str, Mapping[float, float]], i: int) -> dict[str, float | None]:
    seed = loaded.scenario.seed
    factors = draw_factors(errors, stream(seed, "uncertainty", i))
    again = replace(loaded, scenario=loaded.scenario.model_copy(update={"seed": seed + i}))
    summary = summarise(run_setup(build(again, factors)))
    return {name: summary[name] for name in HEADLINE}
