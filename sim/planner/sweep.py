"""A sweep on disk: one file per finished point, so that whatever kills it, nothing finished is lost or done again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.errors import ConfigError, SimError
from sim.metrics import summarise
from sim.planner.executors import Executor, WorkersDied
from sim.planner.sweep_spec import Point, Sweep, digest
from sim.planner.tables import flat, write_table
from sim.results import partial_path, replace_text
from sim.run import simulate
from sim.scenario import load_scenario

TABLE = "sweep.parquet"
_POINTS = "points"

Progress = Callable[[int, int], None]
"""Hears how many points are finished, of how many."""


@dataclass(frozen=True)
class SweepDone:
    """What a sweep came to."""

    table: Path
    rows: list[dict[str, Any]]
    reused: int
    """Points that an earlier, interrupted sweep had finished."""

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Rows of the points that could not run, with their `error`."""
        return [row for row in self.rows if row["status"] != "ok"]


def run_point(point: Point) -> dict[str, Any]:
    """Simulate a point: every scalar of its summary, or the error that it met."""
    try:
        result = simulate(load_scenario(point.scenario, point.overrides))
        if result.manifest["interrupted"]:
            raise KeyboardInterrupt
        return {"status": "ok", "error": None, **flat(summarise(result))}
    except Exception as error:
        kind = "" if isinstance(error, SimError) else f"{type(error).__name__}: "
        return {"status": "failed", "error": f"{kind}{error}"}


def run_sweep(
    sweep: Sweep,
    directory: Path,
    executor: Executor,
    *,
    retry_failed: bool = False,
    on_progress: Progress = lambda done, total: None,
) -> SweepDone:
    """Run what is not finished yet in `directory`, and merge all points into `sweep.parquet` (and .csv), in order.

    A result is written under another name and renamed, one file per point: what is there is whole. Points that failed
    are results too; `retry_failed` runs them again.
    """
    points = directory / _POINTS
    points.mkdir(parents=True, exist_ok=True)
    files = [points / f"{digest(point)}.json" for point in sweep.points]
    finished = {path: row for path in set(files) if (row := _read(path)) is not None}
    if retry_failed:
        finished = {path: row for path, row in finished.items() if row["status"] == "ok"}
    todo = list({path: i for i, path in enumerate(files) if path not in finished}.items())
    reused = len(finished)
    on_progress(reused, reused + len(todo))
    for number, answer in executor.run(run_point, [sweep.points[i] for _, i in todo]):
        row = {"status": "failed", "error": str(answer)} if isinstance(answer, WorkersDied) else answer
        path = todo[number][0]
        replace_text(path, json.dumps(row, sort_keys=False, allow_nan=False) + "\n")
        finished[path] = row
        on_progress(len(finished), reused + len(todo))
    rows = [
        {"point": i, **_shown(point.varied, sweep.keys), **finished[path]}
        for i, (point, path) in enumerate(zip(sweep.points, files, strict=True))
    ]
    write_table(rows, directory / TABLE)
    return SweepDone(directory / TABLE, rows, reused)


def _shown(varied: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    """What distinguishes the point; a key that it leaves alone is null. None clashes with a metric's name."""
    return {f"set.{key}": varied.get(key) for key in keys}


def _read(path: Path) -> dict[str, Any] | None:
    """A finished point's row; None where there is none yet."""
    partial_path(path).unlink(missing_ok=True)
    try:
        row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"cannot be read ({error}); remove it to run the point again", file=path) from error
    return row
