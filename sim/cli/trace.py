"""`roofserve trace info | convert | generate`: look at traffic, translate it, write it down."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sim.errors import ConfigError
from sim.workloads.base import Workload
from sim.workloads.builder import build_workload, load_workload
from sim.workloads.replay import TraceReplay
from sim.workloads.trace_stats import summarise
from sim.workloads.trace_write import WRITERS, Record, records_of_trace, records_of_workload, write_trace
from sim.workloads.traces import read_trace

_SEED = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of everything that is drawn."
)
_TO = click.option(
    "--to", "form", type=click.Choice(list(WRITERS)), default="plain", show_default=True, help="Format to write."
)
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace OUT when it exists.")


@click.group()
def trace() -> None:
    """Recorded traffic: look at it, convert it, generate it.

    Read: Azure LLM 2023/2024, BurstGPT, Vidur, Splitwise-sim and plain CSV; Mooncake, Qwen-Bailian and LLMServingSim
    JSONL; ShareGPT JSON; ServeGen pairs. The format is told from the file, which may be gzipped.
    """


@trace.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@_SEED
def info(file: Path, form: str, seed: int) -> None:
    """Say what a trace holds: rate, burstiness, lengths, shared prefixes, and what was dropped while reading.

    \b
    Example:
      roofserve trace info AzureLLMInferenceTrace_conv.csv
    """
    summary = summarise(read_trace(file, seed=seed))
    if form == "json":
        click.echo(json.dumps(summary, indent=2, allow_nan=False))
    else:
        _print(summary)


@trace.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@_TO
@_SEED
@_OVERWRITE
def convert(file: Path, out: Path, form: str, seed: int, overwrite: bool) -> None:
    """Write the trace in FILE to OUT in another format. Time 0 is its first request.

    \b
    Example:
      roofserve trace convert AzureLLMInferenceTrace_conv.csv conv.jsonl --to mooncake
    """
    _check_free(out, overwrite)
    source = read_trace(file, seed=seed)
    lost = source.prefix_hashes is not None and form != "mooncake"
    rows = write_trace(records_of_trace(source), out, form)
    notes = [*source.remarks, *([f"the format {form} holds no prefix hashes; they were left out"] if lost else [])]
    _report(out, rows, form, notes)


@trace.command()
@click.argument("workload")
@click.argument("out", type=click.Path(path_type=Path))
@_TO
@click.option("--num-requests", type=click.IntRange(min=1), help="Stop after so many, instead of what WORKLOAD says.")
@_SEED
@_OVERWRITE
def generate(workload: str, out: Path, form: str, num_requests: int | None, seed: int, overwrite: bool) -> None:
    """Draw the traffic of WORKLOAD (a shipped name or a YAML file) and write it to OUT.

    The first N requests are the same whatever --num-requests says.

    \b
    Example:
      roofserve trace generate chat chat.csv --seed 1 --num-requests 500
    """
    _check_free(out, overwrite)
    spec, path = load_workload(workload)
    if num_requests is not None:
        spec = spec.limited(num_requests)
    built = build_workload(spec, seed=seed, beside=path)
    rows = write_trace(_records(built), out, form)
    _report(out, rows, form, built.notes)


def _records(built: Workload) -> Iterator[Record]:
    if isinstance(built, TraceReplay) and built.trace.delay_ps is not None:
        return records_of_trace(built.trace)
    return records_of_workload(built)


def _check_free(out: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise ConfigError("is a directory; name a file to write", file=out)
    if out.exists() and not overwrite:
        raise ConfigError("exists already; --overwrite replaces it", file=out)


def _report(out: Path, rows: int, form: str, notes: Iterable[str]) -> None:
    console = Console(soft_wrap=True)
    console.print(Text(f"{out}: {rows:,} requests, format {form}"))
    for note in notes:
        console.print(Text(f"note: {note}"))


def _print(summary: dict[str, Any]) -> None:
    console = Console()
    facts = Table(show_header=False, box=None, pad_edge=False)
    for label, value in _facts(summary):
        facts.add_row(label, Text(value))
    console.print(facts)
    lengths = Table("tokens", box=None, pad_edge=False)
    for column in ("mean", "p50", "p90", "p99", "max"):
        lengths.add_column(column, justify="right")
    for name in ("input_tokens", "output_tokens"):
        lengths.add_row(name.split("_")[0], *(f"{v:,.0f}" for v in summary[name].values()))
    console.print(lengths)
    for note in summary["notes"]:
        console.print(Text(f"note: {note}"))


def _facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [("file", summary["file"]), ("format", summary["format"]), ("requests", f"{summary['requests']:,}")]
    if summary["waiting_for_another"]:
        facts.append(("sent after an answer", f"{summary['waiting_for_another']:,}"))
    if summary["mean_rate"] is not None:
        facts.append(("span", f"{summary['span_s']:,.1f} s"))
        facts.append(("mean rate", f"{summary['mean_rate']:.3g} requests/s"))
    if summary["arrival_cv"] is not None:
        facts.append(("CV of gaps", f"{summary['arrival_cv']:.2f} (Poisson: 1)"))
    if summary["prefix_hit_bound"] is not None:
        block = summary["prefix_block_tokens"]
        facts.append(("prefix hits", f"at most {summary['prefix_hit_bound']:.1%} of {block}-token blocks"))
    return facts
