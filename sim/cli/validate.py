"""`roofserve validate`: predictions against measurements, of kernels here and of servers in `validate_serving`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from sim.catalog import find, names
from sim.cli.validate_quantisation import quantisation
from sim.cli.validate_serving import serving
from sim.cost.calibration_source import find_calibration, own_calibration
from sim.errors import ConfigError, GateFailed
from sim.specs.hardware import load_gpu
from sim.validation.calibration_file import PUBLIC_TABLES
from sim.validation.kernel_report import Line, Priced, price_tables, report_line, unpriced
from sim.validation.tables import read_tables

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def validate() -> None:
    """Hold predictions against measurements."""


validate.add_command(serving)
validate.add_command(quantisation)


@validate.command("kernels")
@click.option("--hardware", help="A profile's name or path; it must be calibrated. --gpu knows it from the driver.")
@click.option("--measurements", "first", type=_FILE, multiple=True, help="CSV tables or records; more may follow.")
@click.option("--gpu", "on_gpu", is_flag=True, help="Measure fresh random sizes on this machine's GPU.")
@click.option("--seed", default=2, show_default=True, help="With --gpu: of the sizes.")
@click.option("--budget", type=click.FloatRange(min=0), default=300.0, show_default=True, help="With --gpu: seconds.")
@click.argument("more", nargs=-1, type=_FILE)
@click.option("--json", "json_path", type=_FILE, help="Write the lines as JSON.")
@click.option("--plot", "plot_path", type=_FILE, help="Write a figure of predicted over measured times.")
@click.option("--max-mape", type=click.FloatRange(min=0), metavar="PCT", help="Exit with 3 when a line is above this.")
def kernels(
    hardware: str | None,
    first: tuple[Path, ...],
    more: tuple[Path, ...],
    json_path: Path | None,
    plot_path: Path | None,
    max_mape: float | None,
    **fresh: Any,
) -> None:
    """Price every row of measured kernel tables, and report the error by table and format.

    Tables are CSV files with the columns of the public kernel databases (gemm, attention, moe, all-reduce, ...); rows
    of other GPUs are left out. The last column is the error of the datasheet's roofline alone. With --gpu, sizes that
    no calibration has seen are drawn at random and measured here.
    """
    measured = [_measure_fresh(fresh["seed"], fresh["budget"])] if fresh["on_gpu"] else []
    if not (first or measured):
        raise click.UsageError("needs --measurements or --gpu")
    hardware = hardware or next(filter(None, map(_measured_gpu, measured)), None)
    if hardware is None:
        raise click.UsageError("needs --hardware: the profile of the GPU that was measured")
    gpu = load_gpu(find("hardware", hardware))
    tables = read_tables([*first, *more, *measured], gpu.name)
    found = find_calibration(gpu)
    if found is None:
        raise ConfigError("neither this GPU nor one of its generation is calibrated", key="hardware", value=hardware)
    parts = list(price_tables(tables, found[0]))
    if not parts:
        labels = sorted({str(label) for rows in tables.values() for label in rows.gpu})
        raise ConfigError("the tables have no rows of this GPU", key="hardware", value=hardware, choices=labels)
    lines = [report_line(part) for part in parts]
    _show(lines, parts, found[1])
    if json_path is not None:
        json_path.write_text(json.dumps([line.as_json() for line in lines], indent=1) + "\n", encoding="utf-8")
    if plot_path is not None:
        from sim.validation.figures import save_error_figure  # matplotlib is slow to import

        save_error_figure(parts, plot_path)
    _check(lines, max_mape)


@validate.command("report")
@click.option("--measurements", "first", required=True, type=_FILE, multiple=True, help="CSV tables.")
@click.argument("more", nargs=-1, type=_FILE)
@click.option("--out", type=_FILE, default="reports/calibration.md", show_default=True, help="The page to write.")
def report(first: tuple[Path, ...], more: tuple[Path, ...], out: Path) -> None:
    """Write the page on calibration: all calibrated GPUs, rows of the fit beside rows left out, and figures."""
    from sim.validation.report import write_report  # matplotlib is slow to import

    gpus = [load_gpu(name) for name in names("hardware")]
    own = [found for found in map(own_calibration, gpus) if found is not None]
    command = "roofserve validate report --measurements kernels/*.csv"
    write_report(own, read_tables([*first, *more]), out, command=command, provenance=PUBLIC_TABLES)
    click.echo(f"wrote {out}")


def _measured_gpu(record: Path) -> str | None:
    from sim.validation.measure.record import read_record
    from sim.validation.own_profile import profile_name

    return profile_name(read_record(record)[0])


def _measure_fresh(seed: int, budget_s: float) -> Path:
    from sim.cli.measure import FRESH_EACH, measure_problems, need_gpu
    from sim.validation.measure.problems import fresh_problems

    need_gpu()
    path = Path("out") / f"fresh-{seed}.jsonl"
    measure_problems(fresh_problems(seed, FRESH_EACH), path, budget_s)
    return path


def _show(lines: Sequence[Line], parts: Sequence[Priced], trust: str) -> None:
    console = Console(width=None if Console().is_terminal else 140)
    table = Table(title=f"Predicted against measured kernel times, per cent (constants: {trust})")
    for name in ("table", "gpu", "format"):
        table.add_column(name)
    for name in ("n", "priced", "MAPE", "median", "p90", "bias", "in 90 % interval", "datasheet MAPE"):
        table.add_column(name, justify="right")
    for line in lines:
        s = line.score
        numbers = [f"{v:.1f}" for v in (s.mape_pct, s.median_pct, s.p90_pct)] + [f"{s.bias_pct:+.1f}"]
        shown = numbers if line.priced else ["-"] * 4
        tail = [f"{line.coverage_pct:.0f}", f"{line.datasheet.mape_pct:.0f}"] if line.priced else ["-", "-"]
        table.add_row(line.table, line.gpu, line.number_format, str(line.n), str(line.priced), *shown, *tail)
    console.print(table)
    total, priced = sum(line.n for line in lines), sum(line.priced for line in lines)
    console.print(f"{priced} of {total} rows priced ({100 * priced / total:.1f} %).", highlight=False)
    for what, count in unpriced(parts).items():
        console.print(f"  no price: {what}: {count} rows", highlight=False, markup=False)


def _check(lines: Sequence[Line], max_mape: float | None) -> None:
    if max_mape is None:
        return
    over = [line for line in lines if line.priced and line.score.mape_pct > max_mape]
    if over:
        worst = max(over, key=lambda line: line.score.mape_pct)
        raise GateFailed(
            f"{len(over)} of {len(lines)} lines exceed {max_mape:g} %; worst {worst.table} {worst.gpu} "
            f"{worst.number_format} at {worst.score.mape_pct:.1f} %"
        )
