"""Arrival processes: order, reproducibility, rate and burstiness."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sim.errors import ConfigError
from sim.units import PS_PER_S
from sim.workloads.arrivals import CHUNK, AllAtOnce, Arrivals, Constant, Gamma, Poisson, Stages, Weibull

rates = st.floats(0.1, 1e6)
processes = st.one_of(
    rates.map(lambda rate: Poisson(rate=rate)),
    rates.map(lambda rate: Constant(rate=rate)),
    st.builds(Gamma, rate=rates, burstiness=st.floats(0.02, 50)),
    st.builds(Weibull, rate=rates, shape=st.floats(0.3, 5)),
)


def first(process: Arrivals, number: int, seed: int = 0) -> np.ndarray:
    """The first arrivals of a process, in seconds."""
    chunks = islice(process.times_ps(seed), -(-number // CHUNK))
    return np.concatenate(list(chunks))[:number] / PS_PER_S


@settings(max_examples=30, deadline=None)
@given(processes, st.integers(0, 2**32))
def test_arrivals_never_go_back_in_time(process: Arrivals, seed: int) -> None:
    """Every process yields non-decreasing times from 0 on, across chunks too."""
    times = first(process, CHUNK + 10, seed)
    assert times[0] >= 0
    assert np.all(np.diff(times) >= 0)


@settings(max_examples=30, deadline=None)
@given(processes, st.integers(0, 2**32))
def test_arrivals_depend_on_the_seed_alone(process: Arrivals, seed: int) -> None:
    """The same seed gives the same times; another one gives others, unless nothing is drawn."""
    assert np.array_equal(first(process, 50, seed), first(process, 50, seed))
    assert isinstance(process, Constant) or not np.array_equal(first(process, 50, seed), first(process, 50, seed + 1))


@settings(max_examples=30, deadline=None)
@given(processes, st.floats(0.01, 3))
def test_a_time_limit_only_cuts(process: Arrivals, limit_s: float) -> None:
    """Arrivals before a limit are those of the unlimited process, and the next one lies at or after the limit."""
    limit = round(limit_s / process.mean_rate * 20 * PS_PER_S)
    cut = np.concatenate([*process.times_ps(0, limit), np.zeros(0, np.int64)])
    if len(cut) < CHUNK:
        free = next(process.times_ps(0))
        assert np.array_equal(cut, free[: len(cut)])
        assert free[len(cut)] >= limit


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_the_stated_rate_and_variation(burstiness: float) -> None:
    """The gaps have mean 1/rate and coefficient of variation 1/sqrt(burstiness)."""
    gaps = np.diff(first(Gamma(rate=5.0, burstiness=burstiness), 120_000))
    assert gaps.mean() == pytest.approx(0.2, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.02)


@pytest.mark.parametrize("process", [Poisson(rate=3.0), Weibull(rate=3.0, shape=0.7)])
def test_mean_rate_is_reached(process: Arrivals) -> None:
    """A long run has the mean rate the process says it has."""
    assert 100_000 / first(process, 100_000)[-1] == pytest.approx(process.mean_rate, rel=0.02)


def test_constant_is_a_metronome() -> None:
    """Request i of a constant rate arrives at i/rate exactly."""
    assert first(Constant(rate=8.0), 20_000).tolist() == [i / 8 for i in range(20_000)]


def test_all_at_once_is_time_zero() -> None:
    """An offline batch is there from the start."""
    assert not first(AllAtOnce(), 100).any()


def test_stages_follow_each_other() -> None:
    """Each stage has its rate during its own stretch, a rate of 0 is a pause, and the last stage ends the traffic."""
    stages = Stages.model_validate(
        {"stages": [{"rate": 50, "duration_s": 100}, {"rate": 0, "duration_s": 10},
                    {"rate": 4, "duration_s": 2, "kind": "constant"}, {"rate": 200, "duration_s": 100}]}
    )  # fmt: skip
    times = np.concatenate(list(stages.times_ps(1))) / PS_PER_S
    assert (times < 100).sum() == pytest.approx(5000, rel=0.05)
    assert times[(times >= 100) & (times < 112)].tolist() == [110 + i / 4 for i in range(8)]
    assert ((times >= 112) & (times < 212)).sum() == pytest.approx(20_000, rel=0.03)
    assert times.max() < 212
    assert stages.mean_rate == pytest.approx((5000 + 8 + 20_000) / 212)


def test_two_stages_of_one_rate_are_different_draws() -> None:
    """A stage does not repeat the gaps of the one before."""
    stages = Stages.model_validate({"stages": [{"rate": 5, "duration_s": 10}] * 2})
    times = np.concatenate(list(stages.times_ps(0))) / PS_PER_S
    early, late = times[times < 10], times[times >= 10] - 10
    assert len(early) != len(late) or not np.allclose(early, late)


@pytest.mark.parametrize("process", [Poisson(rate=1e-9), Constant(rate=1e-9), Gamma(rate=1e-7, burstiness=0.1)])
def test_the_clock_is_not_left(process: Arrivals) -> None:
    """Traffic that would last for years is refused, unless it is cut before."""
    with pytest.raises(ConfigError, match="53 days"):
        first(process, 200_000)
    assert len(np.concatenate([*process.times_ps(0, PS_PER_S), np.zeros(0, np.int64)])) <= 1


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan"), "8", True])
def test_senseless_rates_are_refused(rate: object) -> None:
    """A rate is a positive finite number."""
    with pytest.raises(ValidationError):
        Poisson.model_validate({"rate": rate})
