"""The figures of reports/quantisation.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from quantisation_cases import BATCHES, CONTEXTS

from sim.report.style import COLOURS, INK, axes_of, house_style, new_figure, png_bytes, settle
from sim.validation.serving.pairs import Pair

HERE = Path(__file__).resolve().parent
INKS = [COLOURS[name] for name in ("arrivals", "prefill", "tpot", "running", "e2el", "waiting", "itl")]
DASHES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 1))]
MARKS = "osD^vP"


def draw(name: str, height_in: float, shape: tuple[int, int], paint: Callable[[Figure, list[Axes]], None]) -> None:
    """Save one figure beside the page."""
    with house_style():
        figure = new_figure(height_in)
        paint(figure, axes_of(figure, *shape))
        settle(figure)
        (HERE / f"quantisation-{name}.png").write_bytes(png_bytes(figure))


def _lines(axes: Axes, x: Sequence[float], lines: Mapping[str, Sequence[float]]) -> None:
    for i, (label, y) in enumerate(lines.items()):
        axes.plot(x, y, color=INKS[i], linestyle=DASHES[i % 6], marker=MARKS[i % 6], markersize=4, label=label)
    axes.set_xscale("log", base=2)


def _plain(axes: Axes, ticks: Sequence[int], words: Callable[[float], str]) -> None:
    axes.set_xticks(list(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def crossover(gains: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Speed-up of a decode step over 16 bit, by batch; a panel per GPU."""

    def paint(figure: Figure, panels: list[Axes]) -> None:
        for axes, (gpu, lines) in zip(panels, gains.items(), strict=True):
            _lines(axes, BATCHES, lines)
            axes.axhline(1.0, color=INK, linewidth=1.0)
            axes.set_yscale("log", base=2)
            axes.set_ylim(0.22, 4.4)
            axes.set_yticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
            _plain(axes, BATCHES[::2], lambda value: f"{value:g}")
            axes.set_title(gpu)
            axes.set_xlabel("sequences in the batch")
        panels[0].set_ylabel("speed of a step, 16 bit = 1")
        _legend(figure, panels[0], 3)

    draw("crossover", 3.9, (1, 2), paint)


def caches(study: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """TPOT of a fixed batch, and throughput of as many sequences as fit, by context."""

    def paint(figure: Figure, panels: list[Axes]) -> None:
        _lines(panels[0], CONTEXTS, {name: found["tpot_ms"] for name, found in study.items()})
        base = study["16 bit"]["tok_s"]
        ratio = {name: [a / b for a, b in zip(found["tok_s"], base, strict=True)] for name, found in study.items()}
        _lines(panels[1], CONTEXTS, ratio)
        panels[0].set_ylabel("TPOT of 8 sequences (ms)")
        panels[0].set_ylim(0)
        panels[1].set_ylabel("tokens/s of a full cache, 16 bit = 1")
        panels[1].set_ylim(0)
        for axes, title in zip(panels, ("the same batch", "as many as fit (at most 256)"), strict=True):
            _plain(axes, CONTEXTS[1::2], lambda value: f"{value / 1024:g}k")
            axes.set_xlabel("context (tokens)")
            axes.set_title(title)
        _legend(figure, panels[0], 6)

    draw("kv-cache", 3.5, (1, 2), paint)


def waterfall(steps: Mapping[str, Mapping[str, float]]) -> None:
    """Milliseconds of a step after each part of the INT8 recipe; what it added or took away hangs between the bars."""

    def paint(figure: Figure, panels: list[Axes]) -> None:
        for axes, (title, times) in zip(panels, steps.items(), strict=True):
            _fall(axes, times)
            axes.set_title(title)
        panels[0].set_ylabel("step (ms)")

    draw("recipe", 3.0, (1, 2), paint)


def _fall(axes: Axes, times: Mapping[str, float]) -> None:
    names, values = list(times), list(times.values())
    most = max(values)
    for i, value in enumerate(values):
        before = values[i - 1] if i else 0.0
        colour = COLOURS["other"] if i == 0 else COLOURS["limit"] if value > before else COLOURS["output"]
        axes.bar(i, abs(value - before), bottom=min(value, before), color=colour, width=0.72)
        if i:
            axes.plot([i - 1.36, i + 0.36], [before, before], color=INK, linewidth=0.8)
        words = f"{value:.1f}" if i == 0 else f"{value - before:+.2f}".replace("-", "\N{MINUS SIGN}")
        axes.text(i, max(value, before) + 0.02 * most, words, ha="center", fontsize=8.5)
    axes.bar(len(values), values[-1], color=COLOURS["prefill"], width=0.72)
    axes.text(len(values), values[-1] + 0.02 * most, f"{values[-1]:.1f}", ha="center", fontsize=8.5)
    axes.set_xticks(range(len(values) + 1), [*names, "INT8"], fontsize=8.5)
    axes.set_ylim(0, 1.13 * most)
    axes.grid(axis="x", visible=False)


def ratios(pairs: Sequence[Pair]) -> None:
    """Simulated against measured ratios; the band is 10 %."""

    def paint(figure: Figure, panels: list[Axes]) -> None:
        axes = panels[0]
        ends = (0.5, 3.0)
        axes.fill_between(ends, [0.9 * e for e in ends], [1.1 * e for e in ends], color=COLOURS["free"], linewidth=0)
        axes.plot(ends, ends, color=INK, linewidth=1.0)
        for i, gpu in enumerate(dict.fromkeys(pair.gpu for pair in pairs)):
            chosen = [pair for pair in pairs if pair.gpu == gpu]
            points = [p.measured for p in chosen], [p.predicted for p in chosen]
            axes.scatter(*points, color=INKS[i % 7], marker=MARKS[i], s=32, label=gpu, alpha=0.85)
        for axis in (axes.set_xscale, axes.set_yscale):
            axis("log")
        for set_ticks in (axes.set_xticks, axes.set_yticks):
            set_ticks([0.5, 0.7, 1, 1.5, 2, 3], ["0.5", "0.7", "1", "1.5", "2", "3"])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.axhline(1, color=INK, linewidth=0.7, linestyle=":")
        axes.axvline(1, color=INK, linewidth=0.7, linestyle=":")
        axes.set_xlabel("measured throughput, 16 bit = 1")
        axes.set_ylabel("simulated, 16 bit = 1")
        axes.legend(loc="upper left")

    draw("measured", 4.2, (1, 1), paint)
