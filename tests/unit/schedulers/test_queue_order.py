"""The waiting queue."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from scenarios import examples
from sim.request import Request, State
from sim.schedulers.queue_order import FcfsQueue


@given(seed=st.integers(0, 10**6))
@examples(100)
def test_the_queue_is_a_list_with_two_ends(seed: int) -> None:
    """Arrivals at the end, preempted requests at the front, aborted ones gone from anywhere."""
    rng = random.Random(seed)
    queue, model = FcfsQueue(), list[Request]()
    for i in range(40):
        action = rng.choice(["push", "push", "front", "pop", "abort"])
        if action == "push":
            model.append(Request(i, 0, 1, 1))
            queue.push(model[-1])
        elif action == "front":
            model.insert(0, Request(i, 0, 1, 1))
            queue.push_front(model[0])
        elif action == "pop" and model:
            assert queue.head() is model.pop(0)
            queue.pop()
        elif action == "abort" and model:
            request = model.pop(rng.randrange(len(model)))
            request.state = State.ABORTED
            queue.discard(request)
        assert queue.size == len(model)
        assert list(queue) == model
        if model:
            assert queue.head() is model[0]
