"""`roofserve compare schemes`: what each quantisation scheme gives a model on one GPU, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sim.errors import ConfigError
from sim.planner.schemes import SchemeRow, compare_schemes, default_schemes, preset_for
from sim.scenario import parse_setting
from sim.specs.hardware import load_gpu

_COLUMNS = {
    "output_tok_s": "out tok/s", "ttft_ms": "TTFT ms", "tpot_ms": "TPOT ms", "concurrency": "fits",
    "weights_gb": "weights GB", "kv_gb": "KV GB", "usd_per_mtoken": "$/Mtok",
}  # fmt: skip
_WIDTH_OF_FILES = 170


@click.command("schemes")
@click.option("--model", required=True, help="Hugging Face id from the catalogue, or a config.json.")
@click.option("--hardware", required=True, help="A shipped profile, or a file.")
@click.option("--workload", default="chat", show_default=True, help="A shipped workload, a file, or a trace.")
@click.option("--schemes", "names", metavar="NAME,...", help="`roofserve list schemes`; awq+kv_fp8 combines two axes.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key of the scenario.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write schemes.json and .png here.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def schemes(
    model: str, hardware: str, workload: str, names: str | None, settings: tuple[str, ...], out: Path | None, form: str
) -> None:
    """Serve the same traffic under each scheme: throughput, TTFT, TPOT, concurrency, memory, price and quality.

    Latencies are means. `fits` is how many requests of the mean length fit the KV cache and the seats. Quality is as
    published for the model or its family, and unknown where nobody measured it. For the throughput of a full GPU give
    a workload that fills it, such as batch.

    \b
    Examples:
      roofserve compare schemes --model meta-llama/Llama-3.1-8B --hardware a100-sxm-80gb --workload batch
      roofserve compare schemes --model meta-llama/Llama-2-7b-hf --hardware epyc-9554 --set workload.num_requests=20
    """
    gpu = load_gpu(hardware)
    chosen = [name.strip() for name in names.split(",") if name.strip()] if names else default_schemes(gpu)
    if not chosen:
        raise ConfigError("names no scheme", key="--schemes", value=names)
    scenario = {
        "name": f"schemes-{gpu.name}", "model": model, "hardware": hardware, "workload": workload,
        "engine": {"preset": preset_for(gpu)},
    }  # fmt: skip
    rows = compare_schemes(scenario, chosen, dict(map(parse_setting, settings)))
    title = f"{model} on {gpu.name}, {workload}"
    if form == "json":
        click.echo(json.dumps([row.as_json() for row in rows], indent=2))
    else:
        _print(rows, title)
    if out is not None:
        _save(rows, title, out)


def _save(rows: Sequence[SchemeRow], title: str, out: Path) -> None:
    from sim.report.scheme_plot import scheme_figure  # matplotlib is slow to import

    out.mkdir(parents=True, exist_ok=True)
    found = [row.as_json() for row in rows]
    (out / "schemes.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (out / "schemes.png").write_bytes(scheme_figure(found, title))
    click.echo(f"Written: {out / 'schemes.json'} and {out / 'schemes.png'}", err=True)


def _print(rows: Sequence[SchemeRow], title: str) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH_OF_FILES)
    table = Table(title=f"{title} ({next(row.trust for row in rows if row.trust)})", box=None, header_style="bold",
                  title_justify="left")  # fmt: skip
    table.add_column("scheme", no_wrap=True)
    for heading in _COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("published quality")
    for row in rows:
        if row.problem:
            table.add_row(row.scheme, *[""] * len(_COLUMNS), Text(f"refused: {row.problem}"))
        else:
            table.add_row(row.scheme, *(_cell(getattr(row, key)) for key in _COLUMNS), Text(row.quality))
    console.print(table)
    for path in dict.fromkeys(row.path for row in rows if row.path):
        console.print(Text(f"note: {path}"), soft_wrap=True)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.1f}" if value >= 10 else f"{value:.3g}"
