"""The figures of reports/allocator-study.md, from the numbers of its runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sim.report.style import COLOURS, INK, axes_of, house_style, new_figure, png_bytes, settle
from sim.series import Series

HERE = Path(__file__).parent
LOOKS = (
    ("#d55e00", "s", "-"), ("#e69f00", "^", "--"), ("#0072b2", "o", "-"),
    ("#56b4e9", "v", ":"), ("#cc79a7", "D", "-."), (INK, "o", "-"),
)  # fmt: skip
"""Colour, marker and line of each allocator: they differ without the colour too."""
LAYERS = (
    ("filled", "filled with tokens", "kv", ""),
    ("reserved", "reserved for tokens to come", "reserved", "///"),
    ("internal", "never filled (internal)", "fragmentation", "xxx"),
    ("stranded", "free, refused to the queue", "stranded", "..."),
    ("free", "free", "free", ""),
)
"""Key, label, colour and hatching of each state of memory: the hatching keeps them apart in grey."""


def save(name: str, draw: Callable[[], Figure]) -> None:
    """Draw in the house style and write reports/allocator-study-<name>.png."""
    with house_style():
        figure = draw()
        settle(figure)
    (HERE / f"allocator-study-{name}.png").write_bytes(png_bytes(figure))


def waste(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """One bar per allocator, of all KV memory."""
    figure = new_figure(3.6)
    (axes,) = axes_of(figure)
    labels, start = list(shares), np.zeros(len(shares))
    for key, label, colour, hatch in LAYERS:
        width = np.array([100 * shares[name][key] for name in labels])
        axes.barh(labels, width, left=start, color=COLOURS[colour], hatch=hatch, edgecolor="white", lw=0.5, label=label)
        for row, (left, wide) in enumerate(zip(start, width, strict=True)):
            if wide >= 6:
                axes.text(left + wide / 2, row, f"{wide:.0f}", ha="center", va="center", fontsize=9,
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2})  # fmt: skip
        start = start + width
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of all KV memory, mean over the run")
    axes.grid(False, axis="y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def block_waste(
    by_length: Sequence[tuple[int, float]],
    by_block: Mapping[str, Sequence[tuple[int, float, float, float]]],
) -> Figure:
    """Never-filled share of what is allocated against sequence length and block size; what it costs in tokens/s."""
    figure = new_figure(5.4)
    length, block, batch, speed = axes_of(figure, 2, 2)
    x, y = zip(*by_length, strict=True)
    length.plot(x, y, "o-", color=INK)
    length.set(xlabel="mean tokens of a finished sequence", ylabel="% of allocated blocks", title="Waste, blocks of 16")
    length.set_xscale("log", base=2)
    length.set_xticks(x, [f"{v:,}" for v in x])
    for (name, points), (colour, marker, line) in zip(by_block.items(), (LOOKS[2], LOOKS[0]), strict=True):
        sizes, wasted, tokens, running = (np.array(column) for column in zip(*points, strict=True))
        block.plot(sizes, wasted, marker=marker, ls=line, color=colour, label=name)
        batch.plot(sizes, 100 * running / running.max(), marker=marker, ls=line, color=colour, label=name)
        speed.plot(sizes, 100 * tokens / tokens.max(), marker=marker, ls=line, color=colour, label=name)
    for axes in (block, batch, speed):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(v) for v in sizes])
        axes.set_xlabel("tokens per block")
    block.set(title="Waste by block size", ylabel="% of allocated blocks")
    batch.set(title="Sequences running, of a backlog", ylabel="% of the most", ylim=(0, 105))
    speed.set(title="Output rate of a backlog", ylabel="% of the best", ylim=(0, 105))
    for axes in (length, block):
        axes.axhline(4, color=COLOURS["limit"], lw=1, ls=":")
        axes.set_ylim(bottom=0)
    block.legend()
    return figure


def rates(curves: Mapping[str, Sequence[tuple[float, float]]], bound_s: float) -> Figure:
    """Normalised latency against the rate, one curve per allocator."""
    figure = new_figure(4.0)
    (axes,) = axes_of(figure)
    for (label, points), (colour, marker, line) in zip(curves.items(), LOOKS, strict=True):
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker=marker, ls=line, color=colour, label=label, ms=5, mfc="white" if line == ":" else colour)
    axes.axhline(bound_s, color=COLOURS["limit"], lw=1, ls=":")
    axes.text(axes.get_xlim()[1], bound_s * 1.08, f"{bound_s:g} s/token", ha="right", color=COLOURS["limit"])
    axes.set_yscale("log")
    axes.set(xlabel="requests/s", ylabel="normalised latency (s/token)", xlim=(0, None))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def sharing(panels: Mapping[str, Sequence[tuple[int, float, float, float | None]]]) -> Figure:
    """What sharing saves: the range of the simulator's two assumptions and what was measured."""
    figure = new_figure(5.0)
    for axes, (title, points) in zip(axes_of(figure, 2, 2), panels.items(), strict=True):
        for at, (_, low, high, _) in enumerate(points):
            axes.bar(at, max(abs(high - low), 0.6), 0.5, bottom=min(low, high), color=COLOURS["reserved"],
                     edgecolor=INK, lw=0.8, label="simulated range" if not at else None)  # fmt: skip
        known = [(at, m) for at, (*_, m) in enumerate(points) if m is not None]
        axes.plot([at for at, _ in known], [m for _, m in known], "D", color=INK, label="measured (the paper)")
        axes.set_xticks(range(len(points)), [str(n) for n, *_ in points])
        axes.set(title=title, xlabel="sequences of a request", ylabel="% of blocks saved", ylim=(0, None))
        axes.grid(False, axis="x")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def plateau(models: Mapping[str, Sequence[tuple[int, Mapping[str, Any]]]]) -> Figure:
    """Output rate and work done twice against the number of seats."""
    figure = new_figure(3.2)
    speed, twice = axes_of(figure, 1, 2)
    for (model, points), (colour, marker, line) in zip(models.items(), (LOOKS[2], LOOKS[0]), strict=True):
        x = [n for n, _ in points]
        speed.plot(x, [p["tokens_per_s"] / 1000 for _, p in points], marker=marker, ls=line, color=colour, label=model)
        twice.plot(x, [100 * p["recomputed"] for _, p in points], marker=marker, ls=line, color=colour)
    for axes in (speed, twice):
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [f"{n:,}" for n in x], fontsize=8)
        axes.set_xlabel("max_num_seqs")
        axes.set_ylim(bottom=0)
    speed.set(title="Output rate", ylabel="thousand tokens/s")
    twice.set(title="Computed again after preemption", ylabel="% of the prompt tokens")
    figure.legend(*speed.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def over_time(runs: Mapping[str, tuple[Mapping[str, Any], Series]]) -> Figure:
    """States of the KV memory over the first minutes, in GiB."""
    figure = new_figure(5.2)
    for axes, (title, (facts, series)) in zip(axes_of(figure, len(runs), 1, share_x=True), runs.items(), strict=True):
        whole, scale = facts["num_gpu_blocks"], facts["kv_block_bytes"] / 2**30
        filled, unused, stranded = series.kv_blocks_filled, series.kv_blocks_unused, series.kv_blocks_stranded
        reserved = series.kv_blocks - filled - unused
        layers = [filled, reserved, unused, stranded, whole - series.kv_blocks - stranded]
        drawn = axes.stackplot(
            series.grid.edges_s,
            [np.append(v, v[-1]).clip(0) * scale for v in layers],
            step="post",
            lw=0,
            colors=[COLOURS[c] for _, _, c, _ in LAYERS],
            labels=[n for _, n, *_ in LAYERS],
        )
        for area, (*_, hatch) in zip(drawn, LAYERS, strict=True):
            area.set(hatch=hatch, edgecolor="white")
        axes.set(title=title, ylabel="KV memory (GiB)", ylim=(0, whole * scale))
    axes.set(xlabel="time (s)", xlim=(0, None))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure
