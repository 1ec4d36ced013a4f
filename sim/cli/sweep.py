"""`roofserve sweep SWEEP.yaml`: many variations of a scenario into one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from sim.cli.places import output_directory
from sim.cli.progress import progress_bar
from sim.planner.executors import executor_of
from sim.planner.sweep import SweepDone, run_sweep
from sim.planner.sweep_spec import load_sweep
from sim.report.rows import milliseconds, number
from sim.scenario import parse_setting

_MOST_SHOWN = 40
_SHOWN = {
    "output_throughput": ("output tok/s", lambda v: number(v, 0)),
    "p99_ttft_ms": ("TTFT p99 (ms)", milliseconds),
    "p99_tpot_ms": ("TPOT p99 (ms)", milliseconds),
    "regime": ("regime", str),
}


@click.command()
@click.argument("sweep", type=click.Path(path_type=Path), metavar="SWEEP.yaml")
@click.option("--out", type=click.Path(path_type=Path), help="Directory to write, and to resume [default: out/NAME]")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key in every point.")
@click.option("--executor", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--jobs", type=click.IntRange(1), help="Processes of the local executor [default: all cores]")
@click.option("--address", metavar="HOST:PORT", help="Ray cluster (auto: the one of this machine).")
@click.option("--retry-failed", is_flag=True, help="Run points again that failed in an earlier call.")
def sweep(
    sweep: Path, out: Path | None, settings: tuple[str, ...], executor: str, jobs: int | None, address: str | None,
    retry_failed: bool,
) -> int:  # fmt: skip
    """Run every point of SWEEP.yaml and write one table: OUT/sweep.parquet and sweep.csv.

    Called again with the same --out it resumes: finished points are not run again, whatever stopped it. A point that
    cannot run is recorded with its error, and the others go on.

    \b
    Examples:
      roofserve sweep scenarios/sweeps/rates.yaml
      roofserve sweep scenarios/sweeps/rates.yaml --set hardware=h200-sxm --out out/h200
      roofserve sweep my-sweep.yaml --executor ray --address auto
    """
    read = load_sweep(sweep, dict(parse_setting(text) for text in settings))
    directory = output_directory(out, read.spec.name)
    where = executor_of(executor, jobs=jobs, address=address)
    with progress_bar(read.spec.name) as on_progress:
        done = run_sweep(read, directory, where, retry_failed=retry_failed, on_progress=on_progress)
    _print(done, Console())
    return 0


def _print(done: SweepDone, console: Console) -> None:
    keys = [key for key in done.rows[0] if key.startswith("set.")]
    table = Table(header_style="bold", box=None, pad_edge=False)
    for heading in ["point", *_short(keys), *(title for title, _ in _SHOWN.values())]:
        table.add_column(heading, justify="right", overflow="fold")
    for row in done.rows[:_MOST_SHOWN]:
        cells = [_cell(row.get(name), show) for name, (_, show) in _SHOWN.items()]
        table.add_row(str(row["point"]), *(str(row[key]) for key in keys), *cells)
    console.print(table)
    if len(done.rows) > _MOST_SHOWN:
        console.print(f"... and {len(done.rows) - _MOST_SHOWN} more points")
    for row in done.failed[:_MOST_SHOWN]:
        console.print(f"point {row['point']} failed: {row['error']}", style="red", markup=False, highlight=False)
    resumed = f", {done.reused} of them from before" if done.reused else ""
    failed = f", {len(done.failed)} failed" if done.failed else ""
    console.print(f"{len(done.rows)} points{resumed}{failed}. Table: {done.table}", soft_wrap=True, highlight=False)


def _short(keys: list[str]) -> list[str]:
    """The last parts of dotted keys, where they tell them apart."""
    last = [key.rpartition(".")[2] for key in keys]
    return last if len(set(last)) == len(keys) else [key.removeprefix("set.") for key in keys]


def _cell(value: Any, show: Any) -> str:
    return "-" if value is None else str(show(value))
