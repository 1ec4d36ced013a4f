"""A hash of the result tables of each benchmark case: `python benchmarks/checksums.py > before`, `diff` afterwards.

A change that is meant to make the simulator faster must leave all of them as they are.
"""

from __future__ import annotations

import hashlib

import click
from bench import AZURE, CASES

from sim.build import build
from sim.results import RunResult
from sim.run import run_setup
from sim.scenario import load_scenario


def digest(result: RunResult) -> str:
    """Of the names and bytes of all columns of the requests, the steps and the segments."""
    hashed = hashlib.sha256()
    for table in (result.requests, result.steps, result.segments):
        for name, column in table.columns.items():
            hashed.update(name.encode() + column.tobytes())
    return hashed.hexdigest()[:16]


@click.command(help=__doc__)
@click.option("--only", default="", help="Run the cases whose name contains this.")
def main(only: str) -> None:
    """Print a line per case."""
    for case in CASES:
        if only in case.name and (AZURE.exists() or not case.trace):
            setup = build(load_scenario(case.scenario(), dict(case.settings)))
            click.echo(f"{digest(run_setup(setup, step_by_step=case.step_by_step))}  {case.name}")


if __name__ == "__main__":
    main()
