"""The audit finds every kind of cooked books."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from scenarios import play, random_scenario
from sim.audit import audit
from sim.errors import InvariantError
from sim.request import State
from sim.results import RunResult, Table


def run() -> RunResult:
    """A run with completed, aborted and refused requests; its tables may be written to."""
    scenario = replace(random_scenario(55, most_requests=40), replicas=1, lead=0)
    result = play(scenario).result()
    states = set(result.requests["state"].tolist())
    assert {State.COMPLETED, State.ABORTED, State.REJECTED} <= states
    writable = [Table({n: t[n].copy() for n in t.columns}) for t in (result.requests, result.steps, result.segments)]
    return RunResult(*writable)


def test_an_honest_run_passes() -> None:
    """Nothing is wrong with any of the random runs."""
    for seed in range(30):
        played = play(random_scenario(seed))
        audit(played.result(), played.cluster.submitted)


def completed(result: RunResult) -> int:
    """The row of a completed request with several tokens."""
    found = (result.requests["state"] == State.COMPLETED) & (result.requests["output_tokens"] > 1)
    return int(np.flatnonzero(found)[0])


def _twice(result: RunResult) -> None:
    result.requests["request_id"][1] = result.requests["request_id"][0]


def _before_arrival(result: RunResult) -> None:
    result.requests["arrival_ps"][0] = result.requests["finish_ps"][0] + 1


def _early_schedule(result: RunResult) -> None:
    row = completed(result)
    result.requests["arrival_ps"][row] = result.requests["scheduled_ps"][row] + 1


def _token_too_early(result: RunResult) -> None:
    row = completed(result)
    result.requests["first_token_ps"][row] = result.requests["scheduled_ps"][row]


def _end_too_early(result: RunResult) -> None:
    row = completed(result)
    result.requests["finish_ps"][row] = result.requests["first_token_ps"][row] - 1


def _silent(result: RunResult) -> None:
    result.requests["first_token_ps"][completed(result)] = -1


def _tokenless(result: RunResult) -> None:
    result.requests["output_tokens"][completed(result)] = 0


def _extra_token(result: RunResult) -> None:
    result.requests["output_tokens"][completed(result)] += 1


def _lost_segment_token(result: RunResult) -> None:
    result.segments["last_step"][0] -= 1
    result.segments["tokens"][0] -= 1


def _lazy_steps(result: RunResult) -> None:
    several = result.segments["last_step"] > result.segments["first_step"]
    result.segments["tokens"][np.flatnonzero(several)[0]] -= 1


def _guessed_segment_token(result: RunResult) -> None:
    result.segments["tokens"][0] += 1


def _overlap(result: RunResult) -> None:
    result.steps["start_ps"][1] -= 1


def _no_time(result: RunResult) -> None:
    result.steps["first_step_ps"][0] = 0


def _negative_blocks(result: RunResult) -> None:
    result.steps["kv_blocks"][0] = -1


COOKED: list[tuple[Callable[[RunResult], None], str]] = [
    (_twice, "ended twice"),
    (_before_arrival, "ended before it arrived"),
    (_early_schedule, "scheduled before it arrived"),
    (_token_too_early, r"request \d+ got a token before the step of it had begun \(at \d"),
    (_end_too_early, "before its first token"),
    (_silent, r"request \d+ completed without a token"),
    (_tokenless, "has tokens without a time, or a time without tokens"),
    (_extra_token, r"received \d+ tokens but steps emitted \d+"),
    (_guessed_segment_token, "more or fewer tokens than its steps computed"),
    (_lazy_steps, "more or fewer tokens than its steps computed"),
    (_lost_segment_token, r"received \d+ tokens but steps emitted \d+"),
    (_overlap, r"replica \d+ runs two steps at once"),
    (_no_time, "has a step that takes no time"),
    (_negative_blocks, "fewer than no KV blocks"),
]


@pytest.mark.parametrize(("cook", "problem"), COOKED, ids=[cook.__name__.strip("_") for cook, _ in COOKED])
def test_cooked_books_are_found(cook: Callable[[RunResult], None], problem: str) -> None:
    """Each change to the tables of an honest run raises, and the message says which law is broken."""
    result = run()
    cook(result)
    with pytest.raises(InvariantError, match=problem):
        audit(result, len(result.requests))


def test_lost_requests_are_found() -> None:
    """A request that was submitted and never ended is missed."""
    result = run()
    with pytest.raises(InvariantError, match="submitted but"):
        audit(result, len(result.requests) + 1)


@pytest.mark.parametrize(("dropped", "held"), [(10, 0), (0, 10)])
def test_lost_bytes_are_found(dropped: int, held: int) -> None:
    """What was swapped out came back, was dropped, or is held elsewhere; a byte less is missed."""
    result = run()
    swap = {"swapped_out_bytes": 30, "swapped_in_bytes": 20, "dropped_bytes": dropped, "held_bytes": held}
    audit(replace(result, manifest={"facts": {"swap": swap}}), len(result.requests))
    swap["swapped_in_bytes"] -= 1
    with pytest.raises(InvariantError, match="swapped out are nowhere"):
        audit(replace(result, manifest={"facts": {"swap": swap}}), len(result.requests))


@dataclass
class Left:
    """A replica after the end of a run."""

    index: int = 3
    outstanding: int = 0
    blocks: int = 0

    def used_blocks(self) -> int:
        """KV blocks that somebody still holds."""
        return self.blocks


def test_what_is_left_over_is_found() -> None:
    """A replica that still has a request, or blocks, when everything has ended is named."""
    result = run()
    audit(result, len(result.requests), [Left()])
    with pytest.raises(InvariantError, match="replica 3 holds 1 requests after the end"):
        audit(result, len(result.requests), [Left(outstanding=1)])
    with pytest.raises(InvariantError, match="replica 3 holds 5 KV blocks after the end"):
        audit(result, len(result.requests), [Left(blocks=5)])
