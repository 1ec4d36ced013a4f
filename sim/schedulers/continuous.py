"""Iteration-level scheduling of whole prompts: Orca (OSDI 2022), and vLLM V0 without chunked prefill."""

from __future__ import annotations

from typing import Literal, Unpack

from sim.batch import DecodeBatch
from sim.kv.base import KVAllocator
from sim.request import Request
from sim.schedulers.seats import SeatedScheduler, Seats
from sim.step import IDLE, Idle, StepPlan


class ContinuousScheduler(SeatedScheduler):
    """Requests join and leave between steps, with whole prompts; by default these go first and alone.

    `priority` says who comes first, `mixed` whether prompts and decodes may share a step. prefill, separate: vLLM V0.
    decode, mixed: Orca, and the in-flight batching of TensorRT-LLM without chunked context. decode, separate: a new
    batch is admitted when nobody decodes any more. prefill, mixed: decodes ride along where the budget has a token
    left for each of them.
    """

    def __init__(
        self,
        kv: KVAllocator,
        batch: DecodeBatch,
        *,
        priority: Literal["prefill", "decode"] = "prefill",
        mixed: bool = False,
        **seats: Unpack[Seats],
    ) -> None:
        super().__init__(kv, batch, **seats)
        self._decodes_first, self._mixed = priority == "decode", mixed

    def submit(self, request: Request) -> bool:
        """As everywhere; False while decodes go first and keep the step to themselves."""
        fits = super().submit(request)
        return fits and not (self._decodes_first and not self._mixed and self._batch.count)

    def plan(self, now_ps: int) -> StepPlan | Idle:
        """The next step, by who comes first."""
        if self._accounts is not None:
            self._accounts.settle(self._batch.steps)
        if self._decodes_first and self._batch.count:
            return self._around_decodes() if self._mixed else self._decode()
        if self._waiting.size:
            chunks: list[tuple[Request, int]] = []
            left = self._admit(chunks, self._max_num_batched_tokens)
            if chunks or self._copies:
                ride = not chunks or (self._mixed and (self._decodes_first or self._batch.rows <= left))
                return StepPlan(chunks, ride and self._batch.count > 0, transfers=self._take_copies())
        return self._decode() if self._batch.count else IDLE

    def _around_decodes(self) -> StepPlan:
        """Every decode takes a token; prompts get the rest of the budget, unless somebody had to be preempted."""
        decodes = self._decode()
        if decodes.preempted or not decodes.decodes or not self._waiting.size:
            return decodes
        chunks: list[tuple[Request, int]] = []
        self._admit(chunks, self._max_num_batched_tokens - self._batch.rows)
        return StepPlan(chunks, transfers=self._take_copies()) if chunks or self._copies else decodes

    def _admit(self, chunks: list[tuple[Request, int]], budget: int) -> int:
        """Whole prompts in order while there is budget, a seat and room; the budget that is left."""
        kv, waiting, running = self._kv, self._waiting, self._running
        while waiting.size and len(running) + self._kept_seats < self._max_num_seqs:
            request = waiting.head()
            if request.computed_tokens:
                if not self._restore(request):
                    break
                if self._decodes_first:
                    budget -= request.joined_step >= 0  # it decodes in this step
                continue
            if request.forks and not self._seats_for(request):
                break
            tokens = request.target_tokens
            if tokens > budget and tokens - kv.find_cached(request) > budget:
                break
            grant = kv.reserve(request, tokens)
            if grant is None:
                break
            tokens = self._seat(request, tokens, grant)
            chunks.append((request, tokens))
            budget -= tokens
        return budget
