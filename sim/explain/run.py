"""A whole run explained: the one structure that the terminal, the page and JSON show."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sim.explain.changes import CHANGES, Change, Tried, best_of, change_row, ranked, try_change
from sim.explain.limits import limits_of
from sim.explain.load import Case, Served, most_served
from sim.explain.operators import Operators, Roofs, operator_rows, operators_of, phase_rows
from sim.explain.request_time import latency_rows
from sim.metrics import summarise
from sim.report import rows
from sim.results import RunResult
from sim.run import run_setup
from sim.scenario import Scenario

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Explanation:
    """What a run of a scenario was made of, and what would change it."""

    scenario: Scenario
    result: RunResult
    summary: dict[str, Any]
    roofs: Roofs
    operators: Operators
    limits: dict[str, Any]
    latency: list[dict[str, Any]]
    served: Served | None
    tried: Sequence[Tried]
    given_slo: bool

    @property
    def best(self) -> Tried | None:
        """The next best change, if one helps."""
        return best_of(self.tried)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; times in seconds unless the name says otherwise."""
        best = self.best
        return {
            "scenario": self.scenario.name,
            "setting": dict(rows.setting(self.result)),
            "trust": self.summary["trust"],
            "regime": self.summary["regime"],
            "bound": self.limits,
            "roofs": self.roofs.as_dict(),
            "phases": phase_rows(self.operators, self.roofs),
            "operators": operator_rows(self.operators, self.roofs),
            "latency": self.latency,
            "slo": self.summary["slo"],
            "objectives_assumed": not self.given_slo,
            "served_within_objectives": self._served(),
            "changes": [change_row(change) for change in self.tried],
            "next_best_change": None if best is None else change_row(best),
            "notes": rows.notes(self.summary, self.result),
        }

    def _served(self) -> dict[str, Any] | None:
        if self.served is None:
            return None
        return {
            "requests_per_s": self.served.requests_per_s, "output_tokens_per_s": self.served.output_tokens_per_s,
            "times_this_load": self.served.factor, "steady_state": self.served.steady_state,
        }  # fmt: skip


def explain_run(
    case: Case, *, changes: Sequence[Change] = CHANGES, jobs: int | None = None, on_progress: Progress | None = None
) -> Explanation:
    """Simulate a scenario, take it apart, and try `changes` (none: only take it apart).

    Every change is simulated several times, `case.requests` requests each, in `jobs` processes (default: all cores).
    `on_progress` hears how many are done. Raises ConfigError for a scenario that cannot run.
    """
    setup = case.setup
    result = run_setup(case.fresh_setup())
    summary = summarise(result)
    operators = operators_of(setup, result)
    served = most_served(case) if changes else None
    tried = [] if served is None else ranked(_try_all(case, served, changes, jobs, on_progress))
    return Explanation(
        case.loaded.scenario, result, summary, Roofs.of(setup), operators,
        limits_of(setup, result, operators, summary), latency_rows(setup, result), served, tried, case.given_slo,
    )  # fmt: skip


def _try_all(
    case: Case, served: Served, changes: Sequence[Change], jobs: int | None, on_progress: Progress | None
) -> list[Tried]:
    return in_parallel(try_change, [(case, served, change) for change in changes], jobs, on_progress)


def in_parallel(
    function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], jobs: int | None, on_progress: Progress | None
) -> list[Any]:
    """Results of `function` over tasks, in their order; in this process with one job."""
    found = []
    jobs = min(jobs or os.cpu_count() or 1, max(len(tasks), 1))
    if jobs == 1:
        answers = (function(*task) for task in tasks)
    else:
        from joblib import Parallel, delayed  # here: it takes a fifth of a second

        answers = Parallel(n_jobs=jobs, return_as="generator")(delayed(function)(*task) for task in tasks)
    for answer in answers:
        found.append(answer)
        if on_progress is not None:
            on_progress(len(found), len(tasks))
    return found
