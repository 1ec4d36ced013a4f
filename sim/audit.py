"""Conservation laws, checked on the tables of every run before anybody sees a number."""

from __future__ import annotations

import numpy as np

from sim.errors import InvariantError
from sim.request import State
from sim.results import RunResult, Table


def audit(result: RunResult, submitted: int) -> None:
    """Raise InvariantError unless the books balance.

    Every request that was submitted ended exactly once; times are in causal order; a replica does one thing at a
    time; every token a client received was emitted by a step; completed requests are whole.
    """
    requests, steps, segments = result.requests, result.steps, result.segments
    _demand(len(requests) == submitted, f"{submitted} requests were submitted but {len(requests)} ended")
    ids = requests["request_id"]
    _demand(len(np.unique(ids)) == len(ids), "a request ended twice")
    first, finish = requests["first_token_ps"], requests["finish_ps"]
    scheduled, arrival = requests["scheduled_ps"], requests["arrival_ps"]
    ran, spoke = scheduled >= 0, first >= 0
    _demand(bool(np.all(finish >= arrival)), "a request ended before it arrived")
    _demand(bool(np.all(scheduled[ran] >= arrival[ran])), "a request was scheduled before it arrived")
    _demand(bool(np.all(first[spoke] > scheduled[spoke])), "a token came out before its step had begun")
    _demand(bool(np.all(finish[spoke] >= first[spoke])), "a request ended before its first token")
    completed = requests["state"] == State.COMPLETED
    _demand(bool(np.all(spoke[completed])), "a request completed without a token")
    _demand(bool(np.all(spoke == (requests["output_tokens"] > 0))), "tokens and their times do not agree")
    emitted = int((segments["last_step"] - segments["first_step"] + 1).sum())
    _demand(int(requests["output_tokens"].sum()) == emitted, "clients received other tokens than steps emitted")
    for replica in np.unique(steps["replica"]):
        _audit_replica(steps.where(steps["replica"] == replica))


def _audit_replica(steps: Table) -> None:
    n, start = steps["steps"].astype(np.int64), steps["start_ps"]
    length = n * steps["first_step_ps"] + steps["slope_ps"] * (n * (n - 1) // 2)
    _demand(bool(np.all(n > 0) and np.all(steps["first_step_ps"] > 0)), "a step took no time")
    _demand(bool(np.all(start[1:] >= (start + length)[:-1])), "two steps of one replica overlap")
    _demand(bool(np.all(steps["kv_blocks"] >= 0)), "fewer than no KV blocks were in use")


def _demand(holds: bool, problem: str) -> None:
    if not holds:
        raise InvariantError(f"the run's books do not balance: {problem}")
