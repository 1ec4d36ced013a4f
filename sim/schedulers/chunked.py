"""Chunked prefill under one token budget: Sarathi-Serve (OSDI 2024), and the rule of vLLM V1."""

from __future__ import annotations

from typing import Annotated, Unpack

from pydantic import Field

from sim.batch import DecodeBatch
from sim.kv.base import KVAllocator
from sim.request import RUNNING, Request
from sim.schedulers.seats import SeatedScheduler, Seats
from sim.step import DECODE, IDLE, NO_LIMIT, Idle, StepPlan


class ChunkedScheduler(SeatedScheduler):
    """Running decodes first, then prefill chunks in order of admission, then new requests, until the budget is spent.

    A step that had to preempt admits nobody. `long_prefill_token_threshold` caps the chunk of one prompt, so that
    several can share a step (0: no cap). With `max_num_partial_prefills`, nobody is admitted while so many prompts are
    left incomplete (0: no limit, as in vLLM V1, which ignores its key of this name; in V0 it also divided the budget,
    and long prompts let shorter ones pass, neither of which is modelled).
    """

    def __init__(
        self,
        kv: KVAllocator,
        batch: DecodeBatch,
        *,
        long_prefill_token_threshold: int = 0,
        max_num_partial_prefills: Annotated[int, Field(ge=0)] = 0,
        **seats: Unpack[Seats],
    ) -> None:
        super().__init__(kv, batch, **seats)
        self._cap = long_prefill_token_threshold or self._max_num_batched_tokens
        self._most_partial = max_num_partial_prefills or NO_LIMIT
        self._prefilling: list[Request] = []  # admitted, prompt not yet computed; in order of admission

    def plan(self, now_ps: int) -> StepPlan | Idle:
        """One step under the token budget."""
        if self._accounts is not None:
            self._accounts.settle(self._batch.steps)
        preempted = None
        if self._kv.shortage():
            preempted = self._make_room()
            if self._kv.shortage():
                return StepPlan((), False, preempted, transfers=self._take_copies())
        if not self._prefilling and not self._waiting.size:
            return DECODE if self._batch.count else IDLE
        return self._with_chunks(preempted)

    def _with_chunks(self, preempted: list[Request] | None) -> StepPlan | Idle:
        """Prompts under way, then new ones unless somebody had to be preempted, beside the decodes."""
        chunks: list[tuple[Request, int]] = []
        budget = self._max_num_batched_tokens - self._batch.rows
        if self._prefilling:
            budget, preempted = self._continue_prefills(chunks, budget, preempted)
        if self._waiting.size and not preempted:
            self._admit(chunks, budget)
        if chunks or preempted or self._copies:
            return StepPlan(chunks, self._batch.count > 0, preempted, transfers=self._take_copies())
        return DECODE if self._batch.count else IDLE

    def _first_chunk(self, request: Request) -> int:
        return self._chunk(request.target_tokens, self._max_num_batched_tokens - self._batch.rows)

    def _chunk(self, missing: int, budget: int) -> int:
        """The least of what a prompt misses, the budget and the cap."""
        tokens = missing if missing < budget else budget
        return tokens if tokens < self._cap else self._cap

    def _continue_prefills(
        self, chunks: list[tuple[Request, int]], budget: int, preempted: list[Request] | None
    ) -> tuple[int, list[Request] | None]:
        """Chunks for prompts under way; preempts newest-first when one does not fit, the prompt itself at the last."""
        self._prefilling = [r for r in self._prefilling if r.computed_tokens < r.target_tokens and r.state is RUNNING]
        for request in self._prefilling:
            tokens = self._chunk(request.target_tokens - request.computed_tokens, budget)
            while tokens and request.state is RUNNING:
                if self._kv.reserve(request, tokens) is not None:
                    chunks.append((request, tokens))
                    budget -= tokens
                    break
                if self._kv.parked_blocks:
                    break  # what is being copied elsewhere will make room
                decodes = self._batch.rows
                victim = self._victim({planned.id for planned, _ in chunks})
                if victim is None:
                    break
                self._preempt(victim)
                budget += decodes - self._batch.rows
                preempted = [*(preempted or []), victim]
        return budget, preempted

    def _admit(self, chunks: list[tuple[Request, int]], budget: int) -> None:
        kv, waiting, running, prefilling = self._kv, self._waiting, self._running, self._prefilling
        partial = self._incomplete(chunks) if self._most_partial < NO_LIMIT else 0
        while waiting.size and budget > 0 and len(running) + self._kept_seats < self._max_num_seqs:
            if partial >= self._most_partial:
                return
            request = waiting.head()
            if request.computed_tokens:
                if not self._restore(request):
                    return
                budget -= request.joined_step >= 0  # it decodes in this step
                continue
            if request.forks and not self._seats_for(request):
                return
            tokens = self._chunk(request.target_tokens, budget)
            grant = kv.reserve(request, tokens)
            if grant is None:
                return
            tokens = self._seat(request, tokens, grant)
            if request.computed_tokens + tokens < request.target_tokens:
                prefilling.append(request)
                partial += 1
            chunks.append((request, tokens))
            budget -= tokens

    def _incomplete(self, chunks: list[tuple[Request, int]]) -> int:
        """Prompts under way that these chunks do not complete."""
        planned = {request.id: tokens for request, tokens in chunks}
        left = (r.target_tokens - r.computed_tokens - planned.get(r.id, 0) for r in self._prefilling)
        return sum(tokens > 0 for tokens in left)
