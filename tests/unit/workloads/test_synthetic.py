"""Synthetic traffic: open loop and closed loop."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.errors import ConfigError
from sim.request import Request
from sim.units import PS_PER_S
from sim.workloads.arrivals import AllAtOnce, ClosedLoop, Gamma, Poisson, Stages
from sim.workloads.closed_loop import ClosedLoopClients
from sim.workloads.lengths import Lognormal, Uniform
from sim.workloads.sizes import SharedPrefix, Sizes
from sim.workloads.synthetic import OpenLoop

SIZES = Sizes(Lognormal(mean=300, std=200, max=4000), Uniform(min=1, max=90))


def facts(request: Request) -> tuple[int, int, int, int]:
    """What identifies a request's part in the traffic."""
    return request.id, request.arrival_ps, request.prompt_tokens, request._output_tokens


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 300), st.integers(1, 300), st.floats(0.05, 20))
def test_a_longer_run_begins_like_a_shorter_one(seed: int, short: int, more: int, burstiness: float) -> None:
    """The first n requests are the same whatever num_requests is, and the same again for the same seed."""
    arrivals = Gamma(rate=7.0, burstiness=burstiness)
    some = [facts(r) for r in OpenLoop(arrivals, SIZES, seed=seed, num_requests=short)]
    many = [facts(r) for r in OpenLoop(arrivals, SIZES, seed=seed, num_requests=short + more)]
    assert len(many) == short + more
    assert many[:short] == some
    assert [number for number, *_ in many] == list(range(short + more))


def test_the_prefix_property_holds_across_chunks() -> None:
    """Also beyond one chunk of draws the requests do not depend on how many there are."""
    long = list(map(facts, OpenLoop(Poisson(rate=9.0), SIZES, num_requests=40_000)))
    assert list(map(facts, OpenLoop(Poisson(rate=9.0), SIZES, num_requests=17_000))) == long[:17_000]


def test_iterating_again_starts_again() -> None:
    """One object gives the same traffic every time it is iterated."""
    traffic = OpenLoop(Poisson(rate=9.0), SIZES, num_requests=10)
    assert list(map(facts, traffic)) == list(map(facts, traffic))


def test_lengths_do_not_move_when_arrivals_change() -> None:
    """Each fact has its own stream: another arrival process leaves the lengths as they are."""
    one = [facts(r)[2:] for r in OpenLoop(Poisson(rate=9.0), SIZES, num_requests=50)]
    assert [facts(r)[2:] for r in OpenLoop(AllAtOnce(), SIZES, num_requests=50)] == one


def test_duration_ends_open_loop_traffic() -> None:
    """No request arrives at or after duration_s, and the total is not known beforehand."""
    traffic = OpenLoop(Poisson(rate=100.0), SIZES, duration_s=5.0)
    times = [r.arrival_ps for r in traffic]
    assert len(times) == pytest.approx(500, rel=0.2)
    assert times[-1] < 5 * PS_PER_S
    assert traffic.num_requests is None


def test_whichever_limit_comes_first_ends_the_traffic() -> None:
    """Of num_requests and duration_s the earlier one counts."""
    assert len(list(OpenLoop(Poisson(rate=100.0), SIZES, num_requests=10, duration_s=5.0))) == 10
    assert len(list(OpenLoop(Poisson(rate=1.0), SIZES, num_requests=10**6, duration_s=5.0))) < 20


@pytest.mark.parametrize("arrivals", [Poisson(rate=1.0), AllAtOnce()])
def test_endless_traffic_is_refused(arrivals: Poisson | AllAtOnce) -> None:
    """Somebody must say when the traffic ends; everything at once never reaches a duration."""
    with pytest.raises(ConfigError, match="num_requests"):
        OpenLoop(arrivals, SIZES, duration_s=None if arrivals.mean_rate else 5.0)


def test_stages_end_by_themselves() -> None:
    """Stages need neither a number of requests nor a duration."""
    stages = Stages.model_validate({"stages": [{"rate": 10, "duration_s": 1, "kind": "constant"}]})
    assert len(list(OpenLoop(stages, SIZES))) == 10


def test_max_output_tokens_cuts_answers() -> None:
    """Clients ask for max_output_tokens, and get no more."""
    sizes = Sizes(10, Uniform(min=1, max=90), max_output_tokens=30)
    requests = list(OpenLoop(AllAtOnce(), sizes, num_requests=200))
    assert {r.max_output_tokens for r in requests} == {30}
    assert max(r._output_tokens for r in requests) == 30
    assert min(r._output_tokens for r in requests) < 30


def test_without_it_clients_ask_for_what_they_get() -> None:
    """By default max_output_tokens is the true length."""
    assert all(r.max_output_tokens == r._output_tokens for r in OpenLoop(AllAtOnce(), SIZES, num_requests=20))


def test_shared_prefixes_identify_groups() -> None:
    """Requests of one group share the hashes of the whole blocks of their prefix, and groups share none."""
    sizes = Sizes(100, 5, shared_prefix=SharedPrefix(tokens=70, groups=3))
    requests = list(OpenLoop(AllAtOnce(), sizes, num_requests=100))
    kinds = {r.traits.prefix_hashes for r in requests}
    assert len(kinds) == 3
    assert {len(k) for k in kinds} == {70 // 16}
    assert len(set().union(*kinds)) == 3 * (70 // 16)
    assert {r.prompt_tokens for r in requests} == {170}


def serve(clients: ClosedLoopClients, durations: list[int]) -> tuple[list[Request], int]:
    """A toy server with room for everyone; returns what was sent and the most that was in flight."""
    sent, flying, most = list(clients), [], 0
    for request in sent:
        heapq.heappush(flying, (durations[request.id % len(durations)], request.id, request))
    while flying:
        most = max(most, len(flying))
        now, _, request = heapq.heappop(flying)
        for follower in clients.on_finish(request, now):
            assert follower.arrival_ps >= now
            sent.append(follower)
            length = durations[follower.id % len(durations)]
            heapq.heappush(flying, (follower.arrival_ps + length, follower.id, follower))
    return sent, most


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 60), st.lists(st.integers(1, 10**12), min_size=1), st.floats(0, 2))
def test_closed_loop_keeps_its_concurrency(clients: int, number: int, durations: list[int], think_s: float) -> None:
    """Never more than `concurrency` requests are in flight, all are sent, and lengths belong to the request number."""
    loop = ClosedLoopClients(ClosedLoop(concurrency=clients, think_time_s=think_s), SIZES, num_requests=number)
    sent, most = serve(loop, durations)
    assert most <= clients
    assert [r.id for r in sent] == list(range(number))
    reference = list(OpenLoop(AllAtOnce(), SIZES, num_requests=number))
    assert [facts(r)[2:] for r in sent] == [facts(r)[2:] for r in reference]


def test_a_client_thinks_before_it_sends() -> None:
    """The next request arrives think_time_s after the previous one ended."""
    loop = ClosedLoopClients(ClosedLoop(concurrency=1, think_time_s=2.5), SIZES, num_requests=2)
    (first,) = loop
    (second,) = loop.on_finish(first, 10 * PS_PER_S)
    assert second.arrival_ps == 12.5 * PS_PER_S
    assert list(loop.on_finish(second, 20 * PS_PER_S)) == []


def test_duration_ends_a_closed_loop() -> None:
    """Nothing is sent at or after duration_s."""
    loop = ClosedLoopClients(ClosedLoop(concurrency=1), SIZES, duration_s=10.0)
    (first,) = loop
    assert loop.on_finish(first, 10 * PS_PER_S - 1)
    assert not loop.on_finish(first, 10 * PS_PER_S)


def test_a_closed_loop_can_run_again() -> None:
    """Iterating starts a new run with the same requests."""
    loop = ClosedLoopClients(ClosedLoop(concurrency=3), SIZES, num_requests=20)
    assert [facts(r) for r in serve(loop, [5])[0]] == [facts(r) for r in serve(loop, [5])[0]]
