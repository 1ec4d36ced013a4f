"""The figures of reports/offload-study.md: light, labelled, and readable in a grey print."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from offload_cases import CONTEXTS, LINKS, MODELS, POOL_MODES, RATES

from sim.report.style import COLOURS, axes_of, house_style, new_figure, png_bytes, settle

HERE = Path(__file__).resolve().parent
INKS = [COLOURS[name] for name in ("arrivals", "tpot", "running", "waiting", "itl", "e2el", "prefill")]
DASHES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 3))]
MARKS = "osD^vPX"


def draw(name: str, height_in: float, shape: tuple[int, int], paint: Callable[[Figure, list[Axes]], None]) -> None:
    """Save one figure beside the page."""
    with house_style():
        figure = new_figure(height_in)
        paint(figure, axes_of(figure, *shape))
        settle(figure)
        (HERE / f"offload-{name}.png").write_bytes(png_bytes(figure))


def _line(axes: Axes, i: int, x: Sequence[float], y: Sequence[float], label: str) -> None:
    axes.plot(x, y, color=INKS[i], linestyle=DASHES[i], marker=MARKS[i], markersize=4.5, label=label)


def _log(axes: Axes, x: bool = True, y: bool = True, ticks: Sequence[float] = ()) -> None:
    plain = FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    for wanted, scale, axis in ((x, axes.set_xscale, axes.xaxis), (y, axes.set_yscale, axes.yaxis)):
        if wanted:
            scale("log")
            axis.set_major_formatter(plain)
            axis.set_minor_formatter(NullFormatter())
    if ticks:
        axes.set_xticks(list(ticks))
        axes.minorticks_off()


def winners(gains: Mapping[tuple[str, str], Any]) -> None:
    """Throughput of swapping over recomputing (%), by context and link; a grid per model and kind of copy."""

    def paint(figure: Figure, panels: list[Axes]) -> None:
        titles = {"swap": "steps wait for copies", "overlap": "copies beside the steps"}
        for axes, ((model, mode), grid) in zip(panels, gains.items(), strict=True):
            axes.imshow(np.clip(grid, -12, 12), cmap="PuOr", vmin=-24, vmax=24, aspect="auto")
            for (row, column), gain in np.ndenumerate(grid):
                word = "swap" if gain > 0 else "recomp."
                axes.text(
                    column,
                    row,
                    f"{word}\n{gain:+.1f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    fontweight="normal" if gain > 0 else "bold",
                )
            axes.set_yticks(range(len(CONTEXTS[model])), [f"{c:,}" for c in CONTEXTS[model]])
            axes.set_xticks(range(len(LINKS)), [f"{name}\n{bw} GB/s" for name, bw in LINKS.items()], fontsize=7.5)
            axes.set_title(f"{model}: {titles[mode]}", fontsize=9.5)
            axes.set_ylabel("prompt (tokens)")
            axes.grid(False)

    draw("map", 6.4, (2, 2), paint)


def per_link(runs: Mapping[Any, dict[str, Any]], prompt: int) -> None:
    """p99 of E2E and TTFT against the link, one context, both models."""

    def paint(figure: Figure, panels: list[Axes]) -> None:
        for i, model in enumerate(MODELS):
            for j, (key, name) in enumerate((("p99_e2el_ms", "p99 E2E (s)"), ("p99_ttft_ms", "p99 TTFT (s)"))):
                axes = panels[2 * i + j]
                for k, mode in enumerate(("recompute", "reject", "swap", "overlap")):
                    still = mode in ("recompute", "reject")
                    values = [runs[model, prompt, mode, 0 if still else bw][key] / 1e3 for bw in LINKS.values()]
                    _line(axes, k, list(LINKS.values()), values, {"overlap": "swap, overlapped"}.get(mode, mode))
                _log(axes, y=False, ticks=list(LINKS.values()))
                axes.set_ylim(bottom=0)
                axes.set_title(f"{model}, prompts of {prompt:,}")
                axes.set_xlabel("link, each way (GB/s)")
                axes.set_ylabel(name)
        panels[0].legend(loc="lower left")

    draw("links", 5.6, (2, 2), paint)


def break_even(curves: Mapping[str, Any], lengths: Sequence[int]) -> None:
    """Time per token of computing a prompt, beside that of copying it out and in again."""

    def paint(figure: Figure, panels: list[Axes]) -> None:
        for axes, (model, (prefill_us, copies_us)) in zip(panels, curves.items(), strict=True):
            axes.plot(lengths, prefill_us, color=INKS[0], label="compute (timer)")
            for k, (name, us) in enumerate(copies_us.items()):
                axes.axhline(us, color=INKS[k + 1], linestyle=DASHES[k + 1], label=f"{name}, out and in")
            _log(axes, ticks=lengths[::2])
            axes.set_title(model)
            axes.set_xlabel("context (tokens)")
            axes.set_ylabel("time per token (µs)")
            axes.set_ylim(0.4, 3000)
            axes.legend(fontsize=7.5, loc="upper right")

    draw("break-even", 3.5, (1, 2), paint)


def stall(rows: Sequence[dict[str, Any]]) -> None:
    """The longest pause of the requests that stay, against bytes over bandwidth."""

    def paint(figure: Figure, panels: list[Axes]) -> None:
        axes, bandwidths = panels[0], list(LINKS.values())
        wide = np.geomspace(8, 600, 50)
        axes.plot(wide, rows[0]["bytes"] / wide / 1e6, color=INKS[0], label="bytes / bandwidth")
        axes.plot(
            bandwidths,
            [1e3 * row["longest_gap_s"] for row in rows],
            "s",
            color=INKS[1],
            markersize=7,
            label="simulated: longest pause between steps",
        )
        axes.axhline(1e3 * rows[0]["step_s"], color=INKS[2], linestyle="--", label="a decode step of the eight")
        _log(axes, ticks=bandwidths)
        axes.set_xlabel("link, each way (GB/s)")
        axes.set_ylabel("ms")
        axes.set_title("One request of 1.07 GB is swapped out")
        axes.legend()

    draw("stall", 3.2, (1, 1), paint)


def tiers(curves: Mapping[str, Any], lengths: Sequence[int]) -> None:
    """Loading a prefix against computing it, by its length."""

    def paint(figure: Figure, panels: list[Axes]) -> None:
        for axes, (model, lines) in zip(panels, curves.items(), strict=True):
            for k, (name, ms) in enumerate(lines.items()):
                _line(axes, k, lengths, ms, name)
            _log(axes, ticks=lengths[::2])
            axes.set_title(model)
            axes.set_xlabel("prefix (tokens)")
            axes.set_ylabel("ms")
            axes.legend(fontsize=8)

    draw("tiers", 3.5, (1, 2), paint)


def pools(runs: Mapping[Any, dict[str, Any]]) -> None:
    """Latency and attainment of four GPUs, by rate and by how they are used."""

    def paint(figure: Figure, panels: list[Axes]) -> None:
        shown = {
            "p99_ttft_ms": "p99 TTFT (ms)",
            "p99_tpot_ms": "p99 TPOT (ms)",
            "p99_itl_ms": "p99 ITL (ms)",
            "slo_attainment": "within the objective (%)",
        }
        for axes, (key, name) in zip(panels, shown.items(), strict=True):
            scale = 100 if key == "slo_attainment" else 1
            for k, mode in enumerate(POOL_MODES):
                _line(axes, k, RATES, [scale * runs[mode, rate][key] for rate in RATES], mode)
            _log(axes, x=False, y=key == "p99_tpot_ms")
            if key != "p99_tpot_ms":
                axes.set_ylim(bottom=0)
            axes.set_xticks(RATES)
            axes.set_ylabel(name)
            axes.set_xlabel("requests per second")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)

    draw("pools", 6.4, (2, 2), paint)


def block_sizes(sizes: Sequence[int], lines: Mapping[str, Sequence[float]], readings: Mapping[int, float]) -> None:
    """Out and in of one context, by block size: ours, recomputing, and the paper's two readings."""

    def paint(figure: Figure, panels: list[Axes]) -> None:
        axes = panels[0]
        for k, (name, ms) in enumerate(lines.items()):
            _line(axes, k, sizes, ms, name)
        axes.plot(
            list(readings), list(readings.values()), "*", color="black", markersize=12, label="Fig. 19, swap (read off)"
        )
        _log(axes, y=False, ticks=sizes)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("block size (tokens)")
        axes.set_ylabel("ms")
        axes.legend()

    draw("block-size", 3.4, (1, 1), paint)
