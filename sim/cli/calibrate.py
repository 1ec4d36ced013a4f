"""`roofserve calibrate`: fit a GPU's kernel constants to measured tables, or an engine's parameters to a server."""

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
from sim.cli.calibrate_serving import calibrate_serving
from sim.cost.calibration import Calibration, Key
from sim.cost.calibration_source import load_calibration
from sim.cost.kernels.chip import chip_of
from sim.errors import ConfigError
from sim.scenario import parse_setting
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
@click.option("--serving", "results", multiple=True, metavar="FILE", help="Results of a benchmark against your server.")
@click.option("--scenario", help="With --serving: the scenario that describes the server.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key of the scenario.")
@click.argument("paths", nargs=-1, type=_PATH)
@click.option("--out", type=_PATH, help="Where to write the block or the preset  [default: in out/]")
@click.option("--report", type=_PATH, help="With --gpu or record: folder of the report  [default: beside OUT]")
@click.option("--cross-validate/--no-cross-validate", default=True, help="Also score on points and shapes left out.")
def calibrate(paths: tuple[Path, ...], out: Path | None, **options: Any) -> None:
    """Fit kernel constants to measured times, or an engine's parameters to your own server.

    `--from silicon` reads the public database of the PyPI package aiconfigurator-core, or of the folder PATHS;
    `--from tables` reads the CSV tables PATHS, your own say. Classes and stacks that are not fitted keep the constants
    of the shipped profile. The result is a profile's `calibration:` block.

    `--gpu` measures here, into OUT.measurements.jsonl; a run that was cut short goes on with it. It writes a whole
    profile, and a report beside it; `--from record` does the same with what `roofserve measure` brought from another
    machine.

    `--serving FILE --scenario SCENARIO` reads results of `vllm bench serve`, inference-perf, guidellm or aiperf, or a
    CSV of requests (arrival_s, in_tok, out_tok, ttft_ms, e2e_ms), and fits the host times and kernel factors of the
    scenario's engine preset. The result is a preset that `engine.preset` may name; errors are shown before and after.
    """
    if options["results"]:
        overrides = dict(parse_setting(text) for text in options["settings"])
        written = calibrate_serving(options["results"], options["scenario"], overrides, out)
    elif options["on_gpu"] or options["origin"] == "record":
        _from_record(None if options["on_gpu"] else paths, out, options)
        return
    else:
        written = _calibrate_kernels(paths, out, options)
    click.echo(f"wrote {written}")


def _calibrate_kernels(paths: Sequence[Path], out: Path | None, options: Mapping[str, Any]) -> Path:
    origin, hardware = options["origin"], options["hardware"]
    if origin is None or hardware is None:
        raise click.UsageError("needs --gpu, or --from with --hardware, or --serving with --scenario")
    gpu = load_gpu(find("hardware", hardware))
    tables = silicon_tables(gpu.name, paths[0] if paths else database()) if origin == "silicon" else _own(paths)
    shipped = _shipped(gpu)
    fits = _fit(tables, gpu, options["stack"], shipped, options["cross_validate"])
    path = out or Path("out") / f"calibration-{gpu.name}.yaml"
    entries = {**(dict(shipped.entries) if shipped else {}), **{fit.cell.key: fit.entry() for fit in fits}}
    write_block(calibration_block(entries.items()), gpu.name, path, _SILICON if origin == "silicon" else PUBLIC_TABLES)
    _show(fits, shipped)
    return path


def _from_record(paths: Sequence[Path] | None, out: Path | None, options: Mapping[str, Any]) -> None:
    """Measure, unless there are records to read, and write profile and report."""
    from sim.cli.calibrate_own import measure_here, write_own

    path = out or Path("out") / "my-gpu.yaml"
    here = options["quick"], options["budget"]
    records = [measure_here(path, *here)] if paths is None else list(paths)
    if not records:
        raise ConfigError("needs the record to read", key="--from", value="record")
    fits, shipped, written = write_own(records, path, options["hardware"], options["report"])
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
