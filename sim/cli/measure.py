"""`roofserve measure`: everything that needs this machine's GPU, as files that another machine can fit."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import click

from sim.errors import SimError
from sim.validation.measure.campaign import Campaign
from sim.validation.measure.problems import Problem, calibration_problems, fresh_problems
from sim.validation.measure.record import Measurement, Record

STEPS = ("checks", "kernels", "fresh", "serving")
KERNELS, FRESH = "kernels.jsonl", "fresh.jsonl"
FRESH_EACH = 12
_PROGRESS_EVERY = 100


class NoGpu(SimError):
    """There is nothing to measure on: no GPU, or no torch to use it."""


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the files.")
@click.option("--budget", type=click.FloatRange(min=0), default=540.0, show_default=True, help="Seconds for all steps.")
@click.option("--quick", is_flag=True, help="Fewer sizes: under five minutes of a large GPU.")
@click.option("--steps", default="checks,kernels,fresh,serving", show_default=True, help="Which, in this order.")
@click.option("--resume", type=click.Path(path_type=Path, exists=True, file_okay=False), help="A folder to go on from.")
@click.option("--seed", default=1, show_default=True, help="Of the fresh sizes and of the requests served.")
def measure(out: Path, budget: float, quick: bool, steps: str, resume: Path | None, seed: int) -> None:
    """Check and time kernels and serve with the small engine, for `calibrate` and `validate` to read elsewhere.

    Needs only torch, Triton, numpy and click. A step that fails is reported and does not cost the others; what was
    measured until the budget ran out is kept, and `--resume` goes on from it.
    """
    chosen = [step for step in STEPS if step in steps.split(",")]
    if not chosen:
        raise click.BadParameter(f"choose from {', '.join(STEPS)}", param_hint="--steps")
    need_gpu()
    out.mkdir(parents=True, exist_ok=True)
    for earlier in [resume / name for name in (KERNELS, FRESH)] if resume else []:
        if earlier.exists() and not (out / earlier.name).exists():
            shutil.copy(earlier, out / earlier.name)
    until = time.monotonic() + budget
    failed = []
    for step in chosen:
        try:
            _STEPS[step](out, until, quick, seed)
        except Exception as error:  # the other steps still have their budget
            failed.append(step)
            click.echo(f"{step}: failed: {type(error).__name__}: {error}", err=True)
    if failed:
        raise SimError(f"failed: {', '.join(failed)}; what the other steps measured is in {out}")


def need_gpu() -> None:
    """Raise NoGpu, in one line, where there is no GPU or no torch."""
    try:
        from sim.validation.measure.gpu import no_gpu
    except ImportError as error:
        raise NoGpu(f"needs a GPU, torch and Triton: no {error.name} here (pip install 'roofserve[gpu]')") from error
    if problem := no_gpu():
        raise NoGpu(problem)


def measure_problems(problems: list[Problem], path: Path, budget_s: float) -> list[Measurement]:
    """Measure problems on this machine's GPU into a record, going on with one that is there."""
    from sim.validation.measure.benches import Lab
    from sim.validation.measure.gpu import environment

    with closing(Lab()) as lab:
        campaign = Campaign(lab, Record(path), time.monotonic, on_progress=_progress)
        return campaign.run(problems, environment(), budget_s)


def _progress(done: int, total: int, latest: Measurement) -> None:
    if done % _PROGRESS_EVERY == 0 or done == total:
        click.echo(f"{done} of {total}: {latest.table} {latest.latency_us or latest.error}", err=True)


def check(seed: int) -> list[dict[str, object]]:
    """Every kernel's numerical error on this GPU, as rows."""
    from sim.validation.measure.checks import check_kernels

    return [{**asdict(found), "passed": found.passed} for found in check_kernels("cuda", seed)]


def _checks(out: Path, until: float, quick: bool, seed: int) -> None:
    found = check(seed)
    (out / "checks.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    bad = [f"{one['kernel']} ({one['problem'] or one['error']})" for one in found if not one["passed"]]
    click.echo(
        f"checks: {len(found) - len(bad)} of {len(found)} kernels within bounds" + "".join(f"; {b}" for b in bad)
    )


def _kernels(out: Path, until: float, quick: bool, seed: int) -> None:
    from sim.validation.measure.gpu import gpu_count

    problems = calibration_problems(quick=quick, gpus=gpu_count())
    _report("kernels", measure_problems(problems, out / KERNELS, until - time.monotonic()), len(problems))


def _fresh(out: Path, until: float, quick: bool, seed: int) -> None:
    problems = fresh_problems(seed, FRESH_EACH)
    _report("fresh", measure_problems(problems, out / FRESH, until - time.monotonic()), len(problems))


def _report(step: str, found: list[Measurement], wanted: int) -> None:
    good = sum(one.latency_us is not None for one in found)
    click.echo(f"{step}: {good} measured, {len(found) - good} failed, {wanted - len(found)} left")


def _serving(out: Path, until: float, quick: bool, seed: int) -> None:
    from sim.validation.engine.session import serve_all

    serve_all(out / "serving.json", until - time.monotonic(), seed, quick=quick, report=click.echo)


_STEPS: dict[str, Callable[[Path, float, bool, int], None]] = {
    "checks": _checks,
    "kernels": _kernels,
    "fresh": _fresh,
    "serving": _serving,
}
