"""Figures about kernel predictions: errors by class, and a roofline with measured points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sim.cost.calibration import Calibration
from sim.cost.explain_kernel import explain_kernel
from sim.cost.kernels.chip import Chip
from sim.validation.kernel_report import Priced, price_tables
from sim.validation.tables import read_tables

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


def save_all_kernels_figure(parts: Sequence[Priced], chip: Chip, path: Path) -> None:
    """Every measured kernel: FLOP/s under the roofline, and those without arithmetic by the bandwidth they reach."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    roof, bandwidth = figure.subplots(1, 2)
    grid = np.geomspace(0.25, 1e5, 300)
    for multiply in sorted({part.traffic.multiply for part in parts if part.traffic.multiply}):
        rate = np.minimum(chip.peak(multiply), grid * chip.hbm_bytes_per_s)
        roof.plot(grid, rate / 1e12, color="black", linewidth=1)
        roof.annotate(multiply, (grid[-1], rate[-1] / 1e12), fontsize=7, ha="right", va="bottom")
    bandwidth.axhline(chip.hbm_bytes_per_s / 1e12, color="black", linewidth=1)
    for part in parts:
        flops, moved, _ = part.traffic
        label = f"{part.table.removeprefix('attention_')} {part.number_format}"
        if np.nanmax(flops, initial=0.0) > 0:
            roof.scatter(flops / moved, flops / part.measured_s / 1e12, label=label, **_POINT)
        elif np.isfinite(moved).any():
            bandwidth.scatter(moved, moved / part.measured_s / 1e12, label=label, **_POINT)
    roof.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="TFLOP/s")
    bandwidth.set(xscale="log", yscale="log", xlabel="bytes", ylabel="TB/s (swaps: of HBM's rate for PCIe's)")
    for panel in (roof, bandwidth):
        panel.legend(markerscale=3, fontsize=6, loc="lower right", ncols=2)
    figure.savefig(path, dpi=120)


def save_gemm_roofline(
    calibration: Calibration, sizes: Mapping[str, int], kernel: tuple[str, str], path: Path, measurements: Path | None
) -> None:
    """The roofline of one weight matrix over the number of rows, with this product on it and measured points.

    `sizes` are m, n and k; `kernel` is the number format and the stack. `measurements` is a GEMM table whose rows of
    this GPU and format are drawn as well.
    """
    number_format, stack = kernel
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    panel = figure.subplots()
    rows = [1 << i for i in range(14)]
    priced = [explain_kernel(calibration, "gemm", {**sizes, "m": m}, number_format, stack) for m in rows]
    form: Any = priced[0].entry.kernel.format
    chip = calibration.chip
    points = [_point(m, sizes, form, one.terms.seconds) for m, one in zip(rows, priced, strict=True)]
    this = explain_kernel(calibration, "gemm", sizes, number_format, stack).terms.seconds
    grid = np.geomspace(min(x for x, _ in points) / 2, max(x for x, _ in points) * 2, 200)
    roof = np.minimum(chip.peak(form.multiply), grid * chip.hbm_bytes_per_s) / 1e12
    panel.plot(grid, roof, color="black", linewidth=1, label="datasheet roof")
    if measurements is not None:
        parts = price_tables(read_tables([measurements]), calibration)
        for part in (p for p in parts if p.table == "gemm" and p.number_format == number_format):
            flops, moved, _ = part.traffic
            panel.scatter(flops / moved, flops / part.measured_s / 1e12, color="tab:orange", label="measured", **_POINT)
    panel.plot(
        *zip(*points, strict=True), color="tab:blue", label=f"n = {sizes['n']:,}, k = {sizes['k']:,}, m = 1 to 8192"
    )
    panel.plot(*_point(sizes["m"], sizes, form, this), "o", color="tab:red", label=f"m = {sizes['m']:,}")
    panel.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="TFLOP/s")
    panel.set_title(f"{number_format} GEMM on {chip.name}", fontsize=10)
    panel.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=120)


def _point(m: int, sizes: Mapping[str, int], form: Any, seconds: float) -> tuple[float, float]:
    flops = 2.0 * m * sizes["n"] * sizes["k"]
    moved = sizes["n"] * sizes["k"] * form.weight_bytes + m * sizes["k"] * form.activation_bytes + m * sizes["n"] * 2
    return flops / moved, flops / seconds / 1e12
