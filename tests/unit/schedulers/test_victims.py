"""Who gives way when memory is short, and how the orders of the queue take them back."""

from __future__ import annotations

import random

import pytest
from hand import Server, request
from hypothesis import given
from hypothesis import strategies as st

from scenarios import examples
from sim.request import Request, State
from sim.schedulers.chunked import ChunkedScheduler
from sim.schedulers.queue_order import SortedQueue, by_prediction, by_priority, by_prompt


def tight(**options: object) -> Server:
    """Three sequences of two full blocks each in seven blocks: the next step needs three."""
    server = Server(ChunkedScheduler, blocks=7, size=4, **options)  # type: ignore[arg-type]
    priorities = (2, 0, 1)
    server.submit(*[request(i, 8, priority=p) for i, p in enumerate(priorities)])
    server.step()
    return server


@pytest.mark.parametrize(("victim", "expected"), [("newest", [2]), ("lowest_priority", [0])])
def test_the_victim(victim: str, expected: list[int]) -> None:
    """Admitted last, or with the largest priority value; what it frees is enough for the others."""
    assert tight(preemption_victim=victim).step() == ({}, 2, expected)


def test_among_equals_the_latest_gives_way() -> None:
    """By arrival, then by id."""
    server = Server(ChunkedScheduler, blocks=7, size=4, preemption_victim="lowest_priority")
    server.submit(request(0, 8, arrival_ps=5), request(1, 8, arrival_ps=5), request(2, 8, arrival_ps=4))
    server.step()
    assert server.step() == ({}, 2, [1])


def test_a_prompt_with_a_chunk_and_a_last_token_in_flight_are_spared() -> None:
    """Whatever their priority; the next in line goes."""
    server = tight(preemption_victim="lowest_priority")
    server.scheduler.running()[0]._finish_step = 0
    assert server.step() == ({}, 2, [2])
    assert server.step() == ({}, 2, [])
    victim = server.scheduler._victim({0, 1})  # type: ignore[attr-defined]
    assert victim is None


def test_a_victim_keeps_its_place_in_the_order() -> None:
    """Behind those with higher priority, before those with lower, whenever they arrived."""
    server = tight(preemption_victim="lowest_priority", queue=by_priority())
    server.submit(request(3, 8, priority=1, arrival_ps=9), request(4, 8, priority=3, arrival_ps=9))
    assert server.step()[2] == [0]
    assert server.waiting() == [3, 0, 4]


def test_who_arrives_ahead_of_a_blocked_head_is_looked_at() -> None:
    """A shorter prompt takes the head's place; one that does not is not asked."""
    server = Server(ChunkedScheduler, blocks=4, size=4, queue=by_prompt())
    server.submit(request(0, 8))
    server.step()
    assert server.submit(request(1, 12), request(2, 13), request(3, 4)) == [False, False, True]
    assert server.waiting() == [3, 1, 2]
    assert server.step() == ({3: 4}, 1, [])


def test_keys_of_the_orders() -> None:
    """Priority values, prompt tokens, guessed output tokens."""
    long = request(0, 30, most=9, priority=1)
    long.predicted_output_tokens = 2
    short = request(1, 5, most=4, priority=2)
    for make, first in ((by_priority, long), (by_prompt, short), (by_prediction, long)):
        queue = make()
        queue.push(short)
        queue.push(long)
        assert queue.head() is first


@given(seed=st.integers(0, 10**6))
@examples(100)
def test_a_sorted_queue_is_a_sorted_list(seed: int) -> None:
    """By key, arrival and id, whatever is pushed, taken, put back or aborted."""
    rng = random.Random(seed)
    queue, model, taken = SortedQueue(lambda r: r.prompt_tokens), list[Request](), list[Request]()
    place = lambda r: (r.prompt_tokens, r.arrival_ps, r.id)  # noqa: E731
    for i in range(50):
        action = rng.choice(["push", "push", "back", "pop", "abort"])
        if action == "push":
            new = request(i, rng.randint(1, 4), arrival_ps=rng.randint(0, 3))
            assert queue.push(new) == (new == min([*model, new], key=place))
            model.append(new)
        elif action == "back" and taken:
            back = taken.pop(rng.randrange(len(taken)))
            queue.push_front(back)
            model.append(back)
        elif action == "pop" and model:
            assert queue.head() is min(model, key=place)
            queue.pop()
            taken.append(min(model, key=place))
            model.remove(taken[-1])
        elif action == "abort" and model:
            gone = model.pop(rng.randrange(len(model)))
            gone.state = State.ABORTED
            queue.discard(gone)
        assert queue.size == len(model)
        assert list(queue) == sorted(model, key=place)
