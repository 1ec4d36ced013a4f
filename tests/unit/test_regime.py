"""Whether a system keeps up is judged as queueing theory says it should be."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from sim.regime import Regime, judge, median_slope, trend_p_value
from sim.request import Reason, State
from sim.results import REQUEST_COLUMNS, RunResult, Table


def queue(load: float, servers: int = 16, n: int = 2000, seed: int = 0, spread: float = 1.0) -> Table:
    """An M/M/c queue: service takes `servers` seconds on average, so that `load` is its utilisation."""
    rng = np.random.default_rng(seed)
    arrivals, service = np.cumsum(rng.exponential(spread / load, n)), rng.exponential(servers, n)
    free, start = [0.0] * servers, np.empty(n)
    for i in range(n):
        start[i] = max(arrivals[i], heapq.heappop(free))
        heapq.heappush(free, start[i] + service[i])
    columns = {name: np.zeros(n, dtype=np.int64) for name in REQUEST_COLUMNS}
    times = {"arrival_ps": arrivals, "scheduled_ps": start, "first_token_ps": start + 0.2, "finish_ps": start + service}
    columns |= {name: (value * 1e9).astype(np.int64) for name, value in times.items()}
    columns["finish_ps"] = np.maximum(columns["finish_ps"], columns["first_token_ps"])
    return Table(columns | {"state": np.full(n, State.COMPLETED)})


@pytest.mark.parametrize("seed", range(5))
def test_half_load_is_stable_and_steady(seed: int) -> None:
    """At half the capacity nothing queues, and percentiles of the whole run mean something."""
    verdict = judge(queue(0.5, seed=seed))
    assert (verdict.regime, verdict.steady_state) == (Regime.STABLE, True)


@pytest.mark.parametrize("load", [1.3, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_load_above_capacity_is_overloaded(load: float, seed: int) -> None:
    """More than can be served is never called a steady state."""
    verdict = judge(queue(load, seed=seed))
    assert (verdict.regime, verdict.steady_state) == (Regime.OVERLOADED, False)


@pytest.mark.parametrize("seed", range(5))
def test_high_load_below_capacity_is_not_overloaded(seed: int) -> None:
    """A long but stationary queue is a backlog."""
    assert judge(queue(0.9, servers=1, n=5000, seed=seed)).regime is Regime.BACKLOGGED


def test_everything_at_once_is_a_backlog_and_no_steady_state() -> None:
    """An offline batch has no arrival rate that it could sustain or not."""
    verdict = judge(queue(1.0, spread=0.0), "all_at_once")
    assert (verdict.regime, verdict.steady_state) == (Regime.BACKLOGGED, False)


def test_a_closed_loop_is_stable_by_construction() -> None:
    """Its clients wait for answers, so its queue cannot grow without end."""
    assert judge(queue(2.0), "closed_loop").regime is Regime.STABLE


def test_clients_that_give_up_mean_overload() -> None:
    """Time-outs hide the queue they left; one in twenty is enough."""
    requests = queue(0.5)
    requests["reason"][::10] = Reason.CLIENT_TIMEOUT
    assert judge(requests).regime is Regime.OVERLOADED


def test_few_requests_are_no_steady_state() -> None:
    """Ten requests say how ten requests fared."""
    assert not judge(queue(0.5, n=10)).steady_state


def test_growing_batch_without_a_queue_is_no_steady_state() -> None:
    """When arrivals outrun completions but all are admitted, the percentiles still depend on the run's length."""
    requests = queue(0.5, n=1000)
    arrival = requests["arrival_ps"]
    requests["scheduled_ps"][:] = arrival
    requests["first_token_ps"][:] = arrival + 10**8
    requests["finish_ps"][:] = arrival + (arrival[-1] * 0.4).astype(np.int64) + (arrival * 0.9).astype(np.int64)
    verdict = judge(requests)
    assert verdict.regime is Regime.STABLE and not verdict.steady_state


def test_toy_server_under_four_times_its_capacity_is_overloaded(toy_run: Callable[..., RunResult]) -> None:
    """The verdict holds for a batching server, not only for a textbook queue."""
    assert judge(toy_run(n=600, rate=30.0).requests).regime is Regime.OVERLOADED


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("points", [4, 10, 18, 33])
def test_the_trend_is_that_of_scipy(points: int, ties: bool) -> None:
    """Theil-Sen slope and Kendall p-value, exact without ties and by the corrected normal approximation with them."""
    at, rng = np.arange(points) + 0.5, np.random.default_rng(points)
    for slope in (0.0, 0.1, -0.4, 3.0):
        values = rng.normal(size=points) + slope * at
        values = np.round(values) + 9 * (at == 0.5) if ties else values
        assert median_slope(at, values) == pytest.approx(stats.theilslopes(values, at).slope, rel=1e-12, abs=1e-12)
        assert trend_p_value(values) == pytest.approx(stats.kendalltau(at, values).pvalue, rel=1e-9)
