"""Prefill first: whole prompts, alone in their step."""

from __future__ import annotations

from typing import Any

from sim.batch import DecodeBatch
from sim.kv.paged import PagedKV
from sim.request import Request, State
from sim.schedulers.continuous import ContinuousScheduler
from sim.step import Idle


class Server:
    """A scheduler with its memory and batch, stepped by hand."""

    def __init__(self, blocks: int = 1000, size: int = 4, seqs: int = 8, budget: int = 100) -> None:
        self.kv, self.batch = PagedKV(blocks, size), DecodeBatch()
        limits = {"max_num_seqs": seqs, "max_num_batched_tokens": budget}
        self.scheduler = ContinuousScheduler(self.kv, self.batch, **limits)

    def submit(self, *requests: Request) -> list[bool]:
        return [self.scheduler.submit(r) for r in requests]

    def step(self) -> Any:
        """The plan as (chunks by id, decodes, preempted ids), after doing it."""
        plan = self.scheduler.plan(0)
        if isinstance(plan, Idle):
            return "idle"
        decoding = self.batch.count if plan.decodes else 0
        if plan.decodes:
            self.batch.advance(1)
            self.kv.advance(1)
        for request, tokens in plan.chunks:
            request.computed_tokens += tokens
            request.emitted_tokens += 1
            request._finish_step = 10**9
            self.batch.join(request)
            self.kv.grow(request)
        return {r.id: n for r, n in plan.chunks}, decoding, [r.id for r in plan.preempted or ()]


def request(id_: int, prompt: int) -> Request:
    return Request(id_, 0, prompt, 50)


def test_prompts_go_first_and_alone() -> None:
    """While a prompt is computed the decodes stand still; afterwards all decode together."""
    server = Server()
    server.submit(request(0, 10))
    assert server.step() == ({0: 10}, 0, [])
    assert server.step() == ({}, 1, [])
    server.submit(request(1, 20))
    assert server.step() == ({1: 20}, 0, [])
    assert server.step() == ({}, 2, [])
    assert Server().step() == "idle"


def test_prompts_are_never_cut() -> None:
    """A prompt that exceeds what is left of the budget waits for a step of its own, and those behind it with it."""
    server = Server(budget=30)
    server.submit(request(0, 20), request(1, 20), request(2, 5))
    assert server.step() == ({0: 20}, 0, [])
    assert server.step() == ({1: 20, 2: 5}, 0, [])


def test_decodes_do_not_use_the_budget_of_prompts() -> None:
    """A prompt as long as the budget is admitted beside running decodes."""
    server = Server(budget=30)
    server.submit(request(0, 20))
    server.step()
    server.submit(request(1, 30))
    assert server.step() == ({1: 30}, 0, [])


def test_memory_of_the_next_decode_is_kept() -> None:
    """A prompt is not admitted into the block that a decode opens next."""
    server = Server(blocks=4, size=4)
    server.submit(request(0, 8))
    server.step()
    assert server.submit(request(1, 8)) == [False]
    assert server.step() == ({}, 1, [])


def test_preemption_when_decodes_do_not_fit() -> None:
    """The newest goes back to the front, to be recomputed with what it had emitted."""
    server = Server(blocks=4, size=4)
    a, b = request(0, 8), request(1, 8)
    server.submit(a, b)
    assert server.step() == ({0: 8, 1: 8}, 0, [])
    assert server.step() == ({}, 1, [1])
    assert (b.state, b.target_tokens) == (State.WAITING, 9)
    assert a.state is State.RUNNING


def test_seats_bound_the_batch() -> None:
    """No more sequences than max_num_seqs."""
    server = Server(seqs=2)
    server.submit(request(0, 1), request(1, 1), request(2, 1))
    assert server.step() == ({0: 1, 1: 1}, 0, [])
    assert server.step() == ({}, 2, [])


def test_submit_asks_for_the_whole_prompt() -> None:
    """A prompt that does not fit the free blocks does not end the plan, though its first block would fit."""
    server = Server(blocks=5, size=4)
    server.submit(request(0, 10))
    server.step()
    assert server.submit(request(1, 12)) == [False]
    fresh = Server(blocks=5, size=4)
    assert fresh.submit(request(0, 12)) == [True]
