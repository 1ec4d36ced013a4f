"""Error bars of a run: repetitions with other traffic and other operator times."""

from __future__ import annotations

import math

from sim.build import build
from sim.intervals import HEADLINE, intervals
from sim.run import runs_like
from sim.scenario import load_scenario

SMALL = {
    "model": "meta-llama/Llama-3.1-8B",
    "hardware": "h100-sxm",
    "workload": {"num_requests": 30, "arrival": {"kind": "all_at_once"}, "input_tokens": 100, "output_tokens": 20},
}


def test_the_same_repetitions_in_any_number_of_processes() -> None:
    """One process or two give the same intervals, and every metric has one whose ends are in order."""
    loaded, heard = load_scenario(SMALL), []
    alone = intervals(loaded, 4, jobs=1, on_progress=heard.append)
    assert alone == intervals(loaded, 4, jobs=2)
    assert heard == [1, 2, 3, 4]
    assert all(low <= high for low, high in alone["metrics"].values())
    assert {"mean_tpot_ms", "output_throughput"} <= set(alone["metrics"]) <= set(HEADLINE)


def test_operator_times_vary_even_when_the_traffic_cannot() -> None:
    """All requests alike and at once: what differs between repetitions is the drawn operator times alone."""
    low, high = intervals(load_scenario(SMALL), 8, jobs=1)["metrics"]["mean_tpot_ms"]
    assert 0 < low < high < 2 * low


def test_errors_of_measured_runs_widen_the_interval() -> None:
    """Where the envelope knows the kind of run, a metric's interval is as wide as the errors found there."""
    traffic = {**SMALL["workload"], "arrival": {"kind": "poisson", "rate": 2}}  # type: ignore[dict-item]
    loaded = load_scenario({**SMALL, "workload": traffic})
    setup = build(loaded)
    known = runs_like(setup, setup.workload.describe())
    assert known is not None
    low, high = intervals(loaded, 2, jobs=1)["metrics"]["mean_tpot_ms"]
    below, above = known.errors["tpot"].log_error
    assert math.log(high / low) > 0.8 * (above - below)


def test_metrics_that_do_not_exist_have_no_interval() -> None:
    """Without objectives there is no goodput, hence no interval for it."""
    assert "request_goodput" not in intervals(load_scenario(SMALL), 2, jobs=1)["metrics"]
