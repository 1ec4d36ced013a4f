"""Virtual token counters, by hand and against counters that are kept token by token."""

from __future__ import annotations

import random

from hand import Server, request
from hypothesis import given
from hypothesis import strategies as st

from scenarios import examples
from sim.request import Request, State
from sim.schedulers.chunked import ChunkedScheduler
from sim.schedulers.fair_share import FairShareQueue


def test_the_tenant_that_has_had_least_is_next() -> None:
    """Prompts count once, output tokens twice; ties go to whoever waits longer."""
    server = Server(ChunkedScheduler, seqs=1, queue=FairShareQueue())
    first = request(0, 10, tenant="a")
    second, other = request(1, 10, tenant="a"), request(2, 30, arrival_ps=1, tenant="b")
    server.submit(first, second, other)
    assert server.step() == ({0: 10}, 0, [])  # a: 10
    assert server.waiting() == [2, 1]
    server.steps(3)
    server.end(first)  # 4 tokens: a 18
    assert server.step() == ({2: 30}, 0, [])  # b: 30
    third = request(3, 1, tenant="b")
    server.submit(third)
    server.end(other)  # b: 32
    assert server.step() == ({1: 10}, 0, [])
    assert server.waiting() == [3]


def test_absence_earns_no_credit() -> None:
    """A tenant of whom nobody waited starts at the least of those who wait, or at the last one served."""
    server = Server(ChunkedScheduler, seqs=1, queue=FairShareQueue())
    first = request(0, 100, tenant="a")
    server.submit(first)
    server.step()  # a: 100
    server.submit(request(1, 5, tenant="b"))  # nobody waits: lifted to a's 100
    server.submit(request(2, 5, tenant="a"))
    server.submit(request(3, 5, tenant="c"))  # lifted to 100, the least of a and b
    server.end(first)  # a: 102
    assert server.step() == ({1: 5}, 0, [])  # b: 105
    assert server.waiting() == [3, 2]


def test_recomputation_is_not_charged() -> None:
    """A preempted request pays for its prompt once, and for a token once."""
    queue = FairShareQueue()
    server = Server(ChunkedScheduler, blocks=5, size=4, queue=queue)
    old, new = request(0, 8, tenant="a"), request(1, 8, tenant="b")
    server.submit(old, new)
    server.step()
    assert server.step() == ({}, 1, [1])
    server.end(old)
    assert server.step() == ({1: 9}, 0, [])
    server.step()
    counters = {name: tenant.service for name, tenant in queue._tenants.items()}
    assert counters == {"a": 8 + 2 * 2, "b": 8 + 2 * 2}


class EveryToken:
    """Counters brought up to date by walking over all requests at every settlement."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.lifts: dict[str, int] = {}

    def service(self, tenant: str, steps: int) -> int:
        own = [r for r in self.requests if r.traits.tenant == tenant]
        tokens = sum(r.emitted_tokens + (steps - r.joined_step if r.joined_step >= 0 else 0) for r in own)
        return self.lifts.get(tenant, 0) + 2 * tokens + sum(r.prompt_tokens for r in own)


@given(seed=st.integers(0, 10**6))
@examples(100)
def test_counters_are_those_of_every_token(seed: int) -> None:
    """Whatever is admitted, preempted or ends between two settlements, each token is charged once."""
    rng = random.Random(seed)
    queue, model = FairShareQueue(), EveryToken()
    server = Server(ChunkedScheduler, blocks=12, size=4, seqs=4, budget=12, queue=queue)
    for i in range(12):
        # All wait from the beginning, so that nobody is lifted.
        model.requests.append(request(i, rng.randint(1, 15), 30, tenant=rng.choice("abc")))
    server.submit(*model.requests)
    for _ in range(60):
        server.step()
        for running in server.scheduler.running():
            if running.joined_step >= 0 and rng.random() < 0.2:
                server.end(running)
        queue._due = True
        queue.settle(server.batch.steps)
        for name, tenant in queue._tenants.items():
            charged = model.service(name, server.batch.steps) - sum(
                r.prompt_tokens
                for r in model.requests
                if r.traits.tenant == name and r.state is State.WAITING and not r.preemptions
            )
            assert tenant.service == charged
