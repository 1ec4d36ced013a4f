"""`roofserve list WHAT`: everything that can be named in a scenario."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from sim import catalog
from sim.documents import load_yaml
from sim.policies import ALLOCATORS, PREDICTORS, QUEUE_ORDERS, ROUTERS, SCHEDULERS
from sim.presets import load_preset
from sim.specs.hardware import load_gpu
from sim.specs.hf_config import list_models
from sim.specs.number_formats import FORMATS
from sim.specs.schemes import SCHEMES, Scheme
from sim.specs.weight_kernels import KERNELS
from sim.units import GIB
from sim.workloads.builder import load_workload

Rows = list[dict[str, Any]]
_WIDTH_OF_FILES = 200  # `list models | grep` must find a name and its numbers on one line


def _models() -> Rows:
    return [
        {
            "model": a.name,
            "1e9 params": round(a.num_parameters / 1e9, 2),
            "active": round(a.active_parameters / 1e9, 2),
            "layers": a.num_layers,
            "KV B/token": a.kv_bytes_per_token(2),
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
                "GiB": round(gpu.memory_visible_bytes / GIB, 1),
                "GB/s": round(gpu.memory_bandwidth_bytes_per_s / 1e9),
                "16-bit TFLOP/s": round(gpu.peak_flops(gpu.default_dtype) / 1e12),
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
    return str(policy.__doc__ or "").strip().split("\n")[0]


def _schemes() -> Rows:
    return [
        {"scheme": s.name, "weights": s.weights, "activations": s.activations, "description": _about(s)}
        for s in SCHEMES.values()
    ]


def _about(scheme: Scheme) -> str:
    cache = f"; KV cache {scheme.kv_cache}" if scheme.kv_cache else ""
    samples = f"; calibrated on {scheme.calibration}" if scheme.calibration != "none" else ""
    return scheme.title + cache + samples


_LISTS: dict[str, Callable[[], Rows]] = {
    "models": _models,
    "hardware": _hardware,
    "workloads": _described("workload"),
    "scenarios": _described("scenario"),
    "presets": _described("preset"),
    "schedulers": _policies(dict(SCHEDULERS), "scheduler"),
    "allocators": _policies(dict(ALLOCATORS), "allocator"),
    "queue-orders": _policies(dict(QUEUE_ORDERS), "scheduling_policy"),
    "predictors": _policies(dict(PREDICTORS), "predictor"),
    "routers": _policies({name: make(0) for name, make in ROUTERS.items()}, "router"),
    "quantization": _schemes,
    "schemes": _schemes,
    "kernels": lambda: [
        {"kernel": k.name, "description": f"{k.title}; in {', '.join(k.stacks)}"} for k in KERNELS.values()
    ],
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
    console, table = Console(), _table(rows)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDTH_OF_FILES
    unlimited = console.options.update(max_width=_WIDTH_OF_FILES)
    console.width = max(console.width, Measurement.get(console, unlimited, table).minimum)
    console.print(table)


def _table(rows: Rows) -> Table:
    """Names, which are there to be copied, and numbers stay whole; descriptions give way to a narrow terminal."""
    table = Table(box=None, header_style="bold")
    for i, heading in enumerate(rows[0]):
        cells = [_cell(row[heading]) for row in rows]
        numeric = isinstance(rows[0][heading], (int, float))
        whole = max(len(text) for text in (heading, *cells)) if numeric or i == 0 else None
        table.add_column(heading, justify="right" if numeric else "left", min_width=whole, overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    return table


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
