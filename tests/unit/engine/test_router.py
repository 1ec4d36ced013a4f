"""Routers beyond their common contract: how evenly they spread and what they balance."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from scenarios import Run, Scenario, play


def burst(router: str, replicas: int = 4) -> Run:
    """Long and short requests in turn, faster than one replica can serve."""
    rows = tuple((i, 200 * i, 20, 100 if i % 2 == 0 else 1, 100) for i in range(80))
    return play(Scenario(rows, replicas=replicas, router=router, max_num_seqs=4))


def test_round_robin_is_even_in_requests_but_not_in_work() -> None:
    """With long and short requests in turn, two of four replicas get all the long ones."""
    run = burst("round_robin")
    assert set(Counter(run.requests["replica"].tolist()).values()) == {20}
    long = run.requests.where(run.requests["output_tokens"] == 100)
    assert set(long["replica"].tolist()) == {0, 2}


@pytest.mark.parametrize("router", ["least_outstanding_requests", "least_kv_usage"])
def test_routers_that_look_spread_the_long_requests(router: str) -> None:
    """Counting open requests or used blocks sends long requests to every replica."""
    run = burst(router)
    long = run.requests.where(run.requests["output_tokens"] == 100)
    assert set(long["replica"].tolist()) == {0, 1, 2, 3}


def test_counting_open_requests_shortens_the_wait() -> None:
    """Such traffic ends sooner than when it is dealt out in turn."""
    counted, in_turn = burst("least_outstanding_requests"), burst("round_robin")
    assert int(counted.requests["finish_ps"].max()) < int(in_turn.requests["finish_ps"].max())


@pytest.mark.parametrize("router", ["round_robin", "random", "least_outstanding_requests", "least_kv_usage"])
def test_one_replica_makes_all_routers_equal(router: str) -> None:
    """Without a choice there is no difference."""
    assert burst(router, replicas=1).outcomes() == burst("round_robin", replicas=1).outcomes()


def test_two_replicas_of_half_the_traffic_are_two_servers() -> None:
    """Round robin gives each replica exactly what a lone server would make of every second request."""
    rows = tuple((i, 300 * i, 20 + i % 7, 1 + i % 30, 40) for i in range(60))
    scenario = Scenario(rows, max_num_seqs=4)
    both = play(replace(scenario, replicas=2)).outcomes()
    for half in (0, 1):
        alone = play(replace(scenario, rows=rows[half::2])).outcomes()
        assert {i: (half, *out[3:]) for i, out in alone.items()} == {
            i: out[2:] for i, out in both.items() if i % 2 == half
        }
