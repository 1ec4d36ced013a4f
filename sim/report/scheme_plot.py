"""The figure of `roofserve compare schemes`: speed, memory and price of each scheme side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from sim.report.style import COLOURS, axes_of, house_style, new_figure, png_bytes, settle, three_digits

_ROW_IN, _FRAME_IN = 0.3, 1.1


def scheme_figure(rows: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """A PNG with one line of bars per scheme: output tokens/s, TPOT, memory (weights and KV), and $/Mtoken."""
    with house_style():
        figure = new_figure(_FRAME_IN + _ROW_IN * len(rows))
        panels = axes_of(figure, 1, 4)
        _paint(panels, rows)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        settle(figure)
        return png_bytes(figure)


def _paint(panels: Sequence[Axes], rows: Sequence[Mapping[str, Any]]) -> None:
    names = [row["scheme"] for row in rows]
    _bars(panels[0], rows, "output_tok_s", COLOURS["output"])
    _bars(panels[1], rows, "tpot_ms", COLOURS["tpot"])
    _memory(panels[2], rows)
    _bars(panels[3], rows, "usd_per_mtoken", COLOURS["itl"])
    titles = ("output tokens/s", "mean TPOT (ms)", "GPU memory (GB)", "$ per Mtoken")
    for i, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        axes.set_title(title, fontsize=9)
        axes.set_yticks(range(len(names)), names if i == 0 else [])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="x", labelsize=8)


def _bars(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, colour: str) -> None:
    values = [row[key] or 0.0 for row in rows]
    axes.barh(range(len(values)), values, color=colour, height=0.68)
    most = max(values) or 1.0
    for i, value in enumerate(values):
        axes.text(value + 0.02 * most, i, three_digits(value) if value else "refused" if rows[i]["problem"] else "",
                  va="center", fontsize=7.5)  # fmt: skip
    axes.set_xlim(0, 1.32 * most)
    axes.locator_params(axis="x", nbins=3)


def _memory(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    weights, cache = ([row[key] or 0.0 for row in rows] for key in ("weights_gb", "kv_gb"))
    axes.barh(range(len(rows)), weights, color=COLOURS["weights"], height=0.68, label="weights")
    axes.barh(range(len(rows)), cache, left=weights, color=COLOURS["kv"], height=0.68, label="KV cache")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2, fontsize=7.5, handlelength=1.0,
                columnspacing=0.8)  # fmt: skip
    axes.locator_params(axis="x", nbins=3)
