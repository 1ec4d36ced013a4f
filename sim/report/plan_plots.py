"""Figures of a plan. Each function draws one, or returns None when the plan has nothing to show in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sim.planner.plan import Plan
from sim.planner.study import CurvePoint, Study
from sim.report.plan_rows import BOUNDS, day_rows, ordered
from sim.report.style import COLOURS, axes_of, new_figure

_LOOKS = (
    ("#0072b2", "o", "-"), ("#d55e00", "s", "--"), ("#009e73", "^", "-."), ("#8c6bb1", "D", ":"), ("#e69f00", "v", "-"),
    ("#56b4e9", "P", "--"), ("#cc79a7", "X", "-."),
)  # fmt: skip
_BEYOND = 4.0
"""Latencies above so many times the objective are not drawn: there the queue grows, and the run's length decides."""
_SHOWN_FLEETS = len(_LOOKS)


@dataclass(frozen=True)
class PlanFigure:
    """A figure that a plan's page may hold."""

    name: str
    title: str
    caption: str
    draw: Callable[[Plan], Figure | None]


def _curves(plan: Plan) -> list[tuple[str, Study, dict[str, Any]]]:
    return [
        (key, one, {"color": colour, "marker": marker, "ls": line, "ms": 4.5})
        for (key, one), (colour, marker, line) in zip(ordered(plan), _LOOKS, strict=False)
        if one.curve
    ]


def latency_rate(plan: Plan) -> Figure | None:
    """TTFT and TPOT against the rate, with objective, planned rate and knee."""
    curves = _curves(plan)
    if not curves:
        return None
    limits = _limits(plan)
    figure = new_figure(3.7)
    for axes, metric, name in zip(axes_of(figure, 1, 2), ("ttft", "tpot"), ("TTFT", "TPOT"), strict=True):
        limit = limits.get(metric)
        top = 0.0
        for key, one, look in curves:
            top = max(top, _against_rate(axes, one, f"p99_{metric}_ms", look, key))
        if limit is not None:
            axes.axhline(limit[1], color=COLOURS["limit"], lw=1.2, ls=(0, (4, 2)))
            axes.annotate(f"{limit[0]} limit", (0.02, limit[1]), xycoords=("axes fraction", "data"), fontsize=8,
                          color=COLOURS["limit"], va="bottom")  # fmt: skip
            top = min(max(top, 1.2 * limit[1]), _BEYOND * limit[1])
        if plan.rate is not None:
            axes.axvline(plan.rate, color="#777777", lw=1.2, ls=":", label="planned rate" if metric == "ttft" else None)
        axes.set_title(f"{name} p99")
        axes.set_xlabel("requests/s on the whole fleet")
        axes.set_ylabel("ms")
        axes.set_ylim(0, 1.08 * top)
        axes.set_xlim(left=0)
    figure.legend(loc="outside upper left", ncols=3, fontsize=8.5)
    return figure


def _against_rate(axes: Axes, one: Study, name: str, look: Mapping[str, Any], key: str) -> float:
    """One curve with the range over the seeds, and a ring at the knee; returns its highest value up to there."""
    rates = [point.rate for point in one.curve]
    means = [point.mean(name) for point in one.curve]
    label = f"{one.gpus} x {key}" if "label" not in look and axes.get_title() == "" and name == "p99_ttft_ms" else None
    axes.plot(rates, means, label=label, **look)
    spread = np.array([point.values(name) for point in one.curve])
    axes.fill_between(rates, spread.min(axis=1), spread.max(axis=1), color=look["color"], alpha=0.18, lw=0)
    if one.capacity is None:
        return max(means)
    at_knee = float(np.interp(one.capacity, rates, means))
    axes.plot([one.capacity], [at_knee], "o", ms=10, mfc="none", mec=look["color"], mew=1.6)
    return max([v for rate, v in zip(rates, means, strict=True) if rate <= 1.001 * one.capacity] + [1.3 * at_knee])


def pareto(plan: Plan) -> Figure | None:
    """Output tokens per second and GPU against tokens per second that one user sees."""
    curves = _curves(plan)
    if not curves:
        return None
    figure = new_figure(3.6)
    (axes,) = axes_of(figure)
    for key, one, look in curves:
        points = [(_per_user(point), point.mean("output_throughput_per_gpu"), point) for point in one.curve]
        held = [(x, y) for x, y, point in points if all(o.holds for o in point.outcomes)]
        broken = [(x, y) for x, y, point in points if not all(o.holds for o in point.outcomes)]
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], color=look["color"], ls=look["ls"], lw=1.4)
        axes.plot(*zip(*held, strict=True), look["marker"], ms=6, color=look["color"],
                  label=f"{one.gpus} x {key}") if held else None  # fmt: skip
        axes.plot(*zip(*broken, strict=True), look["marker"], ms=6, mfc="none", mec=look["color"]) if broken else None
    axes.set_xlabel("tokens/s that one user sees (1 / mean TPOT)")
    axes.set_ylabel("output tokens/s per GPU")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(loc="best", fontsize=8.5)
    return figure


def _per_user(point: CurvePoint) -> float:
    return 1e3 / max(point.mean("mean_tpot_ms"), 1e-9)


def kv_memory(plan: Plan) -> Figure | None:
    """Share of the KV cache in use against the rate: peak and mean."""
    curves = _curves(plan)
    if not curves:
        return None
    figure = new_figure(3.0)
    (axes,) = axes_of(figure)
    for key, one, look in curves:
        rates = [point.rate for point in one.curve]
        for statistic, style in (("peak", look["ls"]), ("mean", (0, (1, 1.5)))):
            shares = [100 * float(np.mean([o.summary["kv"][f"{statistic}_used_share"] for o in p.outcomes]))
                      for p in one.curve]  # fmt: skip
            label = f"{one.gpus} x {key}" if statistic == "peak" else None
            axes.plot(rates, shares, color=look["color"], ls=style, marker=look["marker"], ms=4, label=label)
    if plan.rate is not None:
        axes.axvline(plan.rate, color="#777777", lw=1.2, ls=":", label="planned rate")
    axes.set_xlabel("requests/s on the whole fleet")
    axes.set_ylabel("% of the KV cache in use")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 103)
    axes.legend(loc="best", fontsize=8.5)
    return figure


def cost(plan: Plan) -> Figure | None:
    """Dollars per hour, with the range over the market."""
    fleets = [(key, one, usd) for key, one in ordered(plan)[:_SHOWN_FLEETS]
              if (usd := plan.costs[key].usd_per_hour) is not None]  # fmt: skip
    if not fleets:
        return None
    figure = new_figure(0.9 + 0.45 * len(fleets))
    (axes,) = axes_of(figure)
    names = [f"{one.gpus} x {one.candidate.option.hardware}" for _, one, _ in fleets]
    middle = [usd[1] for _, _, usd in fleets]
    errors = [[usd[1] - usd[0] for _, _, usd in fleets], [usd[2] - usd[1] for _, _, usd in fleets]]
    colours = [look[0] for _, look in zip(fleets, _LOOKS, strict=False)]
    places = range(len(fleets))
    axes.barh(places, middle, xerr=errors, color=colours, alpha=0.75, height=0.6, ecolor="#555555", capsize=3)
    for place, (_, _, usd) in enumerate(fleets):
        at: Any = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
        axes.annotate(f"${usd[1]:,.2f}", (usd[2], place), **at)
    axes.set_xlim(right=1.15 * max(usd[2] for _, _, usd in fleets))
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("USD per hour (whiskers: cheap and dear end of the market)")
    return figure


def limits(plan: Plan) -> Figure | None:
    """What the busy time of each fleet is bound by."""
    fleets = ordered(plan)[:_SHOWN_FLEETS]
    if not fleets:
        return None
    figure = new_figure(1.2 + 0.45 * len(fleets))
    (axes,) = axes_of(figure)
    left = np.zeros(len(fleets))
    for name, words in BOUNDS.items():
        parts = np.array([100 * one.anatomy.bounds.get(name, 0.0) for _, one in fleets])
        if parts.any():
            axes.barh(range(len(fleets)), parts, left=left, color=COLOURS[name], height=0.6, label=words)
            left += parts
    axes.set_yticks(range(len(fleets)), [f"{one.gpus} x {one.candidate.option.hardware}" for _, one in fleets])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the busy time at the planned rate")
    figure.legend(loc="outside upper left", ncols=5, fontsize=8.5)
    return figure


def day(plan: Plan) -> Figure | None:
    """The rate over the day, and the replicas that each hour needs."""
    rows = day_rows(plan)
    if not rows or plan.traffic.day is None:
        return None
    figure = new_figure(3.4)
    rate, fleet = axes_of(figure, 2, 1, share_x=True)
    unit, scale = ("h", 3600.0) if plan.traffic.day.part_s > 600 else ("s", 1.0)
    edges = [row["from_s"] / scale for row in rows] + [(rows[-1]["from_s"] + plan.traffic.day.part_s) / scale]
    rate.stairs([row["rate"] for row in rows], edges, fill=True, color=COLOURS["arrivals"], alpha=0.4)
    rate.axvline(
        plan.traffic.day.peak_at_s / scale, color=COLOURS["limit"], lw=1.3, ls=(0, (4, 2)), label="planned for"
    )
    rate.set_ylabel("requests/s")
    rate.legend(loc="best", fontsize=8.5)
    fleet.stairs([row["replicas"] for row in rows], edges, color=COLOURS["output"], baseline=None, lw=1.8)
    fleet.set_ylabel("replicas")
    fleet.set_ylim(bottom=0)
    fleet.set_xlabel(f"time ({unit})")
    return figure


def _limits(plan: Plan) -> dict[str, tuple[str, float]]:
    """Metric -> (statistic, limit in ms) of the objectives that the curves can show: those on a p99."""
    winner = next(iter(plan.studies.values()))
    return {line["metric"]: (f"{line['metric'].upper()} {line['statistic']}", line["limit_ms"])
            for line in winner.observed[0].summary["slo"] if line["statistic"] == "p99"}  # fmt: skip


FIGURES = (
    PlanFigure(
        "latency_rate",
        "Latency against rate",
        "Each fleet as it is planned, under more and less traffic; bands span the seeds. The ring is the knee: the "
        "highest rate that holds every objective. The dashed red line is the objective.",
        latency_rate,
    ),
    PlanFigure(
        "pareto",
        "Throughput against speed",
        "The same fleets from light load (right) to overload (left). Up is cheaper per token, right is faster for each "
        "user. Hollow marks miss an objective.",
        pareto,
    ),
    PlanFigure(
        "cost",
        "Cost of the fleets",
        "All replicas, spare ones included, at the prices of the hardware profiles or of the scenario's cost key.",
        cost,
    ),
    PlanFigure(
        "limits",
        "What limits each fleet",
        "Where the busy time goes at the planned rate. Memory bandwidth bounds small decode batches, compute bounds "
        "prompts; links are transfers between the GPUs of a replica.",
        limits,
    ),
    PlanFigure(
        "kv_memory",
        "KV cache against rate",
        "Peak (marked line) and mean (dotted). A cache that fills up before the objectives break is what to buy memory "
        "or quantise for.",
        kv_memory,
    ),
    PlanFigure(
        "day",
        "Over the day",
        "The fleet is sized for the busiest stretch; the lower panel is what each part of the day needs of it.",
        day,
    ),
)
