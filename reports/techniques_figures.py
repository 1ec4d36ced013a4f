"""The figures of reports/techniques.md, from the numbers of its sweeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator
from techniques_claims import WITHIN, Claim
from techniques_sweeps import BATCHES, PREFIXES, Share

from sim.report.style import COLOURS, INK, axes_of, house_style, new_figure, png_bytes, settle

HERE = Path(__file__).parent
LOOKS = (
    ("#0072b2", "o", "-"), ("#d55e00", "s", "--"), ("#009e73", "^", "-."), ("#8c6bb1", "D", ":"),
    ("#e69f00", "v", "--"), (INK, "P", "-"),
)  # fmt: skip


def save(name: str, draw: Callable[[], Figure]) -> None:
    """Draw in the house style and write reports/techniques-<name>.png."""
    with house_style():
        figure = draw()
        settle(figure)
    (HERE / f"techniques-{name}.png").write_bytes(png_bytes(figure))


def claims_figure(found: Sequence[Claim]) -> Figure:
    """Ours over the published number, a dot per technique; hollow where it is off, with the one term changed beside."""
    figure = new_figure(3.8)
    (axes,) = axes_of(figure)
    axes.axvspan(1 - WITHIN, 1 + WITHIN, color=COLOURS["free"], lw=0, label="within 20 %")
    axes.axvline(1, color=INK, lw=0.8)
    for row, claim in enumerate(found):
        ratio = 1 + claim.off
        axes.plot(ratio, row, "o", ms=8, color=COLOURS["ttft"], mfc=COLOURS["ttft"] if claim.holds else "white",
                  label="ours over published" if row == 0 else "")  # fmt: skip
        if not claim.holds and claim.isolated is not None:
            other = claim.isolated / claim.published
            axes.plot([ratio, other], [row, row], ":", color=COLOURS["tpot"], lw=1.2)
            axes.plot(other, row, "D", ms=6, color=COLOURS["tpot"])
    axes.plot([], [], "D", ms=6, color=COLOURS["tpot"], label="with the one term changed")
    axes.set_yticks(range(len(found)), [claim.technique for claim in found])
    axes.invert_yaxis()
    axes.set_xlim(0.5, 1.5)
    axes.set_xlabel("ours / published")
    axes.grid(False, axis="y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def guesses_figure(gains: Mapping[str, Sequence[float]]) -> Figure:
    """Gain of speculative decoding against the batch, for each way of guessing."""
    figure = new_figure(3.6)
    (axes,) = axes_of(figure)
    _lines(axes, BATCHES, gains)
    _doubling(axes, BATCHES)
    axes.set_ylim(0, 2.5)
    axes.set(xlabel="sequences in the batch", ylabel="tokens/s over those without guesses")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def prefix_figure(gains: Mapping[str, Sequence[float]]) -> Figure:
    """Gain of a decode step against the shared prefix, for several batches and two kinds of attention."""
    figure = new_figure(3.9)
    (axes,) = axes_of(figure)
    _lines(axes, PREFIXES, gains)
    _doubling(axes, PREFIXES)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_locator(FixedLocator([1, 2, 4, 8, 16, 32]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.set(xlabel="tokens of the shared prefix (128 more of each sequence's own)", ylabel="gain of a decode step")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def step_figure(prefill: Mapping[int, Share], decode: Mapping[tuple[int, int], Share]) -> Figure:
    """What a step is made of: prompts by length, decodes by batch and context."""
    figure = new_figure(3.6)
    left, right = axes_of(figure, 1, 2)
    prompts = {f"{n // 1024}k" if n >= 1024 else str(n): share for n, share in prefill.items()}
    batches = {f"{n} x {c:,}": share for (n, c), share in decode.items()}
    for axes, shares, title in ((left, prompts, "One prompt"), (right, batches, "Decode")):
        _stack(axes, shares)
        axes.set_title(title)
    left.set(xlabel="tokens", ylabel="% of the step")
    right.set(xlabel="sequences x context")
    right.tick_params(axis="x", rotation=30)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def _stack(axes: Axes, shares: Mapping[str, Share]) -> None:
    matmul = np.array([100 * share.matmul_s / share.total_s for share in shares.values()])
    attention = np.array([100 * share.attention_s / share.total_s for share in shares.values()])
    parts = (("matrix products", matmul, "compute", ""), ("attention", attention, "launch", "///"),
             ("element-wise and rest", 100 - matmul - attention, "other", "..."))  # fmt: skip
    base = np.zeros(len(shares))
    for label, height, colour, hatch in parts:
        axes.bar(list(shares), height, bottom=base, color=COLOURS[colour], hatch=hatch, edgecolor="white", lw=0.5,
                 label=label)  # fmt: skip
        base = base + height
    axes.set_ylim(0, 100)
    axes.grid(False, axis="x")


def _lines(axes: Axes, x: Sequence[int], gains: Mapping[str, Sequence[float]]) -> None:
    axes.axhline(1, color=INK, lw=0.8)
    for (name, values), (colour, marker, line) in zip(gains.items(), LOOKS, strict=False):
        axes.plot(x, values, marker=marker, ls=line, color=colour, ms=5, label=name)


def _doubling(axes: Axes, x: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(x)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(list(x), [f"{value:,}" for value in x])
