"""SGLang's rule: prompts first, admission by what the running requests may still need, retraction."""

from __future__ import annotations

import random

import pytest
from hand import Server, request
from hypothesis import given
from hypothesis import strategies as st

from scenarios import examples
from sim.schedulers.future_tokens import FutureTokens
from sim.schedulers.queue_order import by_priority
from sim.schedulers.sglang import SglangScheduler, _NewTokenRatio


def test_prompts_are_cut_and_one_is_under_way() -> None:
    """The chunk of the prompt under way comes first; the decodes stand still."""
    server = Server(SglangScheduler, budget=16)
    server.submit(request(0, 10), request(1, 20), request(2, 5))
    assert server.step() == ({0: 10, 1: 6}, 0, [])
    assert server.step() == ({1: 14, 2: 2}, 0, [])
    assert server.step() == ({2: 3}, 0, [])
    assert server.step() == ({}, 3, [])


def test_mixed_steps_count_the_decodes() -> None:
    """With `enable_mixed_chunk` the decodes take part, and their tokens come off the chunk."""
    server = Server(SglangScheduler, budget=16, mixed=True)
    server.submit(request(0, 10))
    assert server.step() == ({0: 10}, 0, [])
    server.submit(request(1, 20))
    assert server.step() == ({1: 15}, 1, [])
    assert server.step() == ({1: 5}, 1, [])
    assert server.step() == ({}, 2, [])


@pytest.mark.parametrize(("prompt", "admitted"), [(28, True), (29, False)])
def test_room_is_kept_for_what_may_come(prompt: int, admitted: bool) -> None:
    """A request needs its prompt and its longest output beside 70 % of what the running ones may still emit."""
    server = Server(SglangScheduler, blocks=100, size=1)
    server.submit(request(0, 10, most=41))
    server.step()  # 90 blocks are free, and 40 tokens may still come, of which 28 are expected
    server.submit(request(1, prompt, most=33))  # 28 + 33 < 90 - 28 = 62
    assert (server.step() == ({1: prompt}, 0, [])) is admitted


def test_after_a_refusal_nobody_is_looked_at_before_somebody_leaves() -> None:
    """Not even a request that would fit: the batch is full until one ends."""
    server = Server(SglangScheduler, blocks=100, size=1, queue=by_priority())
    first = request(0, 10, most=41)
    server.submit(first)
    server.step()
    assert server.submit(request(1, 50, most=33, priority=1)) == [True]
    assert server.step() == ({}, 1, [])
    assert server.submit(request(2, 1, most=1)) == [False]
    assert server.step() == ({}, 1, [])
    server.end(first)
    assert server.step() == ({2: 1, 1: 50}, 0, [])


def test_a_lone_request_is_never_refused() -> None:
    """However long it may become: nobody else needs the room."""
    server = Server(SglangScheduler, blocks=100, size=1)
    server.submit(request(0, 10, most=90), request(1, 10, most=90))
    assert server.step() == ({0: 10}, 0, [])


def test_those_with_the_fewest_tokens_are_retracted_to_the_end() -> None:
    """Then the longest prompt; until twenty tokens per remaining decode are free."""
    server = Server(SglangScheduler, blocks=100, size=1, schedule_conservativeness=0.0, seqs=4)
    server.submit(request(0, 20, most=60))
    server.step()
    server.steps(2)  # 22 tokens
    server.submit(request(1, 20, most=55), request(2, 25, most=30))
    assert server.step() == ({1: 20}, 0, [])  # 25 + 30 < 100 - 22 - (20 + 55) does not hold
    assert server.waiting() == [2]
    assert server.steps(29) == [({}, 2, [])] * 29  # 51 + 49 = 100
    assert server.step() == ({}, 1, [1])
    assert server.waiting() == [2, 1]


def test_a_retraction_raises_the_ratio() -> None:
    """To what the remaining ones will have emitted in twenty steps, of what they may."""
    server = Server(SglangScheduler, blocks=100, size=1, schedule_conservativeness=0.0, seqs=4)
    server.submit(request(0, 20, most=60))
    server.step()
    server.steps(2)
    server.submit(request(1, 20, most=55))
    server.step()
    server.steps(30)
    ratio = server.scheduler._ratio  # type: ignore[attr-defined]
    assert ratio.at(server.scheduler._steps_alone) == (32 + 20) / 60  # type: ignore[attr-defined]


def test_the_ratio_falls_to_its_floor_in_six_hundred_steps() -> None:
    """From 0.7 to 0.14 of that."""
    ratio = _NewTokenRatio(0.7)
    assert ratio.at(0) == 0.7
    assert ratio.at(300) == pytest.approx((0.7 + 0.098) / 2)
    assert ratio.at(600) == ratio.at(5000) == pytest.approx(0.098)
    ratio.raise_to(0.5, 1000)
    assert ratio.at(1100) == pytest.approx(0.5 - 100 * (0.7 - 0.098) / 600)


@given(seed=st.integers(0, 10**6))
@examples(100)
def test_future_tokens_are_a_sum_over_members(seed: int) -> None:
    """As if every member were walked over at every look."""
    rng = random.Random(seed)
    future, ends, steps = FutureTokens(20), dict[int, int](), 0
    for i in range(60):
        steps += rng.choice([0, 1, 1, 7])
        id_ = rng.randrange(8)
        if id_ in ends or rng.random() < 0.2:
            future.discard(id_)
            ends.pop(id_, None)
        else:
            ends[id_] = steps + rng.choice([3, 20, 21, 60])
            future.add(id_, ends[id_])
        if i % 3 == 0:
            assert future.total(steps) == sum(min(end - steps, 20) for end in ends.values())
