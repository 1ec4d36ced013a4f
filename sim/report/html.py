"""One self-contained page: the answer first, then figures, tables, notes and where the numbers come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sim.report import rows
from sim.report.evidence import Evidence
from sim.report.figures import FigureKind
from sim.report.style import inline_svg


def render_page(evidence: Evidence, drawings: Iterable[tuple[FigureKind, str]]) -> str:
    """The page as text. `drawings` pairs each figure with its SVG, which is inlined: no file, script or font is loaded.

    Everything that came from the user's files is escaped; the drawings are our own.
    """
    result, summary = evidence.result, evidence.summary
    scenario: Mapping[str, Any] = result.manifest.get("scenario") or {}
    setting = rows.setting(result)
    return rendered(
        "report.html.j2",
        title=str(scenario.get("name") or "run"),
        subtitle=" · ".join(text for label, text in setting if label in ("Model", "Hardware", "Workload")),
        summary=summary,
        trust=_trust(result.facts.get("trust")),
        tiles=_tiles(summary),
        note=rows.percentile_note(summary),
        attainment=rows.attainment(summary),
        objectives=rows.objectives(summary),
        statistics=rows.STATISTICS.values(),
        latencies=rows.latencies(summary, {**rows.LATENCIES, **rows.CLIENT, **rows.PHASES}),
        intervals=rows.intervals(summary),
        intervals_title=rows.intervals_title(summary),
        tables=_tables(evidence),
        figures=[inlined(kind.name, kind.title, kind.caption, svg) for kind, svg in drawings],
        notes=rows.notes(summary, result),
        setting=setting,
        scenario=_as_yaml(scenario),
        provenance=_as_yaml(_provenance(result.manifest)),
    )


def rendered(template: str, **values: Any) -> str:
    """One of the package's pages; everything in `values` that is not `Markup` is escaped."""
    # The template's name ends in .j2, so escaping is switched on for all rather than by file extension.
    loader = PackageLoader("sim", "data/templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template(template).render(**values)


def inlined(name: str, title: str, caption: str, svg: str) -> dict[str, Any]:
    """A figure as the pages show it: heading, what to read from it, and the drawing itself."""
    return {"name": name, "title": title, "caption": caption, "svg": Markup(inline_svg(svg, name, title))}


def _trust(label: Any) -> dict[str, str] | None:
    return {"label": str(label), "meaning": rows.TRUST.get(str(label), "")} if label else None


def _tiles(summary: Mapping[str, Any]) -> list[rows.Row]:
    """The few numbers a reader comes for."""
    span = "" if summary["steady_state"] else ", whole run"
    tiles = [
        ("output tokens/s", rows.number(summary["output_throughput"], 0)),
        ("requests/s", rows.number(summary["request_throughput"])),
        ("requests/s within objectives", rows.number(summary["request_goodput"])),
        (f"TTFT p99 (ms){span}", rows.milliseconds(summary["p99_ttft_ms"])),
        (f"TPOT p99 (ms){span}", rows.milliseconds(summary["p99_tpot_ms"])),
        (f"E2E p99 (ms){span}", rows.milliseconds(summary["p99_e2el_ms"])),
        ("KV blocks in use at peak", rows.share(summary["kv"]["peak_used_share"])),
        ("USD per million output tokens", rows.number(summary["usd_per_million_output_tokens"], 3)),
    ]
    return [tile for tile in tiles if tile[1] != rows.NOTHING]


def _tables(evidence: Evidence) -> list[tuple[str, list[rows.Row]]]:
    tables = [
        ("Traffic", rows.totals(evidence.summary)),
        ("Batches and KV cache", rows.batching(evidence.summary)),
        ("Memory of one GPU", rows.memory(evidence.result)),
    ]
    return [(heading, table) for heading, table in tables if table]


def _provenance(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest says beyond the scenario; wall-clock times stay out, so that the page has fixed bytes."""
    kept = {key: value for key, value in manifest.items() if key not in ("scenario", "facts", "date", "wall_time_s")}
    facts = manifest.get("facts") or {}
    return {
        **kept,
        "facts": {key: value for key, value in facts.items() if key not in ("notes", "breakdown", "intervals")},
    }


def _as_yaml(data: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(_plain(data), sort_keys=False, allow_unicode=True, width=110))


def _plain(value: Any) -> Any:
    """Mappings and sequences of any kind as the dicts and lists that YAML writes without tags."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
