"""Figures of one run. Each function draws one, or returns None when the run has nothing to show in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sim.latencies import ttft_s
from sim.report.evidence import Evidence
from sim.report.style import COLOURS, LINES, axes_of, new_figure, three_digits
from sim.series import (
    Floats,
    blocks_of_replicas,
    grid_over,
    percentile_by_arrival,
    run_window_ps,
    steps_by_sequences,
)
from sim.units import PS_PER_S

TITLES: Mapping[str, str] = {
    "ttft": "Time to first token (TTFT)",
    "tpot": "Time per output token (TPOT)",
    "itl": "Inter-token latency (ITL)",
    "e2el": "End-to-end latency (E2E)",
}
_GIB = 2**30
_CURVE_PERCENTS = np.concatenate([np.arange(0, 99, 0.5), np.arange(99, 100, 0.02), [100.0]])
_BARS = 40
_LATENCY_BINS = 60
_REQUESTS_PER_LATENCY_BIN = 25


def latency_cdf(evidence: Evidence) -> Figure | None:
    """Cumulative distributions of the four latencies, with median, p99 and the objectives."""
    if not len(evidence.samples["ttft"]):
        return None
    figure = new_figure(5.4)
    for axes, (metric, title) in zip(axes_of(figure, 2, 2), TITLES.items(), strict=True):
        axes.set_title(title)
        _cdf_panel(axes, evidence, metric)
    return figure


def _cdf_panel(axes: Axes, evidence: Evidence, metric: str) -> None:
    sample = evidence.samples[metric]
    axes.set_ylabel("share of token gaps" if metric == "itl" else "share of requests")
    axes.set_ylim(0, 1.13)
    axes.set_yticks(np.linspace(0, 1, 6))
    if not len(sample):
        axes.text(0.5, 0.5, "nothing observed", ha="center", transform=axes.transAxes)
        axes.set_xlabel("ms")
        return
    curve = sample.percentiles(_CURVE_PERCENTS)
    median, p99, top = (float(x) for x in sample.percentiles(np.array([50.0, 99.0, 99.9])))
    limits = [(s, ms / 1e3) for s, ms in evidence.slo_limits_ms.get(metric, []) if ms / 1e3 < 3 * top]
    unit, factor = ("s", 1.0) if top >= 3 else ("ms", 1e3)
    axes.plot(curve * factor, _CURVE_PERCENTS / 100, color=COLOURS[metric], ls=LINES.get(metric, "-"))
    right = 1.25 * max(top, p99, *(limit for _, limit in limits), 1e-9)
    for value, share, label, offset, side in (
        (
            median,
            0.5,
            "median",
            (7, -9) if median < 0.5 * right else (-7, -3),
            "left" if median < 0.5 * right else "right",
        ),
        (p99, 0.99, "p99", (0, 5), "center"),
    ):
        axes.plot([value * factor], [share], "o", ms=4.5, color=COLOURS[metric])
        text = f"{label} {three_digits(value * factor)} {unit}"
        at = (max(value, 0.14 * right) * factor if side == "center" else value * factor, share)
        axes.annotate(text, at, xytext=offset, textcoords="offset points", fontsize=8.5, ha=side)
    for statistic, limit in limits:
        axes.axvline(limit * factor, color=COLOURS["limit"], lw=1.2, ls=(0, (4, 2)))
        place: Any = {"ha": "left" if limit < 0.1 * right else "right", "va": "bottom", "rotation": 90}
        axes.annotate(f"{statistic} limit", (limit * factor, 0.6), fontsize=8, color=COLOURS["limit"], **place)
    axes.set_xlim(0, right * factor)
    axes.set_xlabel(unit)


def latency_over_time(evidence: Evidence) -> Figure | None:
    """TTFT by time of arrival: flat when the system keeps up, a ramp when it does not."""
    requests = evidence.result.requests
    served = requests.where(requests["first_token_ps"] >= 0)
    if len(served) < 2 or not np.ptp(requests["arrival_ps"]):
        return None
    bins = int(np.clip(len(served) // _REQUESTS_PER_LATENCY_BIN, 4, _LATENCY_BINS))
    start, _ = run_window_ps(requests)
    grid = grid_over(start, int(requests["arrival_ps"].max()) + 1, bins)
    median, p99 = (percentile_by_arrival(served, ttft_s(served), grid, p) for p in (50, 99))
    unit, factor = ("s", 1.0) if np.nanmax(p99) >= 3 else ("ms", 1e3)
    figure = new_figure(2.6)
    (axes,) = axes_of(figure)
    axes.fill_between(grid.middles_s, median * factor, p99 * factor, color=COLOURS["ttft"], alpha=0.18, lw=0)
    axes.plot(grid.middles_s, p99 * factor, color=COLOURS["ttft"], ls=":", lw=1.4, label="p99")
    axes.plot(grid.middles_s, median * factor, color=COLOURS["ttft"], label="median")
    for statistic, limit in evidence.slo_limits_ms.get("ttft", []):
        if limit / 1e3 < 3 * np.nanmax(p99):
            axes.axhline(
                limit / 1e3 * factor, color=COLOURS["limit"], lw=1.2, ls=(0, (4, 2)), label=f"{statistic} limit"
            )
    axes.set_xlabel("time of arrival (s)")
    axes.set_ylabel(f"TTFT ({unit})")
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, grid.bins * grid.width_s)
    _legend_above(axes)
    return figure


def throughput(evidence: Evidence) -> Figure | None:
    """Tokens and requests per second over the run."""
    series = evidence.series
    if not len(evidence.result.steps):
        return None
    figure = new_figure(5.2)
    tokens, prompts, requests = axes_of(figure, 3, 1, share_x=True)
    x = series.grid.edges_s
    _filled(tokens, x, series.output_tokens_per_s, "output")
    tokens.set_title("Output tokens")
    _filled(prompts, x, series.prefill_tokens_per_s, "prefill")
    prompts.set_title("Prefill tokens")
    requests.stairs(series.arrivals_per_s, x, fill=True, color=COLOURS["arrivals"], alpha=0.35, label="arrivals")
    _outline(requests, x, series.completions_per_s, "completions", "completions")
    requests.set_title("Requests")
    for axes, label in ((tokens, "tokens/s"), (prompts, "tokens/s"), (requests, "requests/s")):
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(_compact)
    _time_axis(requests, evidence)
    requests.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.1)
    return figure


def kv_memory(evidence: Evidence) -> Figure | None:
    """KV blocks over time: filled with tokens, held for tokens to come or for nothing, of no use to the queue, free."""
    facts, series = evidence.result.facts, evidence.series
    blocks = sum(blocks_of_replicas(evidence.result))
    if not blocks or not len(evidence.result.steps):
        return None
    block_gib = (facts.get("kv_block_bytes") or 0) / _GIB
    scale, unit = (block_gib, "GiB") if block_gib else (1.0, "blocks")
    reserved = series.kv_blocks - series.kv_blocks_filled - series.kv_blocks_unused
    free = blocks - series.kv_blocks - series.kv_blocks_stranded
    layers = [series.kv_blocks_filled, reserved, series.kv_blocks_unused, series.kv_blocks_stranded, free]
    names = ["kv", "reserved", "fragmentation", "stranded", "free"]
    labels = ["filled with tokens", "reserved", "never filled", "free, refused to the queue", "free"]
    shown = [i for i, layer in enumerate(layers) if layer.any()]
    figure = new_figure(3.0)
    (axes,) = axes_of(figure)
    axes.stackplot(
        series.grid.edges_s,
        [np.append(layers[i], layers[i][-1]).clip(0) * scale for i in shown],
        labels=[labels[i] for i in shown],
        colors=[COLOURS[names[i]] for i in shown],
        step="post",
        lw=0,
    )
    axes.set_ylim(0, blocks * scale)
    axes.set_ylabel(f"KV cache, all replicas ({unit})")
    whole = blocks * scale

    def as_percent(level: Any) -> Any:
        return level * (100 / whole)

    def as_level(percent: Any) -> Any:
        return percent * (whole / 100)

    percent = axes.secondary_yaxis("right", functions=(as_percent, as_level))
    percent.set_ylabel("% of all blocks")
    _time_axis(axes, evidence)
    _legend_above(axes)
    return figure


def queue(evidence: Evidence) -> Figure | None:
    """Requests that run and requests that wait, over time."""
    series = evidence.series
    if not len(evidence.result.requests):
        return None
    figure = new_figure(2.8)
    (axes,) = axes_of(figure)
    for name in ("waiting", "running"):
        values: Floats = getattr(series, name)
        axes.stairs(values, series.grid.edges_s, fill=True, color=COLOURS[name], alpha=0.2, lw=0)
        _outline(axes, series.grid.edges_s, values, name, name)
    axes.set_ylabel("requests")
    axes.set_ylim(0, max(1.0, 1.05 * float(np.max([series.waiting, series.running]))))
    _time_axis(axes, evidence)
    _legend_above(axes)
    return figure


def batch_size(evidence: Evidence) -> Figure | None:
    """Sequences per step: over time, and as a distribution over steps."""
    steps, series = evidence.result.steps, evidence.series
    if not len(steps):
        return None
    figure = new_figure(2.8)
    over_time, spread = axes_of(figure, 1, 2)
    _filled(over_time, series.grid.edges_s, series.batch_size, "batch")
    over_time.set_title("Over time")
    over_time.set_ylabel("sequences per step")
    over_time.set_ylim(bottom=0)
    _time_axis(over_time, evidence, mark=False)
    counts = steps_by_sequences(steps)
    sizes = np.arange(len(counts))
    width = -(-int(sizes[-1]) // _BARS)
    edges = (np.arange(int(sizes[-1]) // width + 2) * width - 0.5).tolist()
    for axis in (over_time.yaxis, spread.xaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    spread.hist(sizes, bins=edges, weights=counts / counts.sum() * 100, color=COLOURS["batch"])
    spread.set_title("Distribution")
    spread.set_xlabel("sequences per step")
    spread.set_ylabel("% of steps")
    return figure


def _filled(axes: Axes, edges_s: Floats, level: Floats, concept: str) -> None:
    axes.stairs(level, edges_s, fill=True, color=COLOURS[concept], alpha=0.25, lw=0)
    _outline(axes, edges_s, level, concept)


def _outline(axes: Axes, edges_s: Floats, level: Floats, concept: str, label: str | None = None) -> None:
    axes.stairs(level, edges_s, baseline=None, color=COLOURS[concept], lw=1.4, ls=LINES.get(concept, "-"), label=label)


def _time_axis(axes: Axes, evidence: Evidence, mark: bool = True) -> None:
    """Seconds since the first arrival, and a line where the last request arrived when the run drains after it."""
    grid, requests = evidence.series.grid, evidence.result.requests
    end = grid.bins * grid.width_s
    axes.set_xlim(0, end)
    axes.set_xlabel("time since the first arrival (s)")
    last = (int(requests["arrival_ps"].max()) - grid.start_ps) / PS_PER_S
    if mark and 0 < last < 0.97 * end:
        axes.axvline(last, color="#777777", lw=1.3, ls=":", label="last arrival")


def _legend_above(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=4, borderaxespad=0)


def _compact(value: float, _position: float) -> str:
    return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k" if abs(value) >= 1e3 else f"{value:g}"
