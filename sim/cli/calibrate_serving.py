"""`roofserve calibrate --serving`: fit an engine's parameters to one's own server."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sim.errors import ConfigError
from sim.validation.serving.left_out import save_preset
from sim.validation.serving.own_server import OwnFit, fit_own, own_case

_SHOWN = ("ttft_mean", "tpot_mean", "e2e_mean", "out_tok_s", "req_s")


def calibrate_serving(
    files: Sequence[str], scenario: str | None, overrides: Mapping[str, Any], out: Path | None
) -> Path:
    """Fit, write the preset, show what it predicts before and after. Raises ConfigError for what cannot be read."""
    if scenario is None:
        raise ConfigError("needs the scenario that describes the server: model, hardware, engine", key="--scenario")
    cases = [own_case(file, scenario, overrides) for file in files]
    with tempfile.TemporaryDirectory() as scratch:
        found = fit_own(cases, Path(scratch))
    path = out or Path("out") / f"{cases[0].labels['engine']}-fitted.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_preset(found.preset, path)
    _show(found)
    return path


def _show(found: OwnFit) -> None:
    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    errors = Table(title="Errors in per cent, before and after the fit")
    for name in ("run", "metric", "measured", "before", "after"):
        errors.add_column(name, justify="left" if name in ("run", "metric") else "right")
    for case, before, after in zip(found.cases, found.before, found.after, strict=True):
        measured = case.parts[0].measured
        for metric in (name for name in _SHOWN if name in after.parts[0]):
            signed = [f"{100 * (one.parts[0][metric] / measured[metric] - 1):+.1f}" for one in (before, after)]
            errors.add_row(Path(case.id).name, metric, f"{measured[metric]:,.2f}", *signed)
    console.print(errors)
    values = Table(title="Parameters of the engine")
    for name in ("parameter", "preset", "fitted"):
        values.add_column(name, justify="left" if name == "parameter" else "right")
    for name, value in found.values.items():
        values.add_row(name, *(_number(name, one) for one in (found.start[name], value)))
    console.print(values)


def _number(name: str, value: float) -> str:
    return f"{value * 1e6:,.1f} us" if name.startswith("host.") else f"{value:.3f}"
