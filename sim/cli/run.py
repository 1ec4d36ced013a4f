"""`roofserve run SCENARIO`: simulate, print the result table, write the run's directory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from sim.build import build
from sim.cli.places import output_directory
from sim.cli.progress import progress_bar
from sim.errors import ConfigError, InvariantError
from sim.imports.vllm_log import read_log
from sim.intervals import intervals
from sim.metrics import summarise
from sim.report.summary import render_summary, summary_json
from sim.resolved import RESOLVED_FILE, resolved, resolved_yaml
from sim.results import RunResult, replace_text
from sim.run import simulate
from sim.scenario import LoadedScenario, load_scenario, parse_setting

_INTERRUPTED = 130
_REPRODUCER = "reproducer.yaml"


@click.command()
@click.argument("scenario")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override any key: --set engine.max_num_seqs=64"
)
@click.option("--out", type=click.Path(path_type=Path), help="Directory to write [default: out/NAME]")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of all random draws.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--step-by-step", is_flag=True, help="Execute every step by itself: slower, the same results.")
@click.option("--from-log", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Take KV blocks and resolved flags from a vLLM start-up log.")  # fmt: skip
@click.option("--timeline", is_flag=True, help="Also write timeline.json.gz for ui.perfetto.dev.")
@click.option("--uncertainty", type=click.IntRange(min=2), metavar="N",
              help="Repeat N times with drawn operator times and other seeds, and state 90 % intervals.")  # fmt: skip
@click.option("--no-report", is_flag=True, help="Tables and summary.json only: no figures, no page.")
def run(
    scenario: str, settings: tuple[str, ...], out: Path | None, seed: int | None, form: str, step_by_step: bool,
    from_log: Path | None, timeline: bool, uncertainty: int | None, no_report: bool,
) -> int:  # fmt: skip
    """Simulate SCENARIO, a shipped name or a YAML file, and report latency, throughput and memory.

    \b
    Examples:
      roofserve run quickstart
      roofserve run my.yaml --set workload.arrival.rate=20 --set hardware=h200-sxm --out out/h200
      roofserve run quickstart --from-log vllm-server.log
      roofserve run quickstart --uncertainty 20
    """
    settings_here = dict(parse_setting(text) for text in settings) | ({} if seed is None else {"seed": seed})
    logged, notes = _from_log(from_log, settings_here)
    loaded = load_scenario(scenario, logged | settings_here, dict.fromkeys(logged, str(from_log)))
    directory = output_directory(out, loaded.scenario.name)
    try:
        result = _simulate(loaded, directory, step_by_step, notes)
        if uncertainty is not None and not result.manifest["interrupted"]:
            result.manifest["facts"]["intervals"] = _repeat(loaded, uncertainty)
        summary, written = _write(result, directory, timeline, no_report)
    except OSError as error:  # a full disk, a directory that was taken away
        raise ConfigError(f"cannot be written ({error.strerror or error})", file=directory) from error
    if form == "json":
        click.echo(summary_json(summary), nl=False)
    else:
        console = Console()
        render_summary(summary, result, console)
        console.print(f"{'Summary' if no_report else 'Report'}: {written}", soft_wrap=True, highlight=False)
    if result.manifest["interrupted"]:
        click.echo(f"Interrupted: what had happened by then is in {directory}.", err=True)
        return _INTERRUPTED
    return 0


def _from_log(log: Path | None, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What a server's log says about itself and `settings` do not, as overrides, and a note for each."""
    if log is None:
        return {}, []
    facts = read_log(log)
    overrides = facts.to_overrides()
    overrides.pop("model", None)  # often a path on the server's disk; the scenario names the model
    overrides = {key: value for key, value in overrides.items() if key not in settings}
    return overrides, [f"from {log.name}: {key} = {value}" for key, value in overrides.items()] + list(facts.notes)


def _simulate(loaded: LoadedScenario, directory: Path, step_by_step: bool, notes: list[str]) -> RunResult:
    started = time.perf_counter()
    with progress_bar(loaded.scenario.name) as on_progress, _reproducible(loaded, directory):
        result = simulate(
            loaded, step_by_step=step_by_step, on_progress=on_progress, directory=directory, by_operator=True
        )
    facts = {**result.facts, "notes": [*result.facts["notes"], *notes]}
    moment = {"date": datetime.now(UTC).strftime("%Y%m%d-%H%M%S"), "wall_time_s": time.perf_counter() - started}
    return RunResult(result.requests, result.steps, result.segments, {**result.manifest, "facts": facts, **moment})


@contextmanager
def _reproducible(loaded: LoadedScenario, directory: Path) -> Iterator[None]:
    """A run that breaks a law of the simulator leaves what it takes to see it again: every value, and the seed."""
    try:
        yield
    except InvariantError as error:
        file = directory / _REPRODUCER
        directory.mkdir(parents=True, exist_ok=True)
        replace_text(file, resolved_yaml(resolved(build(loaded)), f"{_REPRODUCER}  # {error}"))
        raise InvariantError(f"{error}; this is a bug of roofserve, and {file} shows it again") from error


def _repeat(loaded: LoadedScenario, repetitions: int) -> dict[str, Any]:
    with progress_bar("repetitions") as on_progress:
        return intervals(loaded, repetitions, on_progress=lambda done: on_progress(done, repetitions))


def _write(result: RunResult, directory: Path, timeline: bool, no_report: bool) -> tuple[Mapping[str, Any], Path]:
    """The run's files; returns the summary, and the path of the page (or of `summary.json`)."""
    result.save(directory)
    replace_text(directory / RESOLVED_FILE, resolved_yaml(result.manifest["scenario"], RESOLVED_FILE))
    if no_report:
        summary = summarise(result)
        replace_text(directory / "summary.json", summary_json(summary))
        return summary, directory / "summary.json"
    from sim.report.evidence import Evidence  # matplotlib: not before there is something to draw
    from sim.report.write import write_report

    evidence = Evidence.of(result)
    return evidence.summary, write_report(evidence, directory, timeline=timeline)
