"""`roofserve validate serving`: simulated against measured serving runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sim.errors import GateFailed
from sim.validation.serving.case import Case
from sim.validation.serving.predict import Predicted
from sim.validation.serving.read import read_cases
from sim.validation.serving.replay import replay
from sim.validation.serving.score import GROUPS, Line, Scored, comparable, coverage, doubted, failed, score, summarise

_FILE = click.Path(path_type=Path, dir_okay=False)
_MOST_IDS = 4
_HEADLINES = (
    "ttft_mean", "ttft", "tpot_mean", "tpot", "itl_mean", "e2e_mean", "e2e_derived", "e2e_p99", "out_tok_s",
    "out_tok_s_gpu_derived", "total_tok_s",
)  # fmt: skip

Pairs = Sequence[tuple[Case, Predicted]]


@click.command("serving")
@click.option(
    "--runs", "first", multiple=True, type=click.Path(path_type=Path, exists=True),
    help="A table of measured serving runs, or a folder of them; more may follow.",
)  # fmt: skip
@click.argument("more", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--gpu", "on_gpu", is_flag=True, help="Serve with the small engine on this machine's GPU instead.")
@click.option("--engine-runs", type=_FILE, help="Runs of the small engine; with --gpu, where to write them.")
@click.option("--hardware", help="Profile for runs of the small engine; the driver's name of the GPU says which.")
@click.option("--quick", is_flag=True, help="With --gpu: fewer rates and repeats.")
@click.option("--budget", type=click.FloatRange(min=0), default=1200.0, show_default=True, help="With --gpu: seconds.")
@click.option("--seed", default=1, show_default=True, help="With --gpu: of the requests.")
@click.option("--max-error", is_flag=True, help="With runs of the small engine: exit with 3 outside their bounds.")
@click.option("--json", "json_path", type=_FILE, help="Write every metric and the summary as JSON.")
@click.option("--plot", "plot_path", type=_FILE, help="Write a figure of predicted against measured values.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes; default: all cores.")
@click.option(
    "--max-median-ape", type=click.FloatRange(min=0), metavar="PCT",
    help="Exit with 3 when the median error of a headline metric of a table is above this.",
)  # fmt: skip
def serving(
    first: tuple[Path, ...],
    more: tuple[Path, ...],
    json_path: Path | None,
    plot_path: Path | None,
    jobs: int | None,
    max_median_ape: float | None,
    **small_engine: Any,
) -> None:
    """Simulate measured serving runs and report the errors by table, GPU, model class, engine and regime.

    Reads serving_runs.json (or .csv), bench_serve_runs.csv, closed_loop_runs.csv, offline_throughput.csv,
    online_qps_runs.csv and quantisation_bench.csv, told apart by their columns. Models that the catalogue lacks are
    taken from a models.json beside the table. Rows that cannot be predicted are listed with the reason.

    With --gpu, a small real engine serves Poisson traffic on this machine's GPU in real time, and the same requests go
    through the simulator, with host costs fitted at one rate of one model.
    """
    if small_engine["on_gpu"] or small_engine["engine_runs"]:
        _small_engine(json_path, **small_engine)
        return
    if not first:
        raise click.UsageError("needs --runs, --gpu or --engine-runs")
    cases = read_cases([*first, *more])
    pairs = list(zip(cases, _replay(cases, jobs), strict=True))
    scored = score(pairs)
    steady = [line for line in scored if comparable(line)]
    lines = [line for by in ("all", *GROUPS) for line in summarise(steady, by)]
    _show(lines, pairs)
    if json_path is not None:
        json_path.write_text(json.dumps(_as_json(scored, lines, pairs), indent=1) + "\n", encoding="utf-8")
    if plot_path is not None:
        from sim.validation.serving.figures import save_figure  # matplotlib is slow to import

        save_figure(scored, plot_path)
    _check(lines, max_median_ape)


def _small_engine(
    json_path: Path | None, *, on_gpu: bool, engine_runs: Path | None, hardware: str | None, quick: bool,
    budget: float, seed: int, max_error: bool,
) -> None:  # fmt: skip
    from sim.cli.validate_engine import serve_here, validate_engine

    path = engine_runs or Path("out") / "small-engine.json"
    if on_gpu:
        serve_here(path, quick, budget, seed)
    validate_engine(path, hardware, json_path, max_error)


def _replay(cases: Sequence[Case], jobs: int | None) -> list[Predicted]:
    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("runs", total=len(cases))
        return replay(cases, jobs=jobs, on_progress=lambda done, _: bar.update(task, completed=done))


def _show(lines: Sequence[Line], pairs: Pairs) -> None:
    console = Console(width=None if Console().is_terminal else 140, highlight=False)
    for by in ("all", *GROUPS):
        chosen = [line for line in lines if line.group == by and line.metric in _HEADLINES]
        console.print(_table(chosen, by))
    for table, (done, total) in coverage(pairs).items():
        console.print(f"{table}: {done} of {total} runs predicted ({100 * done / max(total, 1):.1f} %).", markup=False)
    lists = {
        "not predicted": failed(pairs, suspect=False),
        "left out": failed(pairs, suspect=True),
        "predicted, but not in these tables": doubted(pairs),
    }
    for title, found in lists.items():
        for table, reasons in found.items():
            for reason, ids in reasons.items():
                shown = ", ".join(ids[:_MOST_IDS]) + (
                    f" and {len(ids) - _MOST_IDS} more" if len(ids) > _MOST_IDS else ""
                )
                console.print(f"  {title}: {table}: {reason}: {shown}", markup=False, soft_wrap=True)
    _show_regimes(console, pairs)


def _show_regimes(console: Console, pairs: Pairs) -> None:
    known = [(c, p) for c, p in pairs if c.overloaded is not None and p.overloaded is not None]
    wrong = [(c, p) for c, p in known if c.overloaded != p.overloaded]
    if known:
        console.print(f"Regime (keeps up or not) right for {len(known) - len(wrong)} of {len(known)} open-loop runs.")
    for case, predicted in wrong:
        words = ["overloaded" if state else "stable" for state in (case.overloaded, predicted.overloaded)]
        console.print(f"  wrong: {case.id}: measured {words[0]}, predicted {words[1]}", markup=False)


def _table(lines: Sequence[Line], by: str) -> Table:
    title = "Predicted against measured, errors in per cent" + ("" if by == "all" else f", by {by}")
    table = Table(title=title)
    for name in ("table", *(() if by == "all" else (by,)), "metric"):
        table.add_column(name)
    for name in ("n", "median APE", "mean APE", "p90 APE", "bias"):
        table.add_column(name, justify="right")
    order = {metric: i for i, metric in enumerate(_HEADLINES)}
    for line in sorted(lines, key=lambda one: (one.table, one.name, order[one.metric])):
        names = (line.table, *(() if by == "all" else (line.name,)), line.metric)
        table.add_row(
            *names, str(line.n), *(f"{v:.1f}" for v in (line.median, line.mean, line.p90)), f"{line.bias:+.1f}"
        )
    return table


def _as_json(scored: Sequence[Scored], lines: Sequence[Line], pairs: Pairs) -> dict[str, object]:
    return {
        "runs": [line.as_json() for line in scored],
        "summary": [line.as_json() for line in lines],
        "not_predicted": [
            {"id": case.id, "table": case.table, "reason": predicted.problem, "suspect": case.suspect}
            for case, predicted in pairs
            if predicted.problem
        ],
        "approximations": [
            {"id": case.id, "table": case.table, "what": remark}
            for case, predicted in pairs
            for remark in case.remarks
            if not predicted.problem
        ],
    }


def _check(lines: Sequence[Line], bound: float | None) -> None:
    if bound is None:
        return
    whole = [line for line in lines if line.group == "all" and line.metric in _HEADLINES]
    over = [line for line in whole if line.median > bound]
    if over:
        worst = max(over, key=lambda line: line.median)
        raise GateFailed(
            f"{len(over)} of {len(whole)} median errors exceed {bound:g} %; worst {worst.table} {worst.metric} at "
            f"{worst.median:.1f} %"
        )
