"""Who comes first, and whether prompts and decodes share a step."""

from __future__ import annotations

from hand import Server, request

from sim.schedulers.continuous import ContinuousScheduler


def test_orca_adds_whole_prompts_to_the_decodes() -> None:
    """Decode first, mixed: the decodes' tokens come off the budget, and a prompt that does not fit the rest waits."""
    server = Server(ContinuousScheduler, budget=30, priority="decode", mixed=True)
    server.submit(request(0, 10), request(1, 10))
    assert server.step() == ({0: 10, 1: 10}, 0, [])
    server.submit(request(2, 28), request(3, 29))
    assert server.step() == ({2: 28}, 2, [])
    assert server.step() == ({}, 3, [])  # 30 - 3 < 29
    server.end(*server.scheduler.running()[:2])
    assert server.step() == ({3: 29}, 1, [])


def test_orca_admits_nobody_in_a_step_that_preempted() -> None:
    """The decodes' next blocks are theirs; who had to give way comes back in a later step."""
    server = Server(ContinuousScheduler, blocks=5, size=4, priority="decode", mixed=True)
    server.submit(request(0, 8), request(1, 8))
    assert server.step() == ({0: 8, 1: 8}, 0, [])
    assert server.submit(request(2, 1)) == [False]  # one block is free, but both decodes need one
    assert server.step() == ({}, 1, [1])
    assert server.waiting() == [1, 2]


def test_prompts_first_let_decodes_ride_along_where_the_budget_has_room() -> None:
    """Prefill first, mixed: prompts have the whole budget; the decodes all take part or all stand still."""
    server = Server(ContinuousScheduler, budget=30, mixed=True)
    server.submit(request(0, 10), request(1, 10))
    assert server.step() == ({0: 10, 1: 10}, 0, [])
    server.submit(request(2, 28))
    assert server.step() == ({2: 28}, 2, [])
    server.submit(request(3, 28))
    assert server.step() == ({3: 28}, 0, [])  # 2 tokens are left, and 3 sequences decode
    assert server.step() == ({}, 4, [])


def test_decodes_first_and_alone_run_to_the_end_of_the_batch() -> None:
    """Decode first, separate: nobody is admitted, and nobody needs to be looked at, while anybody decodes."""
    server = Server(ContinuousScheduler, priority="decode")
    first, second = request(0, 10), request(1, 10)
    assert server.submit(first, second) == [True, False]
    assert server.step() == ({0: 10, 1: 10}, 0, [])
    assert server.submit(request(2, 10)) == [False]
    server.end(first)
    assert server.step() == ({}, 1, [])
    server.end(second)
    assert server.step() == ({2: 10}, 0, [])


def test_a_preempted_request_waits_like_the_others_when_decodes_are_alone() -> None:
    """It is recomputed with the next batch: prompt and what it had emitted."""
    server = Server(ContinuousScheduler, blocks=4, size=4, priority="decode")
    old, new = request(0, 8), request(1, 7)
    server.submit(old, new)
    assert server.step() == ({0: 8, 1: 7}, 0, [])
    assert server.step() == ({}, 1, [1])
    server.submit(request(2, 1))
    server.end(old)
    assert server.step() == ({1: 8, 2: 1}, 0, [])
