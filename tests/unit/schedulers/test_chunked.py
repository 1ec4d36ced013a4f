"""Chunked prefill under a token budget, plan by plan."""

from __future__ import annotations

from typing import Any

import pytest
from hand import Server as Hand

from sim.batch import DecodeBatch
from sim.kv.paged import PagedKV
from sim.request import Request, State
from sim.schedulers.chunked import ChunkedScheduler
from sim.step import Idle, StepPlan


class Server:
    """A scheduler with its memory and batch, stepped by hand."""

    def __init__(self, blocks: int = 1000, size: int = 4, seqs: int = 8, budget: int = 16, threshold: int = 0) -> None:
        self.kv, self.batch = PagedKV(blocks, size), DecodeBatch()
        self.scheduler = ChunkedScheduler(
            self.kv, self.batch, max_num_seqs=seqs, max_num_batched_tokens=budget,
            long_prefill_token_threshold=threshold,
        )  # fmt: skip

    def submit(self, *requests: Request) -> list[bool]:
        return [self.scheduler.submit(r) for r in requests]

    def step(self) -> Any:
        """The plan as (chunks by id, decodes, preempted ids), after doing it."""
        plan = self.scheduler.plan(0)
        if isinstance(plan, Idle):
            return "idle"
        assert isinstance(plan, StepPlan)
        decoding = self.batch.count if plan.decodes else 0
        if plan.decodes:
            self.batch.advance(1)
            self.kv.advance(1)
        for request, tokens in plan.chunks:
            request.computed_tokens += tokens
            if request.computed_tokens == request.target_tokens:
                request.emitted_tokens += 1
                request._finish_step = 10**9
                self.batch.join(request)
                self.kv.grow(request)
        return {r.id: n for r, n in plan.chunks}, decoding, [r.id for r in plan.preempted or ()]


def request(id_: int, prompt: int, output: int = 50) -> Request:
    return Request(id_, 0, prompt, output)


def test_idle_without_requests() -> None:
    """Nothing to do is said so."""
    assert Server().step() == "idle"


def test_the_budget_is_shared_by_prompts() -> None:
    """A prompt that does not fill the budget leaves the rest to the next one."""
    server = Server(budget=16)
    server.submit(request(0, 10), request(1, 10), request(2, 10))
    assert server.step() == ({0: 10, 1: 6}, 0, [])
    assert server.step() == ({1: 4, 2: 10}, 1, [])  # one token of the budget goes to the decode of request 0
    assert server.step() == ({}, 3, [])


def test_decodes_come_before_prompts() -> None:
    """Every decode takes one token of the budget before any prompt does."""
    server = Server(budget=8, seqs=8)
    server.submit(*[request(i, 1) for i in range(6)])
    server.step()
    server.submit(request(6, 100))
    assert server.step() == ({6: 2}, 6, [])


def test_threshold_caps_the_chunk_of_one_prompt() -> None:
    """With a threshold several long prompts share a step."""
    server = Server(budget=16, threshold=5)
    server.submit(request(0, 100), request(1, 100))
    assert server.step() == ({0: 5, 1: 5}, 0, [])


def test_seats_bound_the_batch() -> None:
    """No more sequences than max_num_seqs, however small they are."""
    server = Server(seqs=2)
    server.submit(*[request(i, 1) for i in range(5)])
    assert server.step() == ({0: 1, 1: 1}, 0, [])
    assert server.scheduler.num_waiting == 3


def test_memory_stops_admission_in_order() -> None:
    """The head of the queue that does not fit blocks those behind it, even if they would fit."""
    server = Server(blocks=5, size=4, budget=100)
    server.submit(request(0, 10), request(1, 12), request(2, 1))
    assert server.step() == ({0: 10}, 0, [])
    assert server.step() == ({}, 1, [])
    assert [r.id for r in server.scheduler.waiting()] == [1, 2]


def test_a_first_chunk_is_admitted_though_the_prompt_does_not_fit() -> None:
    """Only the chunk needs room: vLLM V1 admits by chunks too."""
    server = Server(blocks=5, size=4, budget=8)
    server.submit(request(0, 40))
    assert server.step() == ({0: 8}, 0, [])


def test_the_newest_is_preempted_first() -> None:
    """When the next tokens do not fit, the request admitted last goes back to the front of the queue; nobody joins."""
    server = Server(blocks=4, size=4)
    a, b, c = request(0, 8), request(1, 8), request(2, 1)
    server.submit(a, b, c)
    assert server.step() == ({0: 8, 1: 8}, 0, [])
    assert server.step() == ({}, 1, [1])
    assert (b.state, b.computed_tokens, b.target_tokens, b.preemptions) == (State.WAITING, 0, 9, 1)
    assert [r.id for r in server.scheduler.waiting()] == [1, 2]
    assert a.state is State.RUNNING


def test_a_chunk_may_preempt_a_newer_request_but_not_an_older_one() -> None:
    """A prompt under way takes memory from those admitted after it; alone with older ones it goes itself."""
    server = Server(blocks=6, size=4, budget=10)
    old, new = request(0, 24), request(1, 2)
    server.submit(old, new)
    assert server.step() == ({0: 10}, 0, [])
    assert server.step() == ({0: 10}, 0, [])
    assert server.step() == ({0: 4, 1: 2} if server.kv.free_blocks else {0: 4}, 0, [])
    assert server.scheduler.num_waiting == 1  # blocks 6 of 6 are the old one's

    server = Server(blocks=6, size=4, budget=10)
    old, new = request(0, 8), request(1, 24)
    server.submit(old, new)
    assert server.step() == ({0: 8, 1: 2}, 0, [])
    assert server.step() == ({1: 9}, 1, [])  # old holds 3 blocks, new 3
    assert server.step() == ({}, 1, [1])  # no room for its next chunk: it yields
    assert new.target_tokens == 24


def test_a_preempted_decode_leaves_its_tokens_to_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decode that verifies six tokens leaves six of twelve; preempted for a chunk, it leaves all to the prompts."""
    monkeypatch.setattr(DecodeBatch, "query_tokens", 6)
    for blocks, found in ((100, ({0: 4, 1: 2}, 1, [])), (16, ({0: 4, 1: 4}, 0, [2]))):
        server = Server(blocks=blocks, size=1, budget=12, threshold=4)
        server.submit(request(0, 40), request(1, 40), request(2, 4))
        assert server.step() == ({0: 4, 1: 4, 2: 4}, 0, [])
        assert server.step() == found


def test_one_whose_last_token_is_in_flight_is_spared() -> None:
    """Its end is already computed, so the next newest is preempted instead of it."""
    server = Server(blocks=4, size=4)
    a, b = request(0, 8), request(1, 8)
    server.submit(a, b)
    server.step()
    b._finish_step = server.batch.steps
    assert server.step() == ({}, 1, [0])


def test_nobody_to_preempt_means_no_step() -> None:
    """If all last tokens are in flight and blocks are short, the plan is empty until a step ends."""
    server = Server(blocks=4, size=4)
    requests = request(0, 8), request(1, 8)
    server.submit(*requests)
    server.step()
    for r in requests:
        r._finish_step = server.batch.steps
    assert server.step() == ({}, 0, [])


def test_submit_ends_the_plan_only_for_a_request_that_could_join() -> None:
    """Next in line, a seat, and room for its first chunk: all three, or the plan goes on."""
    assert Server().submit(request(0, 4)) == [True]
    assert Server().submit(request(0, 4), request(1, 4)) == [True, False]
    full = Server(seqs=1)
    full.submit(request(0, 1))
    full.step()
    assert full.submit(request(1, 1)) == [False]
    tight = Server(blocks=3, size=4)
    tight.submit(request(0, 9))
    tight.step()
    assert tight.submit(request(1, 1)) == [False]


def test_finish_and_abort_free_their_places() -> None:
    """A finished request leaves the running ones, an aborted one the queue."""
    server = Server(seqs=1)
    a, b, c = request(0, 1), request(1, 1), request(2, 1)
    server.submit(a, b, c)
    server.step()
    b.state = State.ABORTED
    server.scheduler.abort(b)
    assert [r.id for r in server.scheduler.waiting()] == [2]
    a.state = State.COMPLETED
    server.batch.leave(a, server.batch.steps)
    server.kv.release(a)
    server.scheduler.finish(a)
    assert server.scheduler.running() == []
    assert server.step() == ({2: 1}, 0, [])


@pytest.mark.parametrize("budget", [1, 3, 1000])
def test_a_lone_prompt_is_cut_by_the_budget(budget: int) -> None:
    """The chunks of a prompt are as long as the budget, but for the last."""
    server, chunks = Server(budget=budget, seqs=1), []
    server.submit(request(0, 10))
    while not server.batch.count:
        chunks.append(server.step()[0][0])
    assert sum(chunks) == 10
    assert all(n == min(budget, 10) for n in chunks[:-1])


def test_prompts_left_incomplete_may_be_limited() -> None:
    """Nobody new starts while so many are under way; one that completes in this step makes room in it."""
    server = Hand(ChunkedScheduler, budget=20, long_prefill_token_threshold=5, max_num_partial_prefills=2)
    server.submit(*[request(i, prompt) for i, prompt in enumerate((8, 12, 3, 9))])
    assert server.step() == ({0: 5, 1: 5}, 0, [])
    assert server.step() == ({0: 3, 1: 5, 2: 3, 3: 5}, 0, [])
    assert server.step() == ({1: 2, 3: 4}, 2, [])
