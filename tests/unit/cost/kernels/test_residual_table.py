"""The table of what formulas leave over."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.cost.kernels.residual import NO_RESIDUAL, ResidualTable, Sheet
from sim.validation.residual_fit import array_factor

TABLE = ResidualTable(
    (
        Sheet((("m", (1.0, 10.0, 100.0)), ("n", (10.0, 1000.0))), (0.0, 0.1, 0.2, 0.3, -0.1, 0.5)),
        Sheet((("n", (10.0, 100.0, 1000.0)),), (0.05, 0.0, -0.05)),
    )
)


def test_an_empty_table_changes_nothing() -> None:
    """Without sheets the factor is one, whatever the sizes."""
    assert NO_RESIDUAL.factor({}) == 1.0


def test_knots_return_their_values() -> None:
    """At a knot of every axis the factor is exactly the sum of the stored logarithms."""
    assert TABLE.factor({"m": 10, "n": 1000}) == pytest.approx(math.exp(0.3 - 0.05))


def test_between_knots_it_is_linear_in_the_logarithm() -> None:
    """Half-way between two knots on a log scale lies the mean of their values."""
    middle = math.sqrt(10 * 100)
    assert TABLE.factor({"m": middle, "n": 10}) == pytest.approx(math.exp((0.2 - 0.1) / 2 + 0.05))


def test_beyond_the_edge_the_edge_value_holds() -> None:
    """Sizes outside the measured range are corrected like the nearest measured one."""
    assert TABLE.factor({"m": 1e9, "n": 1e9}) == TABLE.factor({"m": 100, "n": 1000})


@given(st.lists(st.tuples(st.floats(0.01, 1e6), st.floats(0.01, 1e6)), min_size=1, max_size=10))
def test_arrays_and_numbers_agree(points: list[tuple[float, float]]) -> None:
    """The vectorised evaluation used in fits is the same function."""
    m, n = (np.array(column) for column in zip(*points, strict=True))
    together = array_factor(TABLE, {"m": m, "n": n})
    np.testing.assert_allclose(together, [TABLE.factor({"m": a, "n": b}) for a, b in points], rtol=1e-9)
