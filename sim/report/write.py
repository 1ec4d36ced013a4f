"""Everything a run leaves for people to read, written into one directory."""

from __future__ import annotations

from pathlib import Path

from sim.report.evidence import Evidence
from sim.report.figures import KINDS, drawn
from sim.report.html import render_page
from sim.report.style import png_bytes, svg_text
from sim.report.summary import summary_json
from sim.report.timeline import timeline_bytes
from sim.results import RunResult


def write_report(result: RunResult | Evidence, directory: str | Path, *, timeline: bool = False) -> Path:
    """Write `summary.json`, `figures/*.png` and `*.svg`, `report.html` and, on request, `timeline.json.gz`.

    Returns the path of the page. Each file replaces its predecessor at once, so that a reader (or an interruption)
    never meets half a file; figures and timeline of an earlier run that this one does not replace are removed.
    """
    directory = Path(directory)
    figures = directory / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    evidence = result if isinstance(result, Evidence) else Evidence.of(result)
    _replace(directory / "summary.json", summary_json(evidence.summary).encode())
    drawings = []
    for kind, figure in drawn(evidence):
        svg = svg_text(figure)
        _replace(figures / f"{kind.name}.svg", svg.encode())
        _replace(figures / f"{kind.name}.png", png_bytes(figure))
        drawings.append((kind, svg))
    for name in {kind.name for kind in KINDS} - {kind.name for kind, _ in drawings}:
        for suffix in ("svg", "png"):
            (figures / f"{name}.{suffix}").unlink(missing_ok=True)
    (directory / "timeline.json.gz").unlink(missing_ok=True)
    if timeline:
        _replace(directory / "timeline.json.gz", timeline_bytes(evidence.result))
    page = directory / "report.html"
    _replace(page, render_page(evidence, drawings).encode())
    return page


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(content)
    temporary.replace(path)
