"""Figures of the machine rather than of the traffic: where a GPU's memory and a run's busy time go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from sim.report.evidence import Evidence
from sim.report.rows import MEMORY_PARTS
from sim.report.style import COLOURS, axes_of, new_figure

_GIB = 2**30
_MOST_OPERATORS = 14
_BOUNDS = ("compute", "memory", "launch", "link", "host", "other")
_MEMORY_COLOURS: Mapping[str, str] = {
    "weight_bytes": "weights",
    "activation_bytes": "activations",
    "cuda_graph_bytes": "cuda_graphs",
    "framework_bytes": "framework",
    "kv_bytes": "kv",
    "unused_bytes": "unused",
}


def memory_map(evidence: Evidence) -> Figure | None:
    """One GPU's memory as a single bar."""
    memory: Mapping[str, Any] = evidence.result.facts.get("memory") or {}
    parts = [
        (label, COLOURS[_MEMORY_COLOURS[key]], memory[key] / _GIB)
        for key, label in MEMORY_PARTS.items()
        if memory.get(key)
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
    """Share of the time by operator, in parts by what bounds it: that may differ from step to step."""
    rows = evidence.result.facts.get("breakdown") or []
    total = sum(row["seconds"] for row in rows)
    if total <= 0:
        return None
    shares = _shares_by_operator(rows, total)
    bounds = [bound for bound in _BOUNDS if any(bound in parts for parts in shares.values())]
    figure = new_figure(0.9 + 0.27 * len(shares))
    (axes,) = axes_of(figure)
    left = [0.0] * len(shares)
    for bound in bounds:
        widths = [parts.get(bound, 0.0) for parts in shares.values()]
        bars = axes.barh(
            list(shares), widths, left=left, color=COLOURS.get(bound, COLOURS["free"]), height=0.7, label=bound
        )
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.bar_label(bars, [f"{share:.1f} %" for share in left], padding=4, fontsize=8.5)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, max(left) * 1.15)
    axes.set_xlabel(f"% of the time of all operators ({total:,.4g} s)")
    axes.legend(loc="lower right", title="bound by")
    return figure


def _shares_by_operator(rows: Sequence[Mapping[str, Any]], total: float) -> dict[str, dict[str, float]]:
    """Operator -> bound -> percent of the time, the largest operator first, small ones together."""
    seconds: dict[str, float] = {}
    for row in rows:
        seconds[str(row["operator"])] = seconds.get(str(row["operator"]), 0.0) + row["seconds"]
    ordered = sorted(seconds, key=lambda name: (-seconds[name], name))
    shown = ordered if len(ordered) <= _MOST_OPERATORS else ordered[: _MOST_OPERATORS - 1]
    shares: dict[str, dict[str, float]] = {name: {} for name in shown}
    for row in rows:
        name = str(row["operator"]) if row["operator"] in shown else f"{len(ordered) - len(shown)} others"
        bound = str(row["bound"]) if row["bound"] in _BOUNDS else "other"
        parts = shares.setdefault(name, {})
        parts[bound] = parts.get(bound, 0.0) + row["seconds"] / total * 100
    return shares
