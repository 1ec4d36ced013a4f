"""Nothing happens before its cause, no replica rests while there is work, and nobody is overtaken."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from scenarios import Run, Scenario, examples, play, random_scenario, rows_of, scenarios
from sim.request import State


@given(scenario=scenarios())
@examples(80)
def test_times_of_a_request_are_in_causal_order(scenario: Scenario) -> None:
    """Arrival, admission, first token, end: each only after the one before, and tokens only at ends of steps."""
    run = play(scenario)
    ends = {i: set(boundaries) for i, boundaries in run.boundaries().items()}
    for row in rows_of(run.requests):
        assert row["finish_ps"] >= row["arrival_ps"]
        if row["scheduled_ps"] >= 0:
            assert row["scheduled_ps"] >= row["arrival_ps"]
        if row["first_token_ps"] >= 0:
            assert row["scheduled_ps"] < row["first_token_ps"] <= row["finish_ps"]
            assert row["first_token_ps"] in ends[row["replica"]]
        if row["state"] == State.COMPLETED:
            assert row["finish_ps"] in ends[row["replica"]]
        if row["state"] == State.ABORTED:
            assert scenario.timeout_ps is not None
            assert row["finish_ps"] >= row["arrival_ps"] + scenario.timeout_ps


def _rests(run: Run, replica: int) -> list[tuple[int, int]]:
    """Spans of time after the first step in which a replica computes nothing."""
    rests, free = [], None
    for row in rows_of(run.steps):
        if row["replica"] != replica:
            continue
        n = row["steps"]
        if free is not None and row["start_ps"] > free:
            rests.append((free, row["start_ps"]))
        assert free is None or row["start_ps"] >= free, "two steps overlap"
        free = row["start_ps"] + n * row["first_step_ps"] + row["slope_ps"] * (n * (n - 1) // 2)
    return rests


@given(scenario=scenarios())
@examples(80)
def test_no_replica_rests_while_there_is_work(scenario: Scenario) -> None:
    """Whenever a replica computes nothing, none of its requests is open."""
    run = play(scenario)
    for replica in range(scenario.replicas):
        mine = [row for row in rows_of(run.requests) if row["replica"] == replica]
        for start, end in _rests(run, replica):
            assert not [row for row in mine if row["arrival_ps"] < end and row["finish_ps"] > start]


def test_the_law_of_work_conservation_is_not_empty() -> None:
    """The random scenarios do contain rests between busy periods."""
    rests = 0
    for seed in range(60):
        run = play(random_scenario(seed))
        rests += sum(len(_rests(run, i)) for i in range(len(run.cluster.replicas)))
    assert rests > 300


@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("scheduler", ["chunked", "continuous"])
def test_first_come_first_served(scheduler: str, lead: int) -> None:
    """On each replica requests are first admitted in order of arrival, preemptions or not: nobody starves."""
    admitted = 0
    for seed in range(40):
        drawn = random_scenario(seed, most_requests=40)
        longest = max(p + most for _, _, p, _, most in drawn.rows)
        budget = max(drawn.max_num_batched_tokens, longest)
        run = play(replace(drawn, scheduler=scheduler, lead=lead, threshold=0, max_num_batched_tokens=budget))
        for replica in range(drawn.replicas):
            rows = [r for r in rows_of(run.requests) if r["replica"] == replica and r["scheduled_ps"] >= 0]
            rows.sort(key=lambda r: (r["arrival_ps"], r["request_id"]))
            starts = [r["scheduled_ps"] for r in rows]
            assert starts == sorted(starts)
            admitted += len(starts)
    assert admitted > 500


def test_every_request_completes_when_nothing_refuses_it() -> None:
    """With patient clients and room for the largest request, everybody is served in the end, however tight it is."""
    preemptions = 0
    for seed in range(60):
        scenario = replace(random_scenario(seed), timeout_ps=None, max_model_len=10**9)
        longest = max(p + most for _, _, p, _, most in scenario.rows)
        tightest = -(-longest // scenario.block_size)
        budget = max(longest, scenario.max_num_batched_tokens)
        run = play(replace(scenario, num_blocks=tightest, max_num_batched_tokens=budget))
        assert set(run.requests["state"].tolist()) == {State.COMPLETED}
        preemptions += int(run.requests["preemptions"].sum())
    assert preemptions > 1000
