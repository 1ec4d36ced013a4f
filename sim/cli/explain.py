"""`roofserve explain`: what one kernel, or one step of a scenario, costs, what it is made of, and what bounds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from sim.build import build
from sim.cost.calibrated_kernels import class_errors, op_class
from sim.cost.calibration_source import find_calibration
from sim.cost.explain_kernel import KINDS, explain_kernel
from sim.cost.ops import OpCost
from sim.cost.shape import RunShape
from sim.cost.uncertainty import step_interval
from sim.errors import ConfigError
from sim.scenario import load_scenario, parse_setting
from sim.setup import Setup
from sim.specs.hardware import load_gpu

_SIZE_HELP = "Another size of the kernel, such as heads=32 (repeatable)."


@click.command()
@click.argument("scenario", required=False)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key of the scenario.")
@click.option("--sequences", default=32, show_default=True, type=click.IntRange(0), help="Decoding sequences.")
@click.option("--context", default=1000, show_default=True, type=click.IntRange(0), help="Context of each, in tokens.")
@click.option("--prompt", default=0, show_default=True, type=click.IntRange(0), help="Prompt tokens in the step.")
@click.option("--kernel", type=click.Choice(list(KINDS)), help="Explain one kernel instead of a scenario's step.")
@click.option("--hardware", help="GPU profile of the kernel.")
@click.option("-m", type=click.IntRange(1), help="Rows of a gemm: tokens.")
@click.option("-n", type=click.IntRange(1), help="Columns of a gemm's weight matrix.")
@click.option("-k", type=click.IntRange(1), help="Rows of a gemm's weight matrix.")
@click.option("--size", "sizes", multiple=True, metavar="NAME=N", help=_SIZE_HELP)
@click.option("--dtype", help="Number format: bf16, fp8, fp8_block, w4a16, ...  [default: the kind's usual one]")
@click.option("--stack", default="vllm", show_default=True, help="Software stack whose kernel is meant.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw the roofline of a gemm here (PNG).")
@click.option(
    "--measurements", type=click.Path(path_type=Path, dir_okay=False), help="GEMM table with measured points."
)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def explain(scenario: str | None, kernel: str | None, form: str, **options: Any) -> None:
    """Explain one kernel's time, or the operators of one step of SCENARIO.

    \b
    Examples:
      roofserve explain --kernel gemm --hardware h100-sxm -m 64 -n 8192 -k 8192 --dtype fp8
      roofserve explain --kernel decode --hardware a100-sxm-80gb --size sequences=32 --size context=2000 \\
          --size heads=32 --size kv_heads=8
      roofserve explain quickstart --sequences 64 --context 1200 --prompt 512
    """
    if (kernel is None) == (scenario is None):
        raise ConfigError("name a SCENARIO, or a --kernel with its --hardware", key="explain")
    found = _kernel(kernel, options) if kernel is not None else _step(str(scenario), options)
    if form == "json":
        click.echo(json.dumps(found, indent=2))
    else:
        _print(found)


def _kernel(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    if not options["hardware"]:
        raise ConfigError("is required with --kernel", key="--hardware")
    gpu = load_gpu(options["hardware"])
    calibration = find_calibration(gpu)
    if calibration is None:
        raise ConfigError("neither this GPU nor one of its generation is calibrated", key="--hardware", value=gpu.name)
    sizes = {name: options[name] for name in ("m", "n", "k") if options[name] is not None}
    sizes |= dict(_size(text) for text in options["sizes"])
    constants, trust = calibration
    found = explain_kernel(constants, kind, sizes, options["dtype"], options["stack"])
    if options["plot"] is not None:
        _plot(kind, sizes, options, constants)
    rows = [{"term": name, "us": seconds * 1e6} for name, seconds in found.terms.parts.items()]
    return {
        "title": f"{kind} on {gpu.name} ({trust}): {found.terms.seconds * 1e6:,.2f} us, bound by {found.terms.bound}",
        "us": found.terms.seconds * 1e6,
        "interval_us": [bound * 1e6 for bound in found.interval_s],
        "bound": found.terms.bound,
        "trust": trust,
        "source": found.entry.source,
        "rows": rows,
    }


def _plot(kind: str, sizes: dict[str, int], options: dict[str, Any], constants: Any) -> None:
    from sim.validation.figures import save_gemm_roofline  # matplotlib: only when something is drawn

    if kind != "gemm":
        raise ConfigError("draws gemms only", key="--plot")
    name = options["dtype"] or KINDS[kind].dtype
    save_gemm_roofline(constants, sizes, (name, options["stack"]), options["plot"], options["measurements"])


def _size(text: str) -> tuple[str, int]:
    name, value = parse_setting(text)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError("expected a whole number", key=f"--size {name}", value=value)
    return name, value


def _step(scenario: str, options: dict[str, Any]) -> dict[str, Any]:
    setup = build(load_scenario(scenario, dict(parse_setting(text) for text in options["settings"])))
    decodes, context, prompt = options["sequences"], options["context"], options["prompt"]
    if not decodes and not prompt:
        raise ConfigError("a step needs --sequences or --prompt", key="explain")
    spans = setup.timer.spans
    shape = RunShape(
        decodes, decodes * context, [(0, prompt)] if prompt else [], [decodes * span.visible(context) for span in spans]
    )
    ops = setup.timer.explain(shape)
    total = sum(op.seconds for op in ops)
    low, high = _interval(setup, ops)
    what = " and ".join(x for x in (f"{decodes} decodes at context {context}" if decodes else "",
                                    f"{prompt} prompt tokens" if prompt else "") if x)  # fmt: skip
    return {
        "title": f"{setup.architecture.name} on {setup.gpu.name} ({setup.kernels.trust}), {what}: "
        f"{total * 1e3:,.3f} ms, 90 % between {low * 1e3:,.3f} and {high * 1e3:,.3f}",
        "ms": total * 1e3,
        "interval_ms": [low * 1e3, high * 1e3],
        "trust": setup.kernels.trust,
        "rows": [_row(op, total) for op in sorted(ops, key=lambda op: -op.seconds)],
    }


def _interval(setup: Setup, ops: list[OpCost]) -> tuple[float, float]:
    seconds: dict[str, float] = {}
    for op in ops:
        name = op_class(op.name) or "host"
        seconds[name] = seconds.get(name, 0.0) + op.seconds
    return step_interval(seconds, class_errors(setup.kernels, setup.timer.forward))


def _row(op: OpCost, total: float) -> dict[str, Any]:
    cost = op.cost
    return {
        "operator": op.name,
        "calls": op.calls,
        "us": op.seconds * 1e6,
        "share %": 100 * op.seconds / total,
        "GFLOP": op.calls * cost.flops / 1e9,
        "MB": op.calls * cost.bytes / 1e6,
        "FLOP/byte": cost.flops / cost.bytes if cost.bytes else None,
        "bound": cost.bound,
    }


def _print(found: dict[str, Any]) -> None:
    console = Console()
    console.print(found["title"], highlight=False)
    if "interval_us" in found:
        low, high = found["interval_us"]
        console.print(
            f"90 % between {low:,.2f} and {high:,.2f} us; constants fitted to {found['source']}", highlight=False
        )
    table = Table(box=None, header_style="bold")
    for name, value in found["rows"][0].items():
        text = isinstance(value, str)
        table.add_column(name, justify="left" if text else "right", no_wrap=True)
    for row in found["rows"]:
        table.add_row(*(_cell(value) for value in row.values()))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
