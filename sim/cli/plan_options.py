"""Options that `plan` and `compare hardware` share, and what they mean."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sim.cli.progress import progress_bar
from sim.errors import ConfigError, GateFailed
from sim.planner.executors import Executor, executor_of
from sim.planner.options import Search
from sim.planner.plan import Plan, Request, fleet_capacity, make_plan
from sim.planner.trial import Base
from sim.planner.vllm_serve import command_line
from sim.report.plan_rows import PLAN_COLUMNS, Column, cells, plan_rows, told
from sim.report.plan_words import answer, capacity_answer, nearest_option
from sim.scenario import parse_setting
from sim.slo import parse_objectives

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="R",
                 help="Requests per second to hold [default: the workload's, at its busiest]"),
    click.option("--slo", metavar="KEY=TIME,...", help="Objectives: ttft_p99=500ms,tpot_p99=50ms "
                 "[default: the scenario's]"),
    click.option("--search", "searched", multiple=True, metavar="KEY,...",
                 help="What to vary: tp, pp, quantization, max_num_seqs, max_num_batched_tokens, scheduler, ..., or "
                 "any KEY=[value, ...] [default: tp]"),
    click.option("--headroom", type=click.FloatRange(0, 900), default=0.0, metavar="PCT",
                 help="Size for so much more than the rate, per cent."),
    click.option("--spare", type=click.IntRange(0), default=0, help="Replicas that may fail (N+1: 1)."),
    click.option("--seeds", type=click.IntRange(1), default=3, show_default=True,
                 help="Runs that a fleet must all hold."),
    click.option("--duration", type=click.FloatRange(min=1), default=120.0, show_default=True, metavar="S",
                 help="Seconds of traffic per run, and at least 1000 requests."),
    click.option("--max-gpus", type=click.IntRange(1), default=1024, show_default=True),
    click.option("--uncertainty", type=click.IntRange(0), default=10, show_default=True, metavar="N",
                 help="Repetitions behind every interval; 0: none."),
    click.option("--price", "prices", multiple=True, metavar="GPU=USD", help="Dollars per GPU-hour of your own."),
    click.option("--carbon", metavar="GRAMS", help="gCO2 per kWh, or a country such as DEU."),
    click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override any key of the scenario."),
    click.option("--out", type=click.Path(path_type=Path), help="Directory to write [default: out/NAME]"),
    click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True),
    click.option("--no-report", is_flag=True, help="No figures, no curves: the table, and the answer."),
    click.option("--executor", type=click.Choice(["local", "ray"]), default="local", show_default=True),
    click.option("--jobs", type=click.IntRange(1), help="Processes of the local executor [default: all cores]"),
    click.option("--address", metavar="HOST:PORT", help="Ray cluster (auto: the one of this machine)."),
)  # fmt: skip


def planning_options(command: Command) -> Command:
    """Adds them all to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def overrides_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the options change in the scenario. Raises ConfigError."""
    found = dict(parse_setting(text) for text in options["settings"])
    if options["slo"] is not None:
        try:
            found["slo"] = parse_objectives(options["slo"])
        except ConfigError as error:
            raise error.placed(file="--slo", line=None, key=error.key) from None
    if options["prices"]:
        found["cost.price_per_gpu_hour_usd"] = dict(_price(text) for text in options["prices"])
    if options["carbon"] is not None:
        found["cost.carbon_g_per_kwh"] = _number_or_word(options["carbon"])
    return found


def _price(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise ConfigError("expected GPU=USD, such as h100-sxm=2.50", key="--price", value=text) from None


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def request_of(base: Base, hardware: str | None, options: Mapping[str, Any], vary: bool = True) -> Request:
    """The question that the options ask; `vary`: whether tensor parallelism is searched where nothing is said."""
    names = tuple(word.strip() for word in (hardware or "").split(",") if word.strip())
    search = Search.parse(options["searched"] or (["tp"] if vary else []))
    return Request(
        base, names, search, options["rate"], options["headroom"] / 100,
        options["spare"], options["seeds"], options["duration"], options["max_gpus"], options["uncertainty"],
        curves=not options["no_report"],
    )  # fmt: skip


def executor_from(options: Mapping[str, Any]) -> Executor:
    """Where to compute."""
    return executor_of(options["executor"], jobs=options["jobs"], address=options["address"])


def carry_out(request: Request, replicas: int | None, options: Mapping[str, Any]) -> Plan:
    """Make the plan behind a progress bar."""
    with progress_bar("planning") as on_progress:

        def hear(what: str, done: int, total: int) -> None:
            on_progress(done, total)

        if replicas is not None:
            return fleet_capacity(request, replicas, executor_from(options), hear)
        return make_plan(request, executor_from(options), hear)


def show(plan: Plan, directory: Path, options: Mapping[str, Any], *, inverse: bool = False) -> None:
    """Write the plan's directory and print its answer. Raises GateFailed where nothing holds."""
    from sim.report.plan_page import plan_json, write_plan  # matplotlib: not before there is something to draw

    try:
        page = write_plan(plan, directory, command=_typed(), inverse=inverse, figures=not options["no_report"])
    except OSError as error:
        raise ConfigError(f"cannot be written ({error.strerror})", file=directory) from error
    sentence = capacity_answer(plan) if inverse else answer(plan)
    if options["form"] == "json":
        click.echo(plan_json(plan, inverse=inverse), nl=False)
    else:
        _print(plan, sentence, page)
    if not plan.studies:
        raise GateFailed(sentence)


def _typed() -> str:
    """The command as it was given, without what changes no number."""
    words = list(click.get_current_context().find_object(tuple) or ())
    for option in ("--out", "--jobs", "--executor", "--address", "--format"):
        while option in words:
            at = words.index(option)
            del words[at : at + 2]
    return shlex.join(["roofserve", *words])


def _print(plan: Plan, sentence: str, page: Path) -> None:
    console = Console(highlight=False)
    rows = plan_rows(plan)
    if rows:
        console.print(Text(sentence, style="bold"))
        console.print(_table(told(PLAN_COLUMNS, rows), rows))
    if plan.winner is not None:
        console.print(Text("One replica of it:"))
        console.print(Text(command_line(list(plan.winner.anatomy.command))), soft_wrap=True)
        for note in plan.winner.anatomy.command_notes:
            console.print(Text(f"Note: {note}"))
    for note in plan.traffic.notes:
        console.print(Text(f"Note: {note}"))
    if not rows and nearest_option(plan):
        console.print(Text(f"Nearest objectives that hold: --slo {nearest_option(plan)}"), soft_wrap=True)
    console.print(f"Report: {page}", soft_wrap=True)


def _table(columns: tuple[Column, ...], rows: list[dict[str, Any]]) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    for column in columns:
        whole = column.title in ("GPU", "Trust")  # names are not broken where the terminal is narrow
        justify: Literal["left", "right"] = "right" if column.sort else "left"
        table.add_column(column.title, justify=justify, overflow="fold", no_wrap=whole)
    for row in cells(columns, rows):
        table.add_row(*(text.replace(" (", "\n(") for text, _ in row))
    return table
