"""The figures of an explanation: the roofline with the run's operators on it, latency in parts, changes, waterfall."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from sim.explain.changes import Tried
from sim.explain.operators import PHASES, Operators, Roofs, Work, totals
from sim.explain.request_time import PARTS
from sim.explain.run import Explanation
from sim.explain.waterfall import Waterfall
from sim.report.style import COLOURS, INK, WIDTH_IN, axes_of, house_style, new_figure, settle, three_digits

Drawn = tuple[str, str, str, Figure]
"""Name of the file, title, caption, figure."""
_PHASE_COLOURS: Mapping[str, str] = {"prefill": COLOURS["compute"], "decode": COLOURS["tpot"]}
_MARKERS: Mapping[str, str] = {"prefill": "s", "decode": "o"}
_PART_COLOURS: Mapping[str, str] = {
    "queue": "waiting", "host": "itl", "prefill": "prefill", "decode": "output", "preempted": "tpot",
    "transfer": "e2el",
}  # fmt: skip
_LABELLED = 0.015
"""Share of all time from which an operator is named on the roofline."""


def explanation_figures(found: Explanation) -> Iterator[Drawn]:
    """The figures of a run for which it has data."""
    yield _drawn(
        "roofline",
        "Roofline: prefill and decode",
        "Each operator of the run at its arithmetic intensity and the FLOP/s it reached; the larger, the more of the "
        "time it took. Left of the ridge memory is the limit, right of it the tensor cores. The roofs are the "
        "datasheet's; crosses are whole phases, with the time of what computes nothing (norms, sampling, host).",
        _roofline(found.operators, found.roofs),
    )
    if found.latency:
        yield _drawn(
            "latency_parts",
            "Where single requests' time went",
            "The requests at the 50th and the 99th percentile of TTFT and of end-to-end latency.",
            _latency_parts(found.latency),
        )
    tried = [change for change in found.tried if change.gain is not None]
    if tried:
        yield _drawn(
            "changes",
            "What each change would buy",
            "Traffic served within the objectives, over what the scenario serves as it is; each bar is a search over "
            "simulated runs. Light bars need other or more hardware.",
            _changes(tried, found.result.facts["gpus"]),
        )


def waterfall_figures(found: Waterfall) -> Iterator[Drawn]:
    """The waterfall as one figure of two panels, and the 99th percentiles along it."""
    yield _drawn(
        "waterfall",
        "One technique at a time",
        "Above: the most requests per second that meet the objectives, from the naive server on, each row with one "
        "technique more. Below: everything on but this one; what is missing to the dashed line is what it is worth "
        "where all others are on.",
        _waterfall(found),
    )
    yield _drawn(
        "waterfall_latency",
        "The scenario's own traffic",
        "The 99th percentiles of TTFT and TPOT under the scenario's own load, whether it can be served or not; red "
        "lines are the objectives.",
        _waterfall_latency(found),
    )


def _drawn(name: str, title: str, caption: str, figure: Figure) -> Drawn:
    with house_style():
        settle(figure)
    return name, title, caption, figure


def _roofline(operators: Operators, roofs: Roofs) -> Figure:
    with house_style():
        figure = new_figure(4.4)
        (axes,) = axes_of(figure)
        points = {key: work for key, work in operators.items() if work.intensity is not None}
        phases = {phase: work for phase, work in totals(operators).items() if phase in PHASES and work.intensity}
        intensities = [work.intensity for work in (*points.values(), *phases.values()) if work.intensity]
        low, high = min([*intensities, 1.0]) / 2, max([*intensities, roofs.ridge * 4]) * 2
        x = np.geomspace(low, high, 200)
        axes.loglog(x, np.minimum(x * roofs.bytes_per_s, roofs.flops_per_s) / 1e12, color=INK, lw=1.6)
        axes.axvline(roofs.ridge, color=INK, lw=0.8, ls=(0, (2, 3)))
        axes.annotate(
            f"ridge {roofs.ridge:,.0f} FLOP/byte", (roofs.ridge, 0), (4, 6), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=8.5,
        )  # fmt: skip
        whole = sum(work.seconds for work in operators.values())
        _points(axes, points, whole)
        for phase, work in phases.items():
            axes.plot([work.intensity or 0.0], [work.flops / work.seconds / 1e12], marker="x", ms=9, mew=2.2, ls="none",
                      color=_PHASE_COLOURS[phase], label=f"{phase}, all of it")  # fmt: skip
        axes.set_xlim(low, high)
        axes.set_xlabel("arithmetic intensity (FLOP per byte of HBM traffic)")
        axes.set_ylabel("TFLOP/s reached, one GPU")
        axes.set_title(f"{roofs.hardware}: {roofs.flops_per_s / 1e12:,.0f} TFLOP/s {roofs.compute}, "
                       f"{roofs.bytes_per_s / 1e12:.2f} TB/s")  # fmt: skip
        axes.legend(loc="upper left", markerscale=0.8)
    return figure


def _points(axes: Axes, points: Mapping[tuple[str, str], Work], whole: float) -> None:
    for phase in PHASES:
        own = [(name, work) for (of, name), work in points.items() if of == phase]
        axes.scatter(
            [work.intensity or 0 for _, work in own], [work.flops / work.seconds / 1e12 for _, work in own],
            [20 + 900 * work.seconds / whole for _, work in own], color=_PHASE_COLOURS[phase], alpha=0.55,
            marker=_MARKERS[phase], label=phase, linewidths=0, zorder=3,
        )  # fmt: skip
        named = [(name, work) for name, work in own if work.seconds >= _LABELLED * whole]
        for (x, y), names in _together(named).items():
            axes.annotate(names, (x, y), (9, -12), textcoords="offset points", fontsize=8)


def _together(named: Sequence[tuple[str, Work]]) -> dict[tuple[float, float], str]:
    """Operators that lie on each other share a label, which then stands at the largest of them."""
    groups: list[tuple[float, float, list[str]]] = []
    for name, work in sorted(named, key=lambda item: -item[1].seconds):
        x, y = work.intensity or 0.0, work.flops / work.seconds / 1e12
        near = next((g for g in groups if abs(np.log(g[0] / x)) < 0.35 and abs(np.log(g[1] / y)) < 0.5), None)
        if near is None:
            groups.append((x, y, [name]))
        else:
            near[2].append(name)
    return {(x, y): ", ".join(names) for x, y, names in groups}


def _latency_parts(rows: Sequence[Mapping[str, Any]]) -> Figure:
    with house_style():
        figure = new_figure(2.7)
        panels = axes_of(figure, 1, 2)
        for axes, (metric, title) in zip(
            panels, (("ttft", "Time to first token"), ("e2el", "End-to-end")), strict=True
        ):
            own = [row for row in rows if row["metric"] == metric]
            names = [f"p{row['percentile']}" for row in own]
            left = np.zeros(len(own))
            for part in PARTS:
                widths = np.array([row[part] * 1e3 for row in own])
                if any(row[part] > 0 for row in rows):
                    axes.barh(names, widths, left=left, color=COLOURS[_PART_COLOURS[part]], label=part, height=0.6)
                left = left + widths
            axes.set_title(title)
            axes.set_xlabel("ms")
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.invert_yaxis()
            axes.grid(visible=False, axis="y")
        panels[0].legend(loc="lower left", bbox_to_anchor=(0, 1.12), ncols=6, borderaxespad=0, columnspacing=1.2)
    return figure


def _changes(tried: Sequence[Tried], gpus: int) -> Figure:
    with house_style():
        figure = new_figure(0.9 + 0.28 * len(tried))
        (axes,) = axes_of(figure)
        gains = [change.gain or 0.0 for change in tried]
        bought = [change.gpus != gpus or "hardware" in change.settings for change in tried]
        colours = [COLOURS["prefill"] if other else COLOURS["compute"] for other in bought]
        axes.barh([change.name for change in tried], gains, color=colours, height=0.7)
        labels = [
            f"{gain:.2f}x" + (f" ({change.gpus} GPU{'s' * (change.gpus > 1)})" if other else "")
            for gain, change, other in zip(gains, tried, bought, strict=True)
        ]
        for row, (gain, label) in enumerate(zip(gains, labels, strict=True)):
            place = max(gain, 1.0)  # clear of the line
            axes.annotate(label, (place, row), (5, 0), textcoords="offset points", va="center", fontsize=8.5)
        axes.axvline(1.0, color=INK, lw=1.0, ls=(0, (4, 2)))
        axes.set_xlim(0, max(gains) * 1.2)
        axes.set_xlabel("requests per second within the objectives, the scenario as it is = 1")
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
    return figure


def _waterfall(found: Waterfall) -> Figure:
    with house_style():
        rows = len(found.steps), max(len(found.without), 1)
        figure = Figure(figsize=(WIDTH_IN, 1.6 + 0.3 * sum(rows)))
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=rows)
        rates = [step.served.requests_per_s for step in found.steps]
        before = [0.0, *rates[:-1]]
        lost = [min(a, b) for a, b in zip(before, rates, strict=True)]
        upper.barh(_names(found), lost, color=COLOURS["free"], height=0.7)
        upper.barh(
            _names(found), [abs(b - a) for a, b in zip(before, rates, strict=True)], left=lost, height=0.7,
            color=[COLOURS["output"] if b >= a else COLOURS["limit"] for a, b in zip(before, rates, strict=True)],
        )  # fmt: skip
        _labelled(upper, rates, max(rates), clear_of=[max(a, b) for a, b in zip(before, rates, strict=True)])
        upper.set_title("switched on in turn")
        left = [step.served.requests_per_s for step in found.without]
        lower.barh([step.name for step in found.without], left, color=COLOURS["compute"], height=0.7)
        lower.axvline(rates[-1], color=INK, lw=1.0, ls=(0, (4, 2)))
        _labelled(lower, left, max(rates), clear_of=[rates[-1]] * len(left))
        lower.set_title("all but this one")
        lower.set_xlabel("requests/s within the objectives")
    return figure


def _names(found: Waterfall) -> list[str]:
    return [found.steps[0].name, *(f"+ {step.name}" for step in found.steps[1:])]


def _labelled(axes: Axes, rates: Sequence[float], most: float, clear_of: Sequence[float]) -> None:
    for row, (rate, drawn) in enumerate(zip(rates, clear_of, strict=True)):
        text = f"{rate:,.3g}" if rate else "misses the objectives under any load"
        place = max(rate, drawn) if rate else 0.0
        axes.annotate(text, (place, row), (5, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_xlim(0, max(most, 1e-9) * 1.12)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def _waterfall_latency(found: Waterfall) -> Figure:
    limits = {key.removesuffix("_ms"): limit for key, limit in found.objectives.items() if key.endswith("_ms")}
    with house_style():
        figure = new_figure(0.9 + 0.28 * len(found.steps))
        panels = axes_of(figure, 1, 2)
        for axes, metric in zip(panels, ("ttft", "tpot"), strict=True):
            values = [step.at_this_load[f"p99_{metric}_ms"] or np.nan for step in found.steps]
            axes.barh(_names(found), values, color=COLOURS[metric], height=0.7)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda ms, _: three_digits(ms) if ms < 1e4 else f"{three_digits(ms / 1e3)}k")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.xaxis.set_major_locator(LogLocator(numticks=4))
            limit = limits.get(f"{metric}_p99")
            for row, value in enumerate(values):
                place = value if limit is None or value > limit else limit  # clear of the line
                axes.annotate(three_digits(value), (place, row), (4, 0), textcoords="offset points", va="center",
                              fontsize=8)  # fmt: skip
            axes.set_xlim(min(np.nanmin(values), limit or np.inf) / 2, np.nanmax(values) * 4)
            if limit is not None:
                axes.axvline(limit, color=COLOURS["limit"], lw=1.4, ls=(0, (4, 2)))
            axes.set_xlabel(f"{metric.upper()} p99 (ms)")
            axes.invert_yaxis()
            axes.grid(visible=False, axis="y")
        panels[1].set_yticklabels([])
    return figure
