"""`roofserve run SCENARIO`: simulate, print the result table, write the run's directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sim.errors import ConfigError
from sim.imports.vllm_log import read_log
from sim.metrics import summarise
from sim.report.summary import render_summary, summary_json
from sim.report.write import write_report
from sim.results import RunResult
from sim.run import simulate
from sim.scenario import LoadedScenario, load_scenario, parse_setting

_INTERRUPTED = 130


@click.command()
@click.argument("scenario")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override any key: --set engine.max_num_seqs=64"
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Directory to write [default: out/NAME]")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of all random draws.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--step-by-step", is_flag=True, help="Execute every step by itself: slower, the same results.")
@click.option("--from-log", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Take KV blocks and resolved flags from a vLLM start-up log.")  # fmt: skip
@click.option("--timeline", is_flag=True, help="Also write timeline.json.gz for ui.perfetto.dev.")
@click.pass_context
def run(
    context: click.Context, scenario: str, settings: tuple[str, ...], out: Path | None, seed: int | None, form: str,
    step_by_step: bool, from_log: Path | None, timeline: bool,
) -> int:  # fmt: skip
    """Simulate SCENARIO, a shipped name or a YAML file, and report latency, throughput and memory.

    \b
    Examples:
      roofserve run quickstart
      roofserve run my.yaml --set workload.arrival.rate=20 --set hardware=h200-sxm --out out/h200
      roofserve run quickstart --from-log vllm-server.log
    """
    overrides, notes = _overrides(settings, seed, from_log)
    loaded = load_scenario(scenario, overrides)
    directory = out or Path("out") / (loaded.scenario.name or "run")
    if directory.exists() and not directory.is_dir():
        raise ConfigError("exists and is not a directory", key="--out", value=str(directory))
    result = _simulate(loaded, step_by_step, notes)
    page = _write(result, directory, timeline)
    summary = summarise(result)
    if form == "json":
        click.echo(summary_json(summary), nl=False)
    else:
        console = Console()
        render_summary(summary, result, console)
        console.print(f"Report: {page}", soft_wrap=True, highlight=False)
    if result.manifest["interrupted"]:
        click.echo(f"Interrupted: what had happened by then is in {directory}.", err=True)
        return _INTERRUPTED
    return 0


def _overrides(settings: tuple[str, ...], seed: int | None, log: Path | None) -> tuple[dict[str, Any], list[str]]:
    """What the log says, then what --set says over it, then --seed."""
    overrides: dict[str, Any] = {}
    notes: list[str] = []
    if log is not None:
        facts = read_log(log)
        overrides = facts.to_overrides()
        if overrides.pop("engine.pipeline_parallel_size", 1) != 1:
            raise ConfigError("the server uses pipeline parallelism, which is not simulated", file=log)
        overrides.pop("model", None)  # often a path on the server's disk; the scenario names the model
        notes = [f"from {log.name}: {key} = {value}" for key, value in overrides.items()] + list(facts.notes)
    overrides |= dict(parse_setting(text) for text in settings)
    if seed is not None:
        overrides["seed"] = seed
    return overrides, notes


def _simulate(loaded: LoadedScenario, step_by_step: bool, notes: list[str]) -> RunResult:
    started = time.perf_counter()
    with _progress(loaded.scenario.name) as on_progress:
        result = simulate(loaded, step_by_step=step_by_step, on_progress=on_progress)
    facts = {**result.facts, "notes": [*result.facts["notes"], *notes]}
    moment = {"date": datetime.now(UTC).strftime("%Y%m%d-%H%M%S"), "wall_time_s": time.perf_counter() - started}
    return RunResult(result.requests, result.steps, result.segments, {**result.manifest, "facts": facts, **moment})


def _write(result: RunResult, directory: Path, timeline: bool) -> Path:
    try:
        result.save(directory)
        return write_report(result, directory, timeline=timeline)
    except OSError as error:
        raise ConfigError(f"cannot be written ({error.strerror})", file=directory) from error


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on stderr while a long run lasts; nothing where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("requests"),
        TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name or "simulating", total=None)
        yield lambda ended, total: progress.update(task, completed=ended, total=total)
