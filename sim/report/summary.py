"""The terminal's answer to a run, with the rows that users of `vllm bench serve` know, and `summary.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sim.report import rows
from sim.results import RunResult

_REGIME_STYLE = {"STABLE": "green", "BACKLOGGED": "yellow", "OVERLOADED": "red"}


def summary_json(summary: Mapping[str, Any]) -> str:
    """Canonical JSON: sorted keys, no NaN, no date, so that equal runs give equal bytes."""
    return json.dumps(summary, indent=2, sort_keys=True, allow_nan=False) + "\n"


def render_summary(summary: Mapping[str, Any], result: RunResult, console: Console) -> None:
    """Write header, regime, totals, latencies, batching and memory, SLO verdicts and notes to `console`."""
    console.print(_grid(rows.setting(result)))
    console.print(_verdict(summary))
    console.print(_totals(summary, result))
    console.print(_latencies(summary))
    if summary["tenants"]:
        console.print(_tenants(summary))
    if summary["slo"]:
        console.print(_objectives(summary))
    if summary.get("intervals"):
        console.print(_intervals(summary))
    for note in rows.notes(summary, result):
        console.print(Text(f"Note: {note}"))


def _grid(pairs: list[rows.Row]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for label, text in pairs:
        grid.add_row(label, Text(text))
    return grid


def _verdict(summary: Mapping[str, Any]) -> Panel:
    style = _REGIME_STYLE[summary["regime"]]
    return Panel(
        Text.assemble((summary["regime"], f"bold {style}"), f": {summary['regime_reason']}."), border_style=style
    )


def _totals(summary: Mapping[str, Any], result: RunResult) -> Table:
    table = Table(title=" Serving Benchmark Result ", show_header=False, title_style="bold", expand=False)
    table.add_column()
    table.add_column(justify="right")
    for row in rows.totals(summary):
        table.add_row(*row)
    table.add_section()
    for row in rows.batching(summary):
        table.add_row(*row)
    table.add_section()
    for row in rows.memory(result):
        table.add_row(*row)
    return table


def _latencies(summary: Mapping[str, Any]) -> Table:
    note = rows.percentile_note(summary)
    table = Table(title=f"Latency (ms){f', {note}' if note else ''}", title_style="bold")
    table.add_column("")
    for statistic in rows.STATISTICS.values():
        table.add_column(statistic, justify="right")
    for metrics in (rows.LATENCIES, rows.CLIENT, rows.PHASES):
        for title, cells in rows.latencies(summary, metrics):
            table.add_row(title, *cells)
        table.add_section()
    return table


def _tenants(summary: Mapping[str, Any]) -> Table:
    title = f"Tenants (ms), Jain's index of their service {rows.number(summary['jain_fairness_index'], 3)}"
    table = Table(title=title, title_style="bold")
    for heading in rows.TENANT_HEADINGS:
        table.add_column(heading, justify="left" if heading == "Tenant" else "right")
    for row in rows.tenants(summary):
        table.add_row(*row)
    return table


def _intervals(summary: Mapping[str, Any]) -> Table:
    table = Table(title=rows.intervals_title(summary), title_style="bold")
    for heading in ("Metric", "This run", "From", "To"):
        table.add_column(heading, justify="left" if heading == "Metric" else "right")
    for row in rows.intervals(summary):
        table.add_row(*row)
    return table


def _objectives(summary: Mapping[str, Any]) -> Table:
    title = ": ".join(x for x in ("Objectives", rows.attainment(summary)) if x)
    table = Table(title=title, title_style="bold")
    for heading in ("Objective", "Limit (ms)", "Observed (ms)", "Verdict"):
        table.add_column(heading, justify="left" if heading in ("Objective", "Verdict") else "right")
    for row in rows.objectives(summary):
        style = "green" if row.met else "red"
        table.add_row(row.objective, row.limit, row.observed, Text(row.verdict, style=style))
    return table
