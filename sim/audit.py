"""Conservation laws, checked on the tables of every run before anybody sees a number."""

from __future__ import annotations

import numpy as np

from sim.errors import InvariantError
from sim.request import State
from sim.results import RunResult, Table

_REQUEST_COLUMNS = (
    "arrival_ps", "scheduled_ps", "first_token_ps", "finish_ps", "state", "output_tokens",
)  # fmt: skip
_STEP_COLUMNS = ("replica", "start_ps", "steps", "first_step_ps", "slope_ps", "kv_blocks")


def audit(result: RunResult, submitted: int) -> None:
    """Raise InvariantError unless the books balance.

    Every request that was submitted ended exactly once; times are in causal order; a replica does one thing at a
    time; every token a client received was emitted by a step; completed requests are whole; what was swapped out came
    back or was dropped.
    """
    requests = result.requests
    _demand(len(requests) == submitted, f"{submitted} requests were submitted but {len(requests)} ended")
    ids = np.sort(requests["request_id"])
    _demand(not np.any(ids[1:] == ids[:-1]), "a request ended twice")
    received = sum(_audit_requests(batch) for batch in requests.batches(_REQUEST_COLUMNS))
    emitted = _audit_segments(result.segments, 1 + result.facts.get("guesses_per_step", 0))
    _demand(received == emitted, "clients received other tokens than steps emitted")
    _audit_steps(result.steps)
    swap = result.facts.get("swap")
    if swap:
        ways = swap["swapped_in_bytes"] + swap["dropped_bytes"] + swap["held_bytes"]
        _demand(swap["swapped_out_bytes"] == ways, "bytes that were swapped out are nowhere")


def _audit_requests(requests: Table) -> int:
    """Checks rows of the request table and returns how many tokens their clients received."""
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
    return int(requests["output_tokens"].sum())


def _audit_segments(segments: Table, most: int) -> int:
    """Checks rows of the segment table and returns how many tokens they emitted; a step emits up to `most`."""
    emitted = 0
    for batch in segments.batches(["first_step", "last_step", "tokens"]):
        steps, tokens = batch["last_step"] - batch["first_step"], batch["tokens"]
        few, many = tokens < steps + 1, tokens > steps * most + 1
        _demand(not np.any(few | many), "steps emitted other tokens than they computed")
        emitted += int(tokens.sum())
    return emitted


def _audit_steps(steps: Table) -> None:
    ended: dict[int, int] = {}
    for batch in steps.batches(_STEP_COLUMNS):
        n, first = batch["steps"].astype(np.int64), batch["first_step_ps"]
        _demand(bool(np.all(n > 0) and np.all(first > 0)), "a step took no time")
        _demand(bool(np.all(batch["kv_blocks"] >= 0)), "fewer than no KV blocks were in use")
        end = batch["start_ps"] + n * first + batch["slope_ps"] * (n * (n - 1) // 2)
        for replica in np.flatnonzero(np.bincount(batch["replica"])).tolist():
            own = batch["replica"] == replica
            starts, ends = batch["start_ps"][own], end[own]
            before = np.append(ended.get(replica, starts[0]), ends[:-1])
            _demand(bool(np.all(starts >= before)), "two steps of one replica overlap")
            ended[replica] = ends[-1]


def _demand(holds: bool, problem: str) -> None:
    if not holds:
        raise InvariantError(f"the run's books do not balance: {problem}")
