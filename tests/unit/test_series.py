"""Series over time against direct calculation on a fine clock."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sim.results import RunResult, Table
from sim.series import Grid, KVLayout, Series, kv_growth, row_durations_ps, series_of

Runs = Callable[..., RunResult]


@pytest.fixture(scope="module")
def run(toy_run: Runs) -> RunResult:
    """A busy run on two replicas."""
    return toy_run(n=150, rate=12.0, replicas=2, blocks=500)


@pytest.fixture(scope="module")
def series(run: RunResult) -> Series:
    """Its series on a coarse grid."""
    return series_of(run, bins=17)


def seconds(series: Series) -> float:
    """Length of the grid."""
    return series.grid.width_s * series.grid.bins


def test_rates_add_up_to_the_totals(run: RunResult, series: Series) -> None:
    """No token and no request falls between two intervals."""
    width = series.grid.width_s
    assert series.arrivals_per_s.sum() * width == pytest.approx(150)
    assert series.completions_per_s.sum() * width == pytest.approx(150)
    assert series.output_tokens_per_s.sum() * width == pytest.approx(run.requests["output_tokens"].sum())
    assert series.prefill_tokens_per_s.sum() * width == pytest.approx(run.steps["prefill_tokens"].sum())


def test_running_and_waiting_add_up_to_requests_in_flight(run: RunResult, series: Series) -> None:
    """Little's law as an identity: time in system, summed, is the area under the number in system."""
    in_system = (run.requests["finish_ps"] - run.requests["arrival_ps"]).sum() / 1e12
    assert (series.running + series.waiting).mean() * seconds(series) == pytest.approx(in_system, rel=1e-3)


def test_levels_are_means_over_time(run: RunResult, series: Series) -> None:
    """Each interval's running equals the average of instants within it."""
    grid, steps = series.grid, run.steps
    ends = steps["start_ps"] + row_durations_ps(steps)
    for k in (2, 9):
        instants = grid.start_ps + grid.width_ps * k + (np.arange(2000) + 0.5) / 2000 * grid.width_ps
        now = [steps["running"][(steps["start_ps"] <= t) & (t < ends)].sum() for t in instants]
        assert series.running[k] == pytest.approx(np.mean(now), rel=0.02)


def test_blocks_stay_within_the_cache(run: RunResult, series: Series) -> None:
    """Filled is at most used, used is at most all."""
    assert (series.kv_blocks_filled <= series.kv_blocks + 1e-9).all()
    assert series.kv_blocks.max() <= 1000


def test_room_that_is_never_filled_counts_while_its_request_is_resident(toy_run: Callable[..., RunResult]) -> None:
    """One token each, from admission to the end less the time preempted; and never more than what stands empty."""
    run = toy_run(n=300, rate=12.0, blocks=400)
    requests = run.requests
    assert requests["preempted_ps"].max() > 0
    requests["kv_unused_tokens"][:] = 1
    series = series_of(run)
    resident_s = (requests["finish_ps"] - requests["scheduled_ps"] - requests["preempted_ps"]).sum() / 1e12
    assert series.kv_blocks_unused.sum() * series.grid.width_s * 16 == pytest.approx(resident_s, rel=1e-3)
    requests["kv_unused_tokens"][:] = 10**6
    series = series_of(run)
    assert series.kv_blocks_unused == pytest.approx(series.kv_blocks - series.kv_blocks_filled)


def test_a_bounded_cache_stops_filling(run: RunResult) -> None:
    """Four sequences of at most 110 tokens that store 400: 40 more find room, however many steps the row has."""
    first = Table({name: column[:1].copy() for name, column in run.steps.columns.items()})
    first["steps"][:], first["decodes"][:], first["running"][:] = 32, 4, 4
    first["kv_tokens"][:], first["kv_blocks"][:] = 400, 27
    tokens, blocks = kv_growth(first, KVLayout(16, bound_tokens=110))
    assert (tokens.tolist(), blocks.tolist()) == ([40], [2.5])


def test_growth_follows_tokens_on_demand_and_nothing_where_room_was_reserved(run: RunResult) -> None:
    """A row of many steps takes blocks as it goes, unless its sequences hold room for them already."""
    first = Table({name: column[[0, 0]] for name, column in run.steps.columns.items()})
    first["steps"][:], first["decodes"][:], first["running"][:] = 32, 4, 4
    first["kv_tokens"][:] = 400
    first["kv_blocks"][:] = [27, 80]
    tokens, blocks = kv_growth(first, KVLayout(16))
    assert tokens.tolist() == [128, 128] and blocks.tolist() == [8, 0]


def test_a_grid_covers_its_span() -> None:
    """The last edge lies at or after the end, also when the span does not divide."""
    grid = Grid(start_ps=5, width_ps=4, bins=3)
    assert grid.edges_ps.tolist() == [5, 9, 13, 17]
    assert grid.count(np.array([5, 8, 9, 17, 99])).tolist() == [2, 1, 2]


def test_long_days_do_not_overflow(toy_run: Runs) -> None:
    """A week of picoseconds fits the arithmetic."""
    run = toy_run(n=20)
    week = 7 * 86_400 * 10**12
    for name in ("arrival_ps", "scheduled_ps", "first_token_ps", "finish_ps"):
        run.requests[name][10:] += week
    late = run.steps["start_ps"] > np.median(run.steps["start_ps"])
    run.steps["start_ps"][late] += week
    series = series_of(run)
    assert np.isfinite(series.running).all() and (series.running >= 0).all() and series.grid.width_ps > 0
