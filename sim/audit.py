"""Conservation laws, checked on the books of every run before anybody sees a number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from sim.errors import InvariantError
from sim.request import State
from sim.results import Column, RunResult, Table
from sim.units import to_s

_REQUEST_COLUMNS = (
    "request_id", "arrival_ps", "scheduled_ps", "first_token_ps", "finish_ps", "state", "output_tokens",
)  # fmt: skip
_STEP_COLUMNS = ("replica", "start_ps", "steps", "first_step_ps", "slope_ps", "kv_blocks")


class Ended(Protocol):
    """A replica after its last request."""

    index: int
    outstanding: int

    def used_blocks(self) -> int:
        """KV blocks that somebody still holds."""
        ...


def audit(result: RunResult, submitted: int, replicas: Iterable[Ended] = ()) -> None:
    """Raise InvariantError, saying which law was broken where and when, unless the books balance.

    Every request that was submitted ended exactly once; times are in causal order; a replica does one thing at a
    time; every token a client received was emitted by a step; completed requests are whole; what was swapped out came
    back or was dropped; no replica holds requests or blocks when all has ended.
    """
    requests = result.requests
    _demand(len(requests) == submitted, f"{submitted} requests were submitted but {len(requests)} ended")
    ids = np.sort(requests["request_id"])
    twice = ids[1:] == ids[:-1]
    _demand(not twice.any(), f"request {ids[1:][twice][0] if twice.any() else ''} ended twice")
    received = sum(_audit_requests(batch) for batch in requests.batches(_REQUEST_COLUMNS))
    emitted = _audit_segments(result.segments, 1 + result.facts.get("guesses_per_step", 0))
    _demand(received == emitted, f"clients received {received} tokens but steps emitted {emitted}")
    _audit_steps(result.steps)
    swap = result.facts.get("swap")
    if swap:
        ways = swap["swapped_in_bytes"] + swap["dropped_bytes"] + swap["held_bytes"]
        _demand(swap["swapped_out_bytes"] == ways, "bytes that were swapped out are nowhere")
    for replica in replicas:
        _demand(replica.outstanding == 0, f"replica {replica.index} holds {replica.outstanding} requests after the end")
        blocks = replica.used_blocks()
        _demand(blocks == 0, f"replica {replica.index} holds {blocks} KV blocks after the end")


def _audit_requests(requests: Table) -> int:
    """Checks rows of the request table and returns how many tokens their clients received."""
    first, finish = requests["first_token_ps"], requests["finish_ps"]
    scheduled, arrival = requests["scheduled_ps"], requests["arrival_ps"]
    ran, spoke = scheduled >= 0, first >= 0
    completed = requests["state"] == State.COMPLETED
    for law, holds in (
        ("ended before it arrived", finish >= arrival),
        ("was scheduled before it arrived", ~ran | (scheduled >= arrival)),
        ("got a token before the step of it had begun", ~spoke | (first > scheduled)),
        ("ended before its first token", ~spoke | (finish >= first)),
        ("completed without a token", ~completed | spoke),
        ("has tokens without a time, or a time without tokens", spoke == (requests["output_tokens"] > 0)),
    ):
        _every(holds, "request", requests["request_id"], law, finish)
    return int(requests["output_tokens"].sum())


def _audit_segments(segments: Table, most: int) -> int:
    """Checks rows of the segment table and returns how many tokens they emitted; a step emits up to `most`."""
    emitted = 0
    for batch in segments.batches(["first_step", "last_step", "tokens"]):
        steps, tokens = batch["last_step"] - batch["first_step"], batch["tokens"]
        few, many = tokens < steps + 1, tokens > steps * most + 1
        _demand(not np.any(few | many), "a stretch of decoding has more or fewer tokens than its steps computed")
        emitted += int(tokens.sum())
    return emitted


def _audit_steps(steps: Table) -> None:
    ended: dict[int, int] = {}
    for batch in steps.batches(_STEP_COLUMNS):
        n, first, start = batch["steps"].astype(np.int64), batch["first_step_ps"], batch["start_ps"]
        replicas = batch["replica"]
        _every((n > 0) & (first > 0), "replica", replicas, "has a step that takes no time", start)
        _every(batch["kv_blocks"] >= 0, "replica", replicas, "uses fewer than no KV blocks", start)
        end = start + n * first + batch["slope_ps"] * (n * (n - 1) // 2)
        for replica in np.flatnonzero(np.bincount(replicas)).tolist():
            own = replicas == replica
            starts, ends = start[own], end[own]
            before = np.append(ended.get(replica, starts[0]), ends[:-1])
            _every(starts >= before, "replica", replicas[own], "runs two steps at once", starts)
            ended[replica] = ends[-1]


def _every(holds: Column, what: str, numbers: Column, law: str, when_ps: Column) -> None:
    if not holds.all():
        row = int(np.argmin(holds))
        _demand(False, f"{what} {numbers[row]} {law} (at {to_s(int(when_ps[row])):.6f} s)")


def _demand(holds: bool, problem: str) -> None:
    if not holds:
        raise InvariantError(f"the run's books do not balance: {problem}")
