"""Robust fits and honest scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from sim.validation.fit import Range, fit_params, folds, score

WORK = np.geomspace(1.0, 1e6, 200)


@dataclass(frozen=True)
class Line:
    """A launch cost and a rate, and a term that the data may not show."""

    launch_s: float
    rate: float = 1.0
    extra: float = 0.0


def times(p: Line) -> np.ndarray:
    """Seconds of the made-up kernel."""
    return p.launch_s + WORK / p.rate + p.extra * WORK**0.5


RANGES = {"launch_s": Range(1.0, 0.01, 100.0), "rate": Range(10.0, 0.1, 1e4)}


def test_the_fit_recovers_what_the_data_were_made_of() -> None:
    """With a little noise, both parameters come back within a per cent."""
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(len(WORK)))
    found = fit_params(Line(1.0, 10.0), RANGES, times, times(Line(5.0, 300.0)) * noise)
    assert found.launch_s == pytest.approx(5.0, rel=0.01)
    assert found.rate == pytest.approx(300.0, rel=0.01)


def test_isolated_slow_points_hardly_move_the_fit() -> None:
    """One row in twenty being three times too slow leaves the parameters within three per cent."""
    measured = times(Line(5.0, 300.0))
    measured[::20] *= 3
    found = fit_params(Line(1.0, 10.0), RANGES, times, measured)
    assert found.launch_s == pytest.approx(5.0, rel=0.03)
    assert found.rate == pytest.approx(300.0, rel=0.03)


def test_a_parameter_at_its_limit_is_dropped() -> None:
    """A term the data do not show ends at its neutral value, not at the smallest allowed one."""
    ranges = {**RANGES, "extra": Range(0.1, 0.001, 1.0, if_low=0.0)}
    found = fit_params(Line(1.0, 10.0, 0.1), ranges, times, times(Line(5.0, 300.0)))
    assert found.extra == 0.0
    assert found.launch_s == pytest.approx(5.0, rel=0.01)


def test_values_are_rounded_as_they_are_shipped() -> None:
    """What is scored has four significant digits, like what is written."""
    found = fit_params(Line(1.0, 10.0), RANGES, times, times(Line(5.123456, 300.0)))
    assert found.launch_s == float(f"{found.launch_s:.4g}")


def test_folds_never_separate_rows_of_a_shape() -> None:
    """Rows with the same key are left out together, every row once."""
    keys = [(n % 7, n % 3) for n in range(200)]
    left_out = np.zeros(len(keys), int)
    for train, test in folds(keys, 4):
        assert not (train & test).any()
        assert {keys[i] for i in np.flatnonzero(train)}.isdisjoint(keys[i] for i in np.flatnonzero(test))
        left_out += test
    assert (left_out == 1).all()


def test_scores_are_those_of_the_definition() -> None:
    """MAPE and quantiles are of |predicted / measured - 1|, bias is that of the geometric mean."""
    found = score(np.array([1.1, 0.9, 2.0]), np.ones(3))
    assert found.mape_pct == pytest.approx(40.0)
    assert found.median_pct == pytest.approx(10.0)
    assert found.bias_pct == pytest.approx(100 * ((1.1 * 0.9 * 2.0) ** (1 / 3) - 1))


def test_nothing_scores_nothing() -> None:
    """No rows give zeros, not a warning."""
    assert score(np.array([]), np.array([])).n == 0
