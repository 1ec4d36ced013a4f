"""Request-level batching: a batch runs until its last member is done, and nobody joins it (FasterTransformer)."""

from __future__ import annotations

from typing import Unpack

from sim.batch import DecodeBatch
from sim.kv.base import Grant, KVAllocator
from sim.request import Request
from sim.schedulers.seats import SeatedScheduler, Seats
from sim.step import IDLE, Idle, StepPlan


class StaticScheduler(SeatedScheduler):
    """Takes what waits, computes all its prompts in one step, and decodes until every member has its last token.

    With `padding`, every prompt is as long as the longest one of its batch, in work and in memory; without, prompts
    are packed. `max_num_seqs` and memory bound the batch; `max_num_batched_tokens` does not.
    """

    drains_together = True

    def __init__(self, kv: KVAllocator, batch: DecodeBatch, *, padding: bool = True, **seats: Unpack[Seats]) -> None:
        super().__init__(kv, batch, **seats)
        self._padding, self._size = padding, self._max_num_seqs

    def submit(self, request: Request) -> bool:
        """Nobody joins a batch under way."""
        self._waiting.push(request)
        return not self._running

    def plan(self, now_ps: int) -> StepPlan | Idle:
        """The batch under way, or a new one."""
        if self._accounts is not None:
            self._accounts.settle(self._batch.steps)
        preempted = None
        if self._running:
            plan = self._decode()
            preempted = plan.preempted
            if self._running:
                unfinished = not preempted or self._victim() is not None
                return plan if unfinished else StepPlan((), False, preempted)
        return StepPlan(self._form(), False, preempted) if self._waiting.size else IDLE

    def _form(self) -> list[tuple[Request, int]]:
        """The longest beginning of the queue that has seats and, padded, room."""
        members: list[Request] = []
        while self._waiting.size and len(members) < self._size:
            request = self._waiting.head()
            grant = self._reserve(members, request)
            if grant is None:
                break
            self._seat(request, request.target_tokens, grant)
            members.append(request)
        return [(member, member.target_tokens - member.computed_tokens) for member in members]

    def _reserve(self, members: list[Request], request: Request) -> Grant | None:
        """Room for one more member, and for what it makes the others longer. None: all is as before."""
        own, longest = request.target_tokens, members[-1].target_tokens if members else 0
        if not self._padding or not members:
            return self._kv.reserve(request, own)
        if own > longest:
            grant = self._kv.reserve(request, own) if self._resize(members, own) else None
            if grant is None:
                self._resize(members, longest)
            return grant
        request.target_tokens = longest
        grant = self._kv.reserve(request, longest)
        if grant is None:
            request.target_tokens = own
        return grant

    def _resize(self, members: list[Request], tokens: int) -> bool:
        """Give the room of the members back, and take it anew for prompts of so many tokens, if all of them fit."""
        for member in members:
            if member.reserved_tokens:
                self._kv.release(member)
            member.target_tokens = tokens
        return all(self._kv.reserve(member, tokens) is not None for member in members)
