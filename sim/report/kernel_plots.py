"""Figures about kernel predictions: errors by class, and a roofline with measured points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import matplotlib
import numpy as np
import numpy.typing as npt

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Floats = npt.NDArray[np.float64]
_COLUMNS = 4
_PANEL_INCHES = (3.4, 2.6)
_POINT: dict[str, Any] = {"s": 3, "alpha": 0.35, "linewidths": 0, "rasterized": True}


class PricedRows(Protocol):
    """Rows of one table and format, with measured, predicted and datasheet seconds."""

    @property
    def table(self) -> str: ...
    @property
    def gpu(self) -> str: ...
    @property
    def number_format(self) -> str: ...
    @property
    def measured_s(self) -> Floats: ...
    @property
    def predicted_s(self) -> Floats: ...
    @property
    def datasheet_s(self) -> Floats: ...


def save_error_figure(parts: Sequence[PricedRows], path: Path) -> None:
    """One panel per table and format: predicted over measured time against the measured time, datasheet in grey."""
    shown = [part for part in parts if np.isfinite(part.predicted_s).any()]
    rows = max(-(-len(shown) // _COLUMNS), 1)
    size = (_COLUMNS * _PANEL_INCHES[0], rows * _PANEL_INCHES[1])
    figure, axes = plt.subplots(rows, _COLUMNS, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, part in zip(axes.flat, shown, strict=False):
        micro = part.measured_s * 1e6
        axis.scatter(micro, part.datasheet_s / part.measured_s, color="0.6", label="datasheet", **_POINT)
        axis.scatter(micro, part.predicted_s / part.measured_s, color="tab:blue", label="calibrated", **_POINT)
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set(xscale="log", ylim=(0, 2), xlabel="measured (us)", ylabel="predicted / measured")
        axis.set_title(f"{part.gpu} {part.table} {part.number_format}", fontsize=9)
    if shown:
        axes.flat[0].legend(markerscale=3, fontsize=7, loc="upper right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def save_roofline_figure(
    points: tuple[Floats, Floats], peak_flops_per_s: float, hbm_bytes_per_s: float, path: Path, *, title: str
) -> None:
    """Measured points (FLOP per byte, FLOP/s reached) under the datasheet's roof."""
    intensity, reached = points
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    grid = np.geomspace(max(intensity.min() / 2, 1e-2), intensity.max() * 2, 200)
    axis.plot(grid, np.minimum(peak_flops_per_s, grid * hbm_bytes_per_s) / 1e12, color="black", linewidth=1)
    axis.scatter(intensity, reached / 1e12, color="tab:blue", **_POINT)
    axis.set(xscale="log", yscale="log", xlabel="FLOP per byte of HBM traffic", ylabel="TFLOP/s", title=title)
    figure.savefig(path, dpi=110)
    plt.close(figure)
