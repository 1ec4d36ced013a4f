"""The traffic of a plan: any rate from one file, and the busiest stretch of a day."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.errors import ConfigError
from sim.planner.traffic import LEAST_REQUESTS, Traffic, traffic_of
from sim.planner.trial import Base
from sim.units import PS_PER_S
from sim.workloads.builder import build_workload
from sim.written_workload import written_workload

Bases = Callable[..., Base]


def arrivals_s(base: Base, traffic: Traffic, rate: float | None) -> list[float]:
    """When the requests of a simulation at a rate arrive."""
    written = written_workload(base.load(traffic.at(rate)))
    workload = build_workload(written.spec, seed=0, beside=written.document.path)
    return [request.arrival_ps / PS_PER_S for request in workload]


def test_two_rates_are_the_same_draws(base: Bases) -> None:
    """At twice the rate the same requests arrive in half the time: common random numbers."""
    traffic = traffic_of(base().load({}), rate=10.0, horizon_s=50.0)
    slow, fast = arrivals_s(base(), traffic, 10.0), arrivals_s(base(), traffic, 20.0)
    assert len(slow) == len(fast) == LEAST_REQUESTS
    assert np.allclose(np.array(slow), 2 * np.array(fast), rtol=1e-9, atol=1e-9)


def test_long_enough_for_percentiles(base: Bases) -> None:
    """A run lasts the horizon, or a thousand requests if that takes longer."""
    traffic = traffic_of(base().load({}), rate=None, horizon_s=300.0)
    assert traffic.rate == 10 and len(arrivals_s(base(), traffic, 10.0)) == 3000
    assert len(arrivals_s(base(), traffic, 1.0)) == LEAST_REQUESTS and traffic.span_s(1.0) == 1000


def test_a_staged_day_is_planned_at_its_peak(base: Bases) -> None:
    """The busiest stage gives the rate; the day's shape keeps its mean."""
    stages = [{"rate": r, "duration_s": 3600} for r in (2, 6, 4, 0)]
    here = base(workload__arrival={"kind": "stages", "stages": stages}, workload__num_requests=None)
    traffic = traffic_of(here.load({}), rate=None, horizon_s=60.0)
    assert traffic.rate == 6 and traffic.day is not None and traffic.day.peak_at_s == 3600
    assert np.mean(traffic.day.rates) == pytest.approx(3.0) and max(traffic.day.rates) == 6
    doubled = traffic_of(here.load({}), rate=12.0, horizon_s=60.0)
    assert doubled.rate == 12 and doubled.day is not None and max(doubled.day.rates) == pytest.approx(12)
    assert np.mean(np.diff(arrivals_s(here, traffic, 6.0))) == pytest.approx(1 / 6, rel=0.1)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """6000 requests in 6000 s: one a second, and ten a second for 200 s after 3000 s."""
    calm = np.arange(0, 6000, 1.5)
    busy = 3000 + np.arange(2000) / 10
    times = np.sort(np.concatenate([calm, busy]))
    path = tmp_path / "trace.csv"
    rows = "\n".join(f"{time:.3f},100,10" for time in times)
    path.write_text(f"arrived_at,num_prefill_tokens,num_decode_tokens\n{rows}\n")
    return path


def test_a_trace_is_planned_at_its_busiest(base: Bases, trace: Path) -> None:
    """The stretch with most requests is replayed, at its own rate or scaled to another one."""
    here = base(workload=str(trace))
    traffic = traffic_of(here.load({}), rate=None, horizon_s=150.0)
    assert traffic.day is not None and 2900 <= traffic.day.peak_at_s <= 3050
    assert traffic.rate is not None and 9 < traffic.rate < 12
    assert "busiest" in traffic.notes[0]
    own = np.array(arrivals_s(here, traffic, traffic.rate))
    assert len(own) / np.ptp(own) == pytest.approx(traffic.rate, rel=0.05)
    assert traffic.rows == pytest.approx(len(own), abs=2)
    assert traffic.span_s(2 * traffic.rate) == pytest.approx(traffic.span_s(traffic.rate) / 2, rel=0.02)
    faster = np.array(arrivals_s(here, traffic, 2 * traffic.rate))
    assert len(faster) / np.ptp(faster) == pytest.approx(2 * traffic.rate, rel=0.05)


@pytest.mark.parametrize("arrival", [{"kind": "all_at_once"}, {"kind": "closed_loop", "concurrency": 4}])
def test_traffic_without_a_rate(base: Bases, arrival: dict[str, Any]) -> None:
    """Where the batch or the clients set the pace there is no rate to plan for, and none may be asked for."""
    loaded = base(workload__arrival=arrival).load({})
    assert traffic_of(loaded, rate=None, horizon_s=10.0).rate is None
    with pytest.raises(ConfigError, match="set the pace"):
        traffic_of(loaded, rate=5.0, horizon_s=10.0)


def test_lengths_of_a_trace_under_a_law(base: Bases, trace: Path) -> None:
    """A trace's lengths may arrive by a law at any rate; sessions say that their rate is one of sessions."""
    here = base(workload={"trace": str(trace), "arrival": {"kind": "poisson", "rate": 3}})
    traffic = traffic_of(here.load({}), rate=None, horizon_s=400.0)
    assert traffic.rate == 3 and len(arrivals_s(here, traffic, 6.0)) == 2400
    sessions = base(workload="multi-turn")
    assert "sessions" in traffic_of(sessions.load({}), rate=None, horizon_s=10.0).notes[0]
