"""`roofserve compare`: runs against each other, and GPUs against each other."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sim.cli.compare_hardware import hardware
from sim.cli.compare_schemes import schemes
from sim.errors import ConfigError, GateFailed
from sim.imports import roofserve_run
from sim.imports.comparison import Comparison, MetricRow, compare_runs
from sim.imports.measured import MeasuredRun
from sim.imports.read import read_run

_CLOSE_PCT, _FAR_PCT = 5.0, 15.0
_MOST_LISTED = 8
_BAR_CELLS = 6
_BAR_FULL_PCT = 50.0


@click.group()
def compare() -> None:
    """Hold results against each other."""


compare.add_command(hardware)
compare.add_command(schemes)


@compare.command("runs")
@click.argument("a")
@click.argument("b")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option(
    "--max-error",
    type=click.FloatRange(min=0),
    metavar="PCT",
    help="Exit with 3 when A is off by more than this in a headline metric (throughput, mean and median latencies).",
)
@click.option("--metrics", metavar="KEY,...", help="Show and judge only these, e.g. mean_ttft_ms,p99_tpot_ms.")
@click.option("--labels", metavar="A,B", help="What to call the two, e.g. tp1,tp2.")
def runs(a: str, b: str, form: str, max_error: float | None, metrics: str | None, labels: str | None) -> None:
    """Compare two results, metric by metric; errors are those of A taken as a prediction of B.

    A and B may each be a roofserve run directory or summary.json, a `vllm bench serve` JSON, an inference-perf report
    directory, a guidellm benchmarks.json or an aiperf export. FILE#2 means the third run in a file that holds several.
    """
    if max_error is not None and not math.isfinite(max_error):
        raise ConfigError("must be a finite percentage", key="--max-error", value=max_error)
    comparison = compare_runs(read_run(a), read_run(b))
    names = _labels(comparison, labels)
    chosen = _words(metrics, "--metrics") if metrics is not None else []
    rows = comparison.select(chosen) if chosen else comparison.rows
    exceeded = comparison.exceeding(max_error, chosen) if max_error is not None else ()
    if form == "json":
        click.echo(json.dumps(_as_json(comparison, rows, max_error, exceeded), indent=2, allow_nan=False))
    else:
        _print(comparison, rows, names)
    if exceeded:
        worst = ", ".join(f"{row.metric} {_percent(row)}" for row in exceeded)
        raise GateFailed(f"the error of {names[0]} exceeds {max_error:g} % in {worst}")


def _words(text: str, option: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise ConfigError("names nothing; expected words with commas between them", key=option, value=text)
    return words


def _labels(comparison: Comparison, labels: str | None) -> tuple[str, str]:
    if labels is not None:
        words = _words(labels, "--labels")
        if len(words) != 2:
            raise ConfigError("must be two words with a comma between them", key="--labels", value=labels)
        return words[0], words[1]
    ours, theirs = (run.kind == roofserve_run.KIND for run in (comparison.a, comparison.b))
    if ours == theirs:
        return "first", "second"
    return ("simulated", "measured") if ours else ("measured", "simulated")


def _print(comparison: Comparison, rows: Sequence[MetricRow], labels: tuple[str, str]) -> None:
    console = Console(highlight=False)
    for label, run in zip(labels, (comparison.a, comparison.b), strict=True):
        console.print(Text(f"{label}: {_describe(run)}"), soft_wrap=True)
    console.print(_table(rows, labels))
    for label, missing in zip(labels, (comparison.only_a, comparison.only_b), strict=True):
        if missing:
            console.print(Text(f"only in {label}: {_listing(missing)}"))
    for note in comparison.notes:
        console.print(Text(f"note: {note}"))


def _listing(metrics: Sequence[str]) -> str:
    more = len(metrics) - _MOST_LISTED
    return ", ".join(metrics[:_MOST_LISTED]) + (f" and {more} more (all with --format json)" if more > 0 else "")


def _describe(run: MeasuredRun) -> str:
    settings = ", ".join(f"{key} {_show(value)}" for key, value in run.meta.items())
    return f"{run.path} ({run.kind}{', ' + settings if settings else ''})"


def _table(rows: Sequence[MetricRow], labels: tuple[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric", no_wrap=True)
    for heading in (*labels, "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("   low | high", no_wrap=True)
    for row in rows:
        table.add_row(row.metric, _number(row.a), _number(row.b), Text(_percent(row), _style(row)), _bar(row))
    return table


def _number(value: float) -> str:
    return (
        f"{value:,.0f}"
        if abs(value) >= 1e4 or value.is_integer()
        else f"{value:,.2f}"
        if value >= 1
        else f"{value:.3g}"
    )


def _percent(row: MetricRow) -> str:
    if row.error_pct is None:
        return "n/a"
    return "> +999 %" if row.error_pct > 999 else f"{row.error_pct:+.1f} %"


def _style(row: MetricRow) -> str:
    size = math.inf if row.error_pct is None else abs(row.error_pct)
    return "green" if size <= _CLOSE_PCT else "yellow" if size <= _FAR_PCT else "red"


def _bar(row: MetricRow) -> Text:
    """A bar to the left of the middle when A is too low, to the right when too high; `<` and `>` mark one cut off."""
    error = row.error_pct or 0.0
    cells = min(_BAR_CELLS, round(abs(error) / _BAR_FULL_PCT * _BAR_CELLS))
    cut = abs(error) > _BAR_FULL_PCT
    low = ("<" if cut else "=") + "=" * (cells - 1) if error < 0 and cells else ""
    high = "=" * (cells - 1) + (">" if cut else "=") if error > 0 and cells else ""
    return Text(f"{low:>{_BAR_CELLS}}|{high:<{_BAR_CELLS}}", _style(row))


def _as_json(
    comparison: Comparison, rows: Sequence[MetricRow], max_error: float | None, exceeded: Sequence[MetricRow]
) -> dict[str, Any]:
    return {
        "a": _run_json(comparison.a),
        "b": _run_json(comparison.b),
        "metrics": [
            {
                "metric": row.metric,
                "a": row.a,
                "b": row.b,
                "difference": row.difference,
                "ratio": row.ratio,
                "error_pct": row.error_pct,
            }
            for row in rows
        ],
        "only_a": list(comparison.only_a),
        "only_b": list(comparison.only_b),
        "notes": list(comparison.notes),
        "gate": None if max_error is None else {"max_error_pct": max_error, "exceeded": [r.metric for r in exceeded]},
    }


def _run_json(run: MeasuredRun) -> dict[str, Any]:
    return {"label": run.label, "kind": run.kind, "path": str(run.path), "meta": _plain(run.meta)}


def _plain(meta: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: a request rate of inf is written as vLLM writes it, "inf"."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in meta.items()}


def _show(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
