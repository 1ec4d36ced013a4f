"""Figures about kernel predictions: errors by class, and a roofline with measured points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sim.cost.kernels.chip import Chip
from sim.validation.kernel_report import Priced

Floats = npt.NDArray[np.float64]
_COLUMNS = 4
_PANEL_INCHES = (3.2, 2.4)
_DOTS_PER_INCH = 80
_POINT: dict[str, Any] = {"s": 3, "alpha": 0.35, "linewidths": 0, "rasterized": True}


def save_error_figure(parts: Sequence[Priced], path: Path) -> None:
    """One panel per table and format: predicted over measured time against the measured time, datasheet in grey."""
    shown = [part for part in parts if np.isfinite(part.predicted_s).any()]
    rows = max(-(-len(shown) // _COLUMNS), 1)
    figure = Figure(figsize=(_COLUMNS * _PANEL_INCHES[0], rows * _PANEL_INCHES[1]), layout="constrained")
    axes = figure.subplots(rows, _COLUMNS, squeeze=False)
    for unused in axes.flat[len(shown) :]:
        unused.set_visible(False)
    for panel, part in zip(axes.flat, shown, strict=False):
        _error_panel(panel, part)
    if shown:
        axes.flat[0].legend(markerscale=3, fontsize=7, loc="upper right")
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def _error_panel(panel: Axes, part: Priced) -> None:
    micro = part.measured_s * 1e6
    panel.scatter(micro, part.datasheet_s / part.measured_s, color="0.6", label="datasheet", **_POINT)
    panel.scatter(micro, part.predicted_s / part.measured_s, color="tab:blue", label="calibrated", **_POINT)
    panel.axhline(1.0, color="black", linewidth=0.8)
    panel.set(xscale="log", ylim=(0, 2), xlabel="measured (us)", ylabel="predicted / measured")
    panel.set_title(f"{part.gpu} {part.table} {part.number_format}", fontsize=9)


def save_roofline_figure(parts: Sequence[Priced], chip: Chip, path: Path) -> None:
    """GEMMs by format: FLOP/s reached, measured and predicted, under the datasheet's roof."""
    gemms = [part for part in parts if part.table == "gemm" and np.isfinite(part.predicted_s).all()]
    figure = Figure(figsize=(3.6 * max(len(gemms), 1), 3.2), layout="constrained")
    axes = figure.subplots(1, max(len(gemms), 1), squeeze=False)
    for panel, part in zip(axes.flat, gemms, strict=False):
        _roofline_panel(panel, part, chip)
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def _roofline_panel(panel: Axes, part: Priced, chip: Chip) -> None:
    flops, moved, multiply = part.traffic
    intensity = flops / moved
    grid = np.geomspace(intensity.min() / 2, intensity.max() * 2, 200)
    panel.plot(grid, np.minimum(chip.peak(multiply), grid * chip.hbm_bytes_per_s) / 1e12, color="black", linewidth=1)
    panel.scatter(intensity, flops / part.measured_s / 1e12, color="tab:orange", label="measured", **_POINT)
    panel.scatter(intensity, flops / part.predicted_s / 1e12, color="tab:blue", label="calibrated", **_POINT)
    panel.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="TFLOP/s")
    panel.set_title(f"{part.gpu} GEMM {part.number_format}", fontsize=9)
    panel.legend(markerscale=3, fontsize=7, loc="lower right")
