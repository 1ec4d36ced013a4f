"""A scheduler with its memory and batch, stepped by hand: what a replica does, without clock and timer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sim.batch import DecodeBatch
from sim.kv.paged import PagedKV
from sim.request import Request, State, Traits
from sim.schedulers.base import Scheduler
from sim.step import Idle

NEVER = 10**9


class Server:
    """Memory of `blocks` blocks of `size` tokens; everything else goes to the scheduler's constructor."""

    def __init__(
        self,
        make: Callable[..., Scheduler],
        *,
        blocks: int = 1000,
        size: int = 4,
        seqs: int = 8,
        budget: int = 100,
        **options: Any,
    ) -> None:
        self.kv, self.batch = PagedKV(blocks, size), DecodeBatch()
        self.scheduler = make(self.kv, self.batch, max_num_seqs=seqs, max_num_batched_tokens=budget, **options)

    def submit(self, *requests: Request) -> list[bool]:
        """What the scheduler answers to each."""
        return [self.scheduler.submit(request) for request in requests]

    def step(self, now_ps: int = 0) -> Any:
        """The plan as (chunks by id, decodes, preempted ids), after doing it; or ("idle", until)."""
        plan = self.scheduler.plan(now_ps)
        if isinstance(plan, Idle):
            return "idle", plan.until_ps
        decoding = self.batch.count if plan.decodes else 0
        if plan.decodes:
            self.batch.advance(1)
            self.kv.advance(1)
        for request, tokens in plan.chunks:
            request.computed_tokens += tokens
            if request.computed_tokens == request.target_tokens:
                request.emitted_tokens += 1
                if request._finish_step < self.batch.steps:
                    request._finish_step = NEVER
                self.batch.join(request)
                self.kv.grow(request)
        return {r.id: n for r, n in plan.chunks}, decoding, [r.id for r in plan.preempted or ()]

    def steps(self, count: int) -> list[Any]:
        """Several steps."""
        return [self.step() for _ in range(count)]

    def end(self, *requests: Request) -> None:
        """Running requests leave."""
        for request in requests:
            request.state = State.COMPLETED
            self.batch.leave(request, self.batch.steps)
            self.kv.release(request)
            self.scheduler.finish(request)

    def waiting(self) -> list[int]:
        """The ids of those who wait, in order."""
        return [request.id for request in self.scheduler.waiting()]


def request(id_: int, prompt: int, most: int = 50, arrival_ps: int = 0, **traits: Any) -> Request:
    """A request with its longest output and, by name, what `Traits` holds."""
    return Request(id_, arrival_ps, prompt, most, traits=Traits(**traits))
