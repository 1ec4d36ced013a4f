"""Fitting the residual table: ridge regression on hat functions in the logarithm of sizes, outliers weighted down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.cost.kernels.residual import ResidualTable, Sheet

Floats = npt.NDArray[np.float64]
Axes = Sequence[tuple[str, tuple[float, ...]]]

_ROUNDS, _LEAST_DEVIATION = 6, 0.02


def hat_basis(x: Floats, knots: Sequence[float]) -> Floats:
    """One column per knot: the weights with which a linear interpolation at log(x) uses the knots."""
    log_knots = np.log(np.asarray(knots, float))
    at = np.clip(np.log(x), log_knots[0], log_knots[-1])
    low = np.clip(np.searchsorted(log_knots, at, side="right") - 1, 0, len(knots) - 2)
    weight = (at - log_knots[low]) / (log_knots[low + 1] - log_knots[low])
    basis = np.zeros((len(at), len(knots)))
    rows = np.arange(len(at))
    basis[rows, low] = 1 - weight
    basis[rows, low + 1] += weight
    return basis


def sheet_basis(axes: Axes, sizes: Mapping[str, Floats]) -> Floats:
    """The tensor product of the axes' hat functions, in the order of `Sheet.values`."""
    basis: npt.NDArray[Any] = np.ones((len(sizes[axes[0][0]]), 1))
    for name, knots in axes:
        hats = hat_basis(sizes[name], knots)
        basis = (basis[:, :, None] * hats[:, None, :]).reshape(len(basis), -1)
    return basis


def fit_residual(plan: Sequence[Axes], sizes: Mapping[str, Floats], log_ratio: Floats, shrink: float) -> ResidualTable:
    """The table that best explains log(measured / formula) in the sense of mean absolute deviation.

    `shrink` is the ridge: how many rows' worth of evidence a value needs before it moves half of the way.
    """
    basis = np.hstack([sheet_basis(axes, sizes) for axes in plan])
    weights: Floats = np.ones(len(log_ratio))
    values: Floats = np.zeros(basis.shape[1])
    for _ in range(_ROUNDS):
        weighted = basis * weights[:, None]
        normal = basis.T @ weighted + shrink * np.eye(basis.shape[1])
        values = np.asarray(np.linalg.solve(normal, weighted.T @ log_ratio), np.float64)
        weights = 1 / np.maximum(np.abs(log_ratio - basis @ values), _LEAST_DEVIATION)
        weights /= weights.mean()
    return ResidualTable(tuple(_split(plan, values)))


def _split(plan: Sequence[Axes], values: Floats) -> list[Sheet]:
    sheets, start = [], 0
    for axes in plan:
        size = int(np.prod([len(knots) for _, knots in axes]))
        rounded = tuple(round(float(v), 3) for v in values[start : start + size])
        sheets.append(Sheet(tuple((name, tuple(knots)) for name, knots in axes), rounded))
        start += size
    return sheets


def array_factor(table: ResidualTable, sizes: Mapping[str, Floats]) -> Floats | float:
    """`ResidualTable.factor` for arrays."""
    if not table.sheets:
        return 1.0
    logs = sum(sheet_basis(sheet.axes, sizes) @ np.asarray(sheet.values) for sheet in table.sheets)
    return np.asarray(np.exp(logs))
