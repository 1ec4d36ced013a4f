"""Fitting the table of what a formula leaves over."""

from __future__ import annotations

import numpy as np
import pytest

from sim.validation.residual_fit import array_factor, fit_residual, hat_basis

KNOTS = (1.0, 10.0, 100.0)


def test_hat_weights_sum_to_one() -> None:
    """Interpolation weights are a partition of unity, inside and outside of the knots."""
    basis = hat_basis(np.array([0.1, 1.0, 3.0, 50.0, 1e4]), KNOTS)
    np.testing.assert_allclose(basis.sum(axis=1), 1.0)


def test_a_piecewise_linear_deviation_is_found() -> None:
    """What the table can express, it reproduces up to its rounding of a tenth of a per cent."""
    x = np.geomspace(1, 100, 400)
    truth = np.interp(np.log(x), np.log(KNOTS), [0.1, -0.2, 0.05])
    table = fit_residual([(("x", KNOTS),)], {"x": x}, truth, shrink=0.01)
    np.testing.assert_allclose(np.log(array_factor(table, {"x": x})), truth, atol=2e-3)


def test_outliers_do_not_bend_the_table() -> None:
    """The table follows the median of a neighbourhood, not its mean."""
    x = np.geomspace(1, 100, 400)
    deviation = np.full(400, 0.05)
    deviation[::10] = 2.0
    table = fit_residual([(("x", KNOTS),)], {"x": x}, deviation, shrink=0.5)
    assert np.log(array_factor(table, {"x": np.array([10.0])}))[0] == pytest.approx(0.05, abs=0.01)


def test_values_without_evidence_stay_at_zero() -> None:
    """A knot that no row is near does not invent a correction."""
    table = fit_residual([(("x", KNOTS),)], {"x": np.full(50, 1.0)}, np.full(50, 0.3), shrink=0.5)
    assert table.sheets[0].values[1:] == (0.0, 0.0)
    assert table.sheets[0].values[0] == pytest.approx(0.3, abs=0.02)
