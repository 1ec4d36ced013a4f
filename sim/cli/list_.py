"""`roofserve list WHAT`: everything that can be named in a scenario."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from sim import catalog
from sim.build import ALLOCATORS, ROUTERS, SCHEDULERS
from sim.documents import load_yaml
from sim.presets import load_preset
from sim.specs.hardware import load_gpu
from sim.specs.hf_config import list_models
from sim.specs.number_formats import FORMATS
from sim.specs.quantization import SCHEMES
from sim.units import GIB
from sim.workloads.builder import load_workload

Rows = list[dict[str, Any]]


def _models() -> Rows:
    return [
        {
            "model": a.name,
            "parameters (1e9)": round(a.num_parameters / 1e9, 2),
            "active (1e9)": round(a.active_parameters / 1e9, 2),
            "layers": a.num_layers,
            "KV bytes/token": a.kv_bytes_per_token(2),
            "context": a.max_model_len,
        }
        for a in list_models()
    ]


def _hardware() -> Rows:
    rows = []
    for name in catalog.names("hardware"):
        gpu = load_gpu(name)
        rows.append(
            {
                "hardware": name,
                "memory (GiB)": round(gpu.memory_visible_bytes / GIB, 1),
                "bandwidth (GB/s)": round(gpu.memory_bandwidth_bytes_per_s / 1e9),
                "16-bit (TFLOP/s)": round(gpu.peak_flops(gpu.default_dtype) / 1e12),
                "formats": " ".join(gpu.formats),
                "calibrated": "yes" if gpu.calibration else "no",
                "$/hour": gpu.price_per_hour_usd.mid if gpu.price_per_hour_usd else None,
            }
        )
    return rows


def _described(kind: str) -> Callable[[], Rows]:
    def rows() -> Rows:
        return [{kind: name, "description": _description(kind, name)} for name in catalog.names(kind)]

    return rows


def _description(kind: str, name: str) -> str:
    if kind == "workload":
        return load_workload(name)[0].description
    if kind == "preset":
        return load_preset(name).description
    document = load_yaml(catalog.find(kind, name))
    return str(document.data.get("description") or _first_comment(document.path.read_text() if document.path else ""))


def _first_comment(text: str) -> str:
    first = text.lstrip().split("\n", 1)[0]
    return first.lstrip("# ") if first.startswith("#") else ""


def _policies(table: dict[str, Any], label: str) -> Callable[[], Rows]:
    return lambda: [{label: name, "description": _summary(policy)} for name, policy in table.items()]


def _summary(policy: Any) -> str:
    doc = policy.__doc__ if isinstance(policy, type) else None
    return (doc or "").strip().split("\n")[0]


_LISTS: dict[str, Callable[[], Rows]] = {
    "models": _models,
    "hardware": _hardware,
    "workloads": _described("workload"),
    "scenarios": _described("scenario"),
    "presets": _described("preset"),
    "schedulers": _policies(dict(SCHEDULERS), "scheduler"),
    "allocators": _policies(dict(ALLOCATORS), "allocator"),
    "routers": _policies(dict(ROUTERS), "router"),
    "quantization": lambda: [{"scheme": name, "weights": w, "activations": a} for name, (w, a) in SCHEMES.items()],
    "formats": lambda: [{"format": f.name, "stored bytes": f.stored_bytes} for f in FORMATS.values()],
}


@click.command("list")
@click.argument("what", type=click.Choice(sorted(_LISTS)))
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def list_(what: str, form: str) -> None:
    """List what can be named in a scenario.

    \b
    Example:
      roofserve list hardware
    """
    rows = _LISTS[what]()
    if form == "json":
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table(box=None, header_style="bold")
    for name in rows[0] if rows else ():
        numeric = isinstance(rows[0][name], (int, float))
        table.add_column(name, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for row in rows:
        table.add_row(
            *("" if value is None else f"{value:,}" if isinstance(value, int) else str(value) for value in row.values())
        )
    Console().print(table)
