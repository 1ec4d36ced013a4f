"""A figure of predicted over measured values, one panel per kind of metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from sim.validation.serving.score import Scored, comparable

_PANELS: Mapping[str, tuple[str, ...]] = {
    "TTFT (ms)": ("ttft_mean", "ttft"),
    "TPOT (ms)": ("tpot_mean", "tpot", "itl_mean"),
    "E2E (ms)": ("e2e_mean", "e2e_derived"),
    "output tokens/s": ("out_tok_s", "out_tok_s_gpu_derived"),
}
_BAND = 1.2


def save_figure(scored: Sequence[Scored], path: Path) -> None:
    """Predicted against measured on logarithmic axes, coloured by table, with a band of 20 % around equality."""
    tables = sorted({line.case.table for line in scored})
    figure, axes = plt.subplots(2, 2, figsize=(10, 9), layout="constrained")
    for axis, (title, metrics) in zip(axes.flat, _PANELS.items(), strict=True):
        for colour, table in enumerate(tables):
            chosen = [s for s in scored if s.case.table == table and s.metric in metrics and comparable(s)]
            axis.plot([s.actual for s in chosen], [s.predicted for s in chosen], ".", ms=4, color=f"C{colour}",
                      alpha=0.6, label=table)  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="measured", ylabel="predicted", title=title)
        low, high = (f(axis.get_xlim()[i], axis.get_ylim()[i]) for i, f in ((0, min), (1, max)))
        axis.plot([low, high], [low, high], "k-", lw=0.8)
        axis.fill_between([low, high], [low / _BAND, high / _BAND], [low * _BAND, high * _BAND], color="k", alpha=0.08)
    axes.flat[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
