"""What a router owes the engine, for every router of `sim.policies`."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from scenarios import make_cluster, make_parts, play, random_scenario, with_prefixes
from sim.engine.replica import Replica
from sim.engine.router import RoundRobin, least_kv_usage, least_outstanding_requests
from sim.policies import ROUTERS
from sim.request import Request
from sim.step import NO_LIMIT

every_router = pytest.mark.parametrize("name", sorted(ROUTERS))


def idle_replicas(count: int) -> list[Replica]:
    """Replicas that have nothing to do."""
    cluster, _ = make_cluster(replace(random_scenario(0), replicas=count))
    return cluster.replicas


@every_router
def test_the_answer_is_one_of_the_replicas(name: str) -> None:
    """A router picks from what it is shown, and a lone replica gets everything."""
    router, replicas = ROUTERS[name](3), idle_replicas(4)
    for i in range(50):
        assert router(Request(i, i, 1, 1), replicas) in replicas
        assert router(Request(i, i, 1, 1), replicas[2:3]) is replicas[2]


@every_router
def test_the_same_seed_routes_the_same_way(name: str) -> None:
    """Two routers of one seed agree on every request."""
    first, second, replicas = ROUTERS[name](5), ROUTERS[name](5), idle_replicas(3)
    requests = [Request(i, i, 1, 1) for i in range(100)]
    assert [first(r, replicas).index for r in requests] == [second(r, replicas).index for r in requests]


@every_router
def test_looking_at_replicas_changes_nothing(name: str) -> None:
    """A run in which every arrival also asks this router for its opinion is the run without it."""
    for seed in range(15):
        drawn = random_scenario(seed, most_requests=40)
        drawn = with_prefixes(drawn, random.Random(seed)) if seed % 2 else drawn
        scenario = replace(drawn, replicas=3, router="round_robin")
        base, curious = RoundRobin(), ROUTERS[name](0)

        def router(request: Request, replicas: Sequence[Replica]) -> Replica:
            curious(request, replicas)  # noqa: B023 (called only while this scenario runs)
            return base(request, replicas)  # noqa: B023

        assert play(scenario, router=router).outcomes() == play(scenario).outcomes()


def test_round_robin_deals_out_in_turn() -> None:
    """Requests go to replica 0, 1, 2, 0, ... in order of arrival."""
    router, replicas = ROUTERS["round_robin"](0), idle_replicas(3)
    assert [router(Request(i, i, 1, 1), replicas).index for i in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_random_is_keyed_by_the_request() -> None:
    """The draw depends on seed and request, not on the order of arrivals, and is about uniform."""
    replicas = idle_replicas(4)
    requests = [Request(i, i, 1, 1) for i in range(2000)]
    forwards, backwards = ROUTERS["random"](1), ROUTERS["random"](1)
    there = {r.id: forwards(r, replicas).index for r in requests}
    back = {r.id: backwards(r, replicas).index for r in reversed(requests)}
    assert there == back
    assert all(400 < n < 600 for n in Counter(there.values()).values())
    other = ROUTERS["random"](2)
    assert there != {r.id: other(r, replicas).index for r in requests}


def test_fewest_outstanding_requests_wins_and_the_first_of_equals() -> None:
    """The counter decides; ties go to the lowest index."""
    replicas = idle_replicas(3)
    request = Request(0, 0, 1, 1)
    assert least_outstanding_requests(request, replicas) is replicas[0]
    replicas[0].outstanding, replicas[1].outstanding, replicas[2].outstanding = 3, 2, 2
    assert least_outstanding_requests(request, replicas) is replicas[1]


def test_fewest_kv_blocks_wins() -> None:
    """A replica whose cache is emptier is preferred, the first of equals."""
    replicas = idle_replicas(2)
    assert least_kv_usage(Request(0, 0, 1, 1), replicas) is replicas[0]
    cluster, _ = make_cluster(replace(random_scenario(0), replicas=2, num_blocks=100, block_size=4))
    parts = make_parts(replace(random_scenario(0), num_blocks=100, block_size=4))
    full = Replica(cluster.env, 0, parts, cluster.recorder, lambda request, now: None)
    assert parts.kv.reserve(Request(1, 0, 50, 1), 50) is not None
    assert least_kv_usage(Request(2, 0, 1, 1), [full, cluster.replicas[1]]) is cluster.replicas[1]


def test_routers_see_the_same_replicas_in_every_mode() -> None:
    """Blocks in use and requests outstanding, read in the middle of a leap, are those of single-stepping."""
    compared = 0
    for seed in range(40):
        scenario = replace(random_scenario(seed), replicas=2)
        views = []
        for max_run in (NO_LIMIT, 1):
            seen: list[tuple[int, ...]] = []
            base = RoundRobin()

            def router(request: Request, replicas: Sequence[Replica]) -> Replica:
                load = [value for r in replicas for value in (r.used_blocks(), r.outstanding)]
                seen.append((request.id, request.arrival_ps, *load))  # noqa: B023
                return base(request, replicas)  # noqa: B023

            play(scenario, max_run, router=router)
            views.append(seen)
        assert views[0] == views[1]
        compared += sum(any(view[2:]) for view in views[0])
    assert compared > 500
