"""The front door: refusals, routing, follow-ups, progress and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
from toy import ListWorkload

from scenarios import Run, Scenario, make_cluster, make_parts, play, random_scenario, rows_of
from sim.audit import audit
from sim.engine.cluster import Cluster
from sim.engine.replica import Replica
from sim.engine.router import RoundRobin
from sim.request import Reason, Request, State
from sim.step import NO_LIMIT


def test_refused_requests_never_run() -> None:
    """Too long for the server, or for its whole cache: refused at arrival with the reason, in that order."""
    rows = ((0, 5, 60, 10, 41), (1, 6, 60, 10, 30), (2, 7, 10, 5, 10))
    run = play(Scenario(rows, max_model_len=100, num_blocks=5, block_size=16))
    found = {row["request_id"]: row for row in rows_of(run.requests)}
    assert [Reason(found[i]["reason"]) for i in range(3)] == [Reason.TOO_LONG, Reason.NEVER_FITS, Reason.NONE]
    for i in (0, 1):
        assert (found[i]["state"], found[i]["replica"], found[i]["scheduled_ps"]) == (State.REJECTED, -1, -1)
        assert found[i]["finish_ps"] == found[i]["arrival_ps"]
    assert found[2]["state"] == State.COMPLETED


def test_the_longest_request_that_is_allowed_is_served() -> None:
    """Prompt and output of exactly `max_model_len` are not too long, and exactly all blocks are not too many."""
    run = play(Scenario(((0, 0, 60, 20, 20),), max_model_len=80, num_blocks=5, block_size=16))
    assert run.requests["state"].tolist() == [State.COMPLETED]


def test_refused_requests_take_their_turn_in_round_robin() -> None:
    """The router sees every request, refused ones included."""
    rows = ((0, 0, 5, 1, 1), (1, 1, 500, 1, 1), (2, 2, 5, 1, 1))
    run = play(Scenario(rows, max_model_len=100, replicas=2))
    assert {row["request_id"]: row["replica"] for row in rows_of(run.requests)} == {0: 0, 1: -1, 2: 0}


def test_follow_ups_arrive_when_they_say() -> None:
    """Each end may bring another request, at once or later; it is submitted and counted like the first ones."""
    made: list[Request] = []

    def again(request: Request, now: int) -> Request | None:
        if len(made) == 5:
            return None
        made.append(Request(100 + len(made), now + 1000 * (len(made) % 2), 5, 2))
        return made[-1]

    cluster, workload = make_cluster(Scenario(((0, 0, 5, 2, 2),)))
    workload.follow_up = again
    cluster.run()
    table = cluster.recorder.requests.table()
    assert table["request_id"].tolist() == [0, 100, 101, 102, 103, 104]
    assert table["arrival_ps"].tolist()[1:] == [r.arrival_ps for r in made]
    assert cluster.submitted == cluster.ended == 6


def test_progress_is_told_now_and_then_and_at_the_end() -> None:
    """`on_progress` hears growing counts, the last of them all requests."""
    heard: list[int] = []
    scenario = Scenario(tuple((i, i, 1, 1, 1) for i in range(5000)))
    cluster = Cluster(
        ListWorkload(scenario.requests()), [make_parts(scenario)], RoundRobin(), max_model_len=100,
        on_progress=heard.append,
    )  # fmt: skip
    cluster.run()
    assert heard == sorted(heard)
    assert heard[-1] == 5000
    assert len(heard) > 3


def test_an_empty_workload_ends_at_once() -> None:
    """No requests, no rows."""
    cluster, _ = make_cluster(Scenario(()))
    cluster.run()
    assert len(cluster.recorder.requests.table()) == len(cluster.recorder.steps.table()) == 0


def interrupted(scenario: Scenario, at_request: int, max_run: int) -> Run:
    """A run that is stopped by Ctrl-C while a request arrives."""
    base = RoundRobin()

    def router(request: Request, replicas: Sequence[Replica]) -> Replica:
        if request.id == at_request:
            signal.raise_signal(signal.SIGINT)
        return base(request, replicas)

    cluster, workload = make_cluster(scenario, max_run, router=router)
    cluster.run()
    return Run(cluster, workload.ended)


only_main_thread = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread only"
)


@only_main_thread
@pytest.mark.parametrize("lead", [0, 1])
def test_ctrl_c_closes_every_request(lead: int) -> None:
    """Open requests end as unfinished with the tokens received so far; the books of what has happened balance."""
    stopped = 0
    for seed in range(30):
        scenario = replace(random_scenario(seed, most_requests=40), lead=lead, timeout_ps=None)
        runs = [interrupted(scenario, len(scenario.rows) // 2, max_run) for max_run in (NO_LIMIT, 1)]
        for run in runs:
            assert run.cluster.interrupted
            assert len(run.requests) == run.cluster.submitted == run.cluster.ended
            audit(run.result(), run.cluster.submitted)
            for replica in run.cluster.replicas:
                assert replica.outstanding == 0
        assert runs[0].outcomes() == runs[1].outcomes()
        stopped += runs[0].requests["state"].tolist().count(State.UNFINISHED)
    assert stopped > 100


@only_main_thread
def test_the_handler_of_ctrl_c_is_given_back() -> None:
    """After a run, interrupted or not, Ctrl-C means what it meant before."""
    before = signal.getsignal(signal.SIGINT)
    play(random_scenario(0))
    interrupted(random_scenario(0), 3, NO_LIMIT)
    assert signal.getsignal(signal.SIGINT) is before
