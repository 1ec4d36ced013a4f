"""Figures of the machine rather than of the traffic: where a GPU's memory and a run's busy time go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sim.report.evidence import Evidence
from sim.report.style import COLOURS, axes_of, new_figure

_GIB = 2**30
_MOST_OPERATORS = 14
MEMORY_PARTS: Mapping[str, tuple[str, str]] = {
    "weight_bytes": ("weights", "weights"),
    "activation_bytes": ("activation peak", "activations"),
    "cuda_graph_bytes": ("CUDA graphs", "cuda_graphs"),
    "framework_bytes": ("framework", "framework"),
    "kv_bytes": ("KV cache", "kv"),
    "unused_bytes": ("left alone", "unused"),
}
"""Key of `facts.memory` -> (what people call it, its colour), in order of address."""


def memory_map(evidence: Evidence) -> Figure | None:
    """One GPU's memory as a single bar."""
    memory: Mapping[str, Any] = evidence.result.facts.get("memory") or {}
    parts = [
        (label, COLOURS[colour], memory[key] / _GIB) for key, (label, colour) in MEMORY_PARTS.items() if memory.get(key)
    ]
    if not parts:
        return None
    total = sum(size for _, _, size in parts)
    figure = new_figure(1.9)
    (axes,) = axes_of(figure)
    left = 0.0
    for label, colour, size in parts:
        axes.barh(
            [0], [size], left=left, color=colour, height=0.8, label=f"{label} {size:.1f} GiB ({size / total:.0%})"
        )
        left += size
    if memory.get("budget_bytes"):
        budget = memory["budget_bytes"] / _GIB
        axes.axvline(budget, color=COLOURS["limit"], lw=1.4, ls=(0, (4, 2)), label=f"budget {budget:.1f} GiB")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, left)
    axes.set_xlabel("memory of one GPU (GiB)")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=3, borderaxespad=0, fontsize=8.5, columnspacing=1.2)
    return figure


def operator_time(evidence: Evidence) -> Figure | None:
    """Seconds by operator, coloured by what bounds each."""
    rows = sorted(evidence.result.facts.get("breakdown") or [], key=lambda row: -row["seconds"])
    if not rows or rows[0]["seconds"] <= 0:
        return None
    total = sum(row["seconds"] for row in rows)
    shown, rest = rows[:_MOST_OPERATORS], rows[_MOST_OPERATORS:]
    names = [str(row["operator"]) for row in shown]
    shares = [row["seconds"] / total * 100 for row in shown]
    colours = [COLOURS.get(row["bound"], COLOURS["free"]) for row in shown]
    if rest:
        names.append(f"{len(rest)} others")
        shares.append(sum(row["seconds"] for row in rest) / total * 100)
        colours.append(COLOURS["free"])
    figure = new_figure(0.9 + 0.27 * len(names))
    (axes,) = axes_of(figure)
    bars = axes.barh(names, shares, color=colours, height=0.7)
    axes.bar_label(bars, [f"{share:.1f} %" for share in shares], padding=4, fontsize=8.5)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, max(shares) * 1.15)
    axes.set_xlabel(f"% of the time of all operators ({total:,.4g} s)")
    bounds = dict.fromkeys(str(row["bound"]) for row in shown)
    handles = [Patch(color=COLOURS.get(bound, COLOURS["free"]), label=f"{bound}-bound") for bound in bounds]
    axes.legend(handles=handles, loc="lower right")
    return figure
