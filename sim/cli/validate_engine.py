"""The part of `roofserve validate serving` that serves on this machine's GPU, or reads what was served elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from sim.cli.measure import need_gpu
from sim.cost.step_timer import HostWork
from sim.errors import ConfigError, GateFailed
from sim.validation.engine.compare import Compared, compare, read_served
from sim.validation.own_profile import profile_name

_US, _MS = 1e6, 1e3


def serve_here(path: Path, quick: bool, budget_s: float, seed: int) -> Path:
    """Serve with the small engine on this machine's GPU; the file of runs. Raises NoGpu where there is none."""
    need_gpu()
    from sim.validation.engine.session import serve_all

    path.parent.mkdir(parents=True, exist_ok=True)
    serve_all(path, budget_s, seed, quick=quick, report=lambda text: click.echo(text, err=True))
    return path


def validate_engine(path: Path, hardware: str | None, json_path: Path | None, gate: bool) -> None:
    """Compare a file of runs with their simulation; with `gate`, exit with 3 when a mean is outside its bound."""
    served = read_served(path)
    known = hardware or profile_name(served.environment)
    if known is None:
        raise ConfigError("no profile ships of this GPU; name one", key="--hardware",
                          value=served.environment.get("gpu_name"))  # fmt: skip
    host, lines = compare(served, known)
    _show(host, lines)
    if json_path is not None:
        written = {"host": asdict(host), "means": [line.as_json() for line in lines]}
        json_path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    outside = [line for line in lines if line.judged and abs(line.error_pct) > line.bound_pct]
    if gate and outside:
        worst = max(outside, key=lambda line: abs(line.error_pct))
        raise GateFailed(
            f"{len(outside)} means are outside their bounds; worst {worst.metric} of {worst.model} at {worst.share:g} "
            f"of saturation, {worst.error_pct:+.1f} %"
        )


def _show(host: HostWork, lines: Sequence[Compared]) -> None:
    console = Console(width=None if Console().is_terminal else 140, highlight=False)
    costs = [f"{_US * cost:.3g} us" for cost in (host.step_s, host.sequence_s, host.token_s)]
    console.print(f"Host costs as fitted: {costs[0]} per step, {costs[1]} per sequence, {costs[2]} per token.")
    table = Table(title="The small engine: measured and simulated means")
    for name in ("model", "of saturation", "metric"):
        table.add_column(name)
    for name in ("measured ms", "simulated ms", "error %", "bound %", "repeats"):
        table.add_column(name, justify="right")
    for line in lines:
        share = "burst" if line.share is None else f"{line.share:g}" + (" (fit)" if line.fitted else "")
        times = (f"{_MS * value:.3g}" for value in (line.measured_s, line.predicted_s))
        bound = f"{line.bound_pct:.1f}" if line.judged else "-"
        table.add_row(line.model, share, line.metric, *times, f"{line.error_pct:+.1f}", bound, str(line.repeats))
    console.print(table)
