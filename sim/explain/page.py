"""An explanation as files: one self-contained page, the figures, and the JSON behind them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sim.explain.figures import Drawn, explanation_figures, waterfall_figures
from sim.explain.run import Explanation
from sim.explain.tables import (
    TextTable,
    explanation_tables,
    sentences,
    skipped_lines,
    waterfall_sentences,
    waterfall_tables,
)
from sim.explain.waterfall import Waterfall
from sim.report.html import inlined, rendered
from sim.report.style import png_bytes, svg_text
from sim.results import replace_text


def write_explanation(found: Explanation, directory: Path) -> Path:
    """Write `explain.json`, `figures/` and `explain.html`; returns the page."""
    data = found.as_dict()
    return _write(directory, "explain", data, sentences(data), explanation_tables(data), explanation_figures(found))


def write_waterfall(found: Waterfall, directory: Path) -> Path:
    """Write `waterfall.json`, `figures/` and `waterfall.html`; returns the page."""
    data = found.as_dict()
    return _write(
        directory, "waterfall", data, waterfall_sentences(data), waterfall_tables(data), waterfall_figures(found)
    )  # fmt: skip


def _write(
    directory: Path, name: str, data: Mapping[str, Any], lines: list[str], tables: Iterable[TextTable],
    figures: Iterable[Drawn],
) -> Path:  # fmt: skip
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    replace_text(directory / f"{name}.json", json.dumps(data, indent=2, sort_keys=True) + "\n")
    shown = []
    for file, title, caption, figure in figures:
        svg = svg_text(figure)
        replace_text(directory / "figures" / f"{file}.svg", svg)
        (directory / "figures" / f"{file}.png").write_bytes(png_bytes(figure))
        shown.append(inlined(file, title, caption, svg))
    page = directory / f"{name}.html"
    text = rendered(
        "explain.html.j2", title=f"{data['scenario'] or 'run'}: {name}", lines=lines, tables=list(tables),
        figures=shown, setting=list(data.get("setting", {}).items()), skipped=skipped_lines(data),
        notes=data.get("notes", []),
    )  # fmt: skip
    replace_text(page, text)
    return page
