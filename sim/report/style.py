"""How figures look: one colour per concept in every figure, and files whose bytes depend on the data alone."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK = "#1a1a1a"
PAPER = "#ffffff"
WIDTH_IN = 7.2

# Okabe and Ito's colours for the colour-blind (2008), less the yellow that paper swallows. Neighbours in one figure
# differ in lightness too, or in line style, so that a grey print keeps them apart.
COLOURS: Mapping[str, str] = {
    "ttft": "#0072b2",
    "tpot": "#d55e00",
    "itl": "#e69f00",
    "e2el": "#8c6bb1",
    "prefill": "#56b4e9",
    "output": "#009e73",
    "arrivals": "#0072b2",
    "completions": "#e69f00",
    "running": "#009e73",
    "waiting": "#cc79a7",
    "batch": "#009e73",
    "kv": "#009e73",
    "reserved": "#56b4e9",
    "fragmentation": "#d55e00",
    "stranded": "#cc79a7",
    "free": "#8d939c66",
    "weights": "#0072b2",
    "activations": "#e69f00",
    "cuda_graphs": "#cc79a7",
    "framework": "#8c6bb1",
    "unused": "#8d939c66",
    "compute": "#0072b2",
    "memory": "#009e73",
    "launch": "#e69f00",
    "link": "#8c6bb1",
    "host": "#cc79a7",
    "other": "#8d939c66",
    "limit": "#d7303a",
}
LINES: Mapping[str, str] = {"ttft": "-", "tpot": "--", "itl": "-.", "running": "--"}

_PARAMETERS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.7,
    "axes.grid": True,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "figure.facecolor": PAPER,
    "svg.hashsalt": "roofserve",
    "svg.fonttype": "path",
}


def house_style() -> AbstractContextManager[None]:
    """Draw and save inside this context; outside it matplotlib's settings are as they were."""
    return mpl.rc_context(_PARAMETERS)


def new_figure(height_in: float) -> Figure:
    """An empty figure of the report's width, tied to no window and to no global state of pyplot."""
    return Figure(figsize=(WIDTH_IN, height_in))


def axes_of(figure: Figure, rows: int = 1, columns: int = 1, share_x: bool = False) -> list[Axes]:
    """Panels in reading order."""
    return list(figure.subplots(rows, columns, sharex=share_x, squeeze=False).ravel())


def three_digits(value: float) -> str:
    """A number as people read it from a figure: 1,940 rather than 1.94e+03."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def settle(figure: Figure) -> None:
    """Work out the layout once: it is then the same in every format.

    The engine is not the figure's own. A figure that has one is drawn twice whenever it is saved.
    """
    ConstrainedLayoutEngine().execute(figure)


def png_bytes(figure: Figure) -> bytes:
    """At twice the width of a 720-pixel page; no date and no software version inside."""
    return _saved(figure, "png", {"Software": None})


def svg_text(figure: Figure) -> str:
    """On white paper, with ids derived from the drawing and no date."""
    return _saved(figure, "svg", {"Date": None, "Creator": None}).decode("utf-8")


def inline_svg(svg: str, name: str, title: str) -> str:
    """The drawing for the inside of a page: ink follows the page's text colour, ids do not clash with other figures."""
    body = svg[svg.index("<svg") :]
    body = body.replace(INK, "currentColor").replace(f"fill: {PAPER}", "fill: none")
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub(r'\swidth="[^"]+pt"|\sheight="[^"]+pt"', "", body, count=2)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    return body.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def _saved(figure: Figure, kind: str, metadata: dict[str, str | None]) -> bytes:
    buffer = io.BytesIO()
    with house_style():
        figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
    return buffer.getvalue()
