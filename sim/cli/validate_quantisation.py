"""`roofserve validate quantisation`: what schemes gain, simulated against measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from sim.errors import ConfigError, GateFailed
from sim.validation.serving.pairs import Pair, needed, pairs_of, verdict
from sim.validation.serving.read import read_cases
from sim.validation.serving.replay import replay

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("quantisation")
@click.option(
    "--runs", "first", required=True, multiple=True, type=click.Path(path_type=Path, exists=True),
    help="A table of measured serving runs, or a folder of them; more may follow.",
)  # fmt: skip
@click.argument("more", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--json", "json_path", type=_FILE, help="Write every pair as JSON.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes; default: all cores.")
@click.option(
    "--max-median", type=click.FloatRange(min=0), metavar="PCT",
    help="Exit with 3 when the median error of the ratios on one GPU is above this, or 1 in 10 signs is wrong.",
)  # fmt: skip
def quantisation(
    first: tuple[Path, ...], more: tuple[Path, ...], json_path: Path | None, jobs: int | None, max_median: float | None
) -> None:
    """Pair quantised runs with unquantised ones of the same model, engine and traffic, and compare the ratios.

    Reads the same tables as `validate serving`. Where a quantised run has no unquantised partner on its own GPU, one
    on another GPU stands in; those pairs are listed and counted apart.
    """
    cases = needed(read_cases([*first, *more]))
    if not cases:
        raise ConfigError("no run has a partner in another format here", key="--runs", value=str(first[0]))
    pairs = pairs_of(list(zip(cases, replay(cases, jobs=jobs), strict=True)))
    console = Console(width=None if Console().is_terminal else 150, highlight=False)
    for same_gpu, title in ((True, "on one GPU"), (False, "16 bit on another GPU")):
        chosen = [pair for pair in pairs if pair.same_gpu is same_gpu]
        if chosen:
            _show(console, chosen, title)
    if json_path is not None:
        json_path.write_text(json.dumps([_as_json(pair) for pair in pairs], indent=1) + "\n", encoding="utf-8")
    _check([pair for pair in pairs if pair.same_gpu], max_median)


def _show(console: Console, pairs: Sequence[Pair], title: str) -> None:
    table = Table(title=f"Throughput over that of 16 bit, {title}")
    for name in ("gpu", "model", "format", "engine", "traffic"):
        table.add_column(name)
    for name in ("measured", "simulated", "error %", "sign"):
        table.add_column(name, justify="right")
    for pair in pairs:
        sign = "" if not pair.decided else "right" if pair.right_sign else "WRONG"
        table.add_row(pair.gpu, pair.model, pair.format, pair.engine, pair.traffic, f"{pair.measured:.3f}",
                      f"{pair.predicted:.3f}", f"{pair.error_pct:+.1f}", sign)  # fmt: skip
    console.print(table)
    found = verdict(pairs)
    console.print(f"{found.pairs} pairs {title}: median error {found.median_pct:.1f} %; sign right in {found.right} of "
                  f"the {found.decided} that differ by more than 5 %.")  # fmt: skip


def _as_json(pair: Pair) -> dict[str, object]:
    return {**asdict(pair), "error_pct": pair.error_pct, "decided": pair.decided, "right_sign": pair.right_sign}


def _check(pairs: Sequence[Pair], max_median: float | None) -> None:
    found = verdict(pairs)
    if max_median is None:
        return
    if found.median_pct > max_median or found.right < 0.9 * found.decided:
        raise GateFailed(f"the median error is {found.median_pct:.1f} %, {found.right} of {found.decided} signs right")
