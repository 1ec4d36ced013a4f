"""`roofserve calibrate`: fit a GPU's kernel constants to measured tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from sim.catalog import find
from sim.cost.calibration import Calibration, Key
from sim.cost.calibration_source import load_calibration
from sim.cost.kernels.chip import chip_of
from sim.errors import ConfigError
from sim.specs.hardware import Gpu, load_gpu
from sim.validation.calibrate import Fitted, cells, fit_and_score, price
from sim.validation.calibration_file import PUBLIC_TABLES, calibration_block, write_block
from sim.validation.silicon import database, silicon_tables
from sim.validation.tables import read_tables

_PATH = click.Path(path_type=Path)
_SILICON = "aiconfigurator-core (Apache-2.0, NVIDIA), as installed"


@click.command()
@click.option("--from", "origin", type=click.Choice(["silicon", "tables", "record"]), help="Where times come from.")
@click.option("--gpu", "on_gpu", is_flag=True, help="Measure this machine's GPU, and write a profile of it to --out.")
@click.option("--quick", is_flag=True, help="With --gpu: fewer sizes, under five minutes of a large GPU.")
@click.option("--budget", type=click.FloatRange(min=0), default=3600.0, show_default=True, help="With --gpu: seconds.")
@click.option("--hardware", help="Profile of the GPU that was measured; --gpu and record know it from the driver.")
@click.option("--stack", default="vllm", show_default=True, help="Software stack to fit, or `all`.")
@click.argument("paths", nargs=-1, type=_PATH)
@click.option("--out", type=_PATH, help="Where to write the block  [default: out/calibration-HARDWARE.yaml]")
@click.option("--report", type=_PATH, help="With --gpu or record: folder of the report  [default: beside OUT]")
@click.option("--cross-validate/--no-cross-validate", default=True, help="Also score on points and shapes left out.")
def calibrate(
    origin: str | None,
    on_gpu: bool,
    quick: bool,
    budget: float,
    hardware: str | None,
    stack: str,
    paths: tuple[Path, ...],
    out: Path | None,
    report: Path | None,
    cross_validate: bool,
) -> None:
    """Fit kernel constants to measured times and write them as a profile's `calibration:` block.

    `--from silicon` reads the public database of the PyPI package aiconfigurator-core, or of the folder PATHS;
    `--from tables` reads the CSV tables PATHS, your own say. Classes and stacks that are not fitted keep the constants
    of the shipped profile. `--gpu` measures here, into OUT.measurements.jsonl; a run that was cut short goes on with
    it. It writes a whole profile, and a report beside it; `--from record` does the same with what `roofserve measure`
    brought from another machine.
    """
    if on_gpu or origin == "record":
        path = out or Path("out") / "my-gpu.yaml"
        records = [_measure_here(path, quick, budget)] if on_gpu else list(paths)
        _from_record(records, path, hardware, report)
        return
    if origin is None or hardware is None:
        raise click.UsageError("needs --gpu, or --from with --hardware")
    gpu = load_gpu(find("hardware", hardware))
    tables = silicon_tables(gpu.name, paths[0] if paths else database()) if origin == "silicon" else _own(paths)
    shipped = _shipped(gpu)
    fits = _fit(tables, gpu, stack, shipped, cross_validate)
    path = out or Path("out") / f"calibration-{gpu.name}.yaml"
    entries = {**(dict(shipped.entries) if shipped else {}), **{fit.cell.key: fit.entry() for fit in fits}}
    write_block(calibration_block(entries.items()), gpu.name, path, _SILICON if origin == "silicon" else PUBLIC_TABLES)
    _show(fits, shipped)
    click.echo(f"wrote {path}")


def _measure_here(out: Path, quick: bool, budget: float) -> Path:
    from sim.cli.calibrate_own import measure_here

    return measure_here(out, quick, budget)


def _from_record(records: Sequence[Path], out: Path, hardware: str | None, report: Path | None) -> None:
    """Write profile and report of what was measured."""
    from sim.cli.calibrate_own import write_own

    if not records:
        raise ConfigError("needs the record to read", key="--from", value="record")
    fits, shipped, written = write_own(records, out, hardware, report)
    _show(fits, shipped)
    for file in written:
        click.echo(f"wrote {file}")


def _own(paths: Sequence[Path]) -> dict[str, pd.DataFrame]:
    if not paths:
        raise ConfigError("needs the CSV files to read", key="--from", value="tables")
    return read_tables(paths)


def _shipped(gpu: Gpu) -> Calibration | None:
    try:
        return load_calibration(gpu)
    except ConfigError:
        return None


def _fit(
    tables: Mapping[str, pd.DataFrame], gpu: Gpu, stack: str, shipped: Calibration | None, cross_validate: bool
) -> list[Fitted]:
    chosen = [cell for cell in cells(tables, gpu.name) if stack in ("all", cell.key.stack)]
    if not chosen:
        stacks = sorted({cell.key.stack for cell in cells(tables, gpu.name)})
        raise ConfigError("nothing was measured with it", key="stack", value=stack, choices=[*stacks, "all"])
    fits = []
    for cell in chosen:
        known = shipped.entries.get(cell.key) if shipped else None
        start = known.kernel if known else None
        found = fit_and_score(cell, chip_of(gpu), validate=cross_validate, start=start)
        if found is not None:
            fits.append(found)
    return fits


def _show(fits: Sequence[Fitted], shipped: Calibration | None) -> None:
    table = Table(title="Fitted kernel constants; MAPE in per cent")
    for name in ("class", "format", "stack"):
        table.add_column(name)
    for name in ("n", "fitted", "left-out points", "left-out shapes", "shipped differ by"):
        table.add_column(name, justify="right")
    for fit in fits:
        scores = fit.scores()
        shown = [f"{s.mape_pct:.1f}" if s.n else "-" for s in scores.values()]
        table.add_row(*fit.cell.key, str(len(fit.cell.rows)), *shown, _difference(fit, shipped))
    Console(width=None if Console().is_terminal else 120).print(table)


def _difference(fit: Fitted, shipped: Calibration | None) -> str:
    """Mean difference between the new predictions and those of the shipped constants, on the rows fitted."""
    known: Any = shipped.entries.get(Key(*fit.cell.key)) if shipped else None
    if known is None:
        return "-"
    new, old = (price(fit.cell.family, kernel, fit.cell.rows) for kernel in (fit.kernel, known.kernel))
    return f"{100 * np.abs(new / old - 1).mean():.1f}"
