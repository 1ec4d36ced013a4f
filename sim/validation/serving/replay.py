"""All cases through the simulator, on several cores."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from joblib import Parallel, delayed
from joblib.externals.loky.backend.resource_tracker import ensure_running

from sim.validation.serving.case import Case
from sim.validation.serving.predict import Predicted, predict

_CHUNK = 8
"""Cases that a worker takes at a time."""

Progress = Callable[[int, int], None]


def replay(
    cases: Sequence[Case],
    *,
    jobs: int | None = None,
    overrides: Callable[[Case], Mapping[str, Any]] | None = None,
    on_progress: Progress | None = None,
    with_shares: bool = False,
) -> list[Predicted]:
    """A prediction for every case, in order, on `jobs` processes (default: all cores).

    `overrides` gives dotted keys to set in a case's scenario. `with_shares` says what latencies consist of.
    `on_progress` hears how many cases are done, of how many.
    """
    chunks = [range(at, min(at + _CHUNK, len(cases))) for at in range(0, len(cases), _CHUNK)]
    chosen = [({} if overrides is None else overrides(case)) for case in cases]
    tasks = (delayed(_predict_all)([(cases[i], chosen[i]) for i in chunk], with_shares) for chunk in chunks)
    found: list[Predicted] = []
    for part in _results(tasks, jobs or os.cpu_count() or 1):
        found += part
        if on_progress is not None:
            on_progress(len(found), len(cases))
    return found


def _results(tasks: Iterator[Any], jobs: int) -> Iterator[list[Predicted]]:
    # Workers inherit that Ctrl-C is not for them: one that is still importing would show a traceback. They end with us.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        ensure_running()  # the first start of loky's resource tracker would let SIGINT through again
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        results: Iterator[list[Predicted]] = Parallel(n_jobs=jobs, return_as="generator")(tasks)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    yield from results


def _predict_all(cases: Sequence[tuple[Case, Mapping[str, Any]]], with_shares: bool) -> list[Predicted]:
    return [predict(case, overrides, with_shares=with_shares) for case, overrides in cases]
