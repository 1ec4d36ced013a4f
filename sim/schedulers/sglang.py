"""The rule of SGLang's scheduler (managers/scheduler.py, schedule_policy.py, schedule_batch.py of 0.4; from memory)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Unpack

from pydantic import Field

from sim.batch import DecodeBatch
from sim.kv.base import KVAllocator
from sim.request import Request
from sim.schedulers.future_tokens import FutureTokens
from sim.schedulers.queue_order import FcfsQueue
from sim.schedulers.seats import SeatedScheduler, Seats
from sim.step import DECODE, IDLE, Idle, StepPlan

INITIAL_RATIO = 0.7
"""SGLANG_INIT_NEW_TOKEN_RATIO: the share of what running requests may still emit that is kept free for them."""
LEAST_RATIO_FACTOR = 0.14
RATIO_DECAY_STEPS = 600
RETRACT_DECODE_STEPS = 20
"""After a retraction there is room for this many tokens of every remaining decode."""
MOST_NEW_TOKENS = 4096
"""CLIP_MAX_NEW_TOKENS: an answer is never expected to need more than this, whatever the client allows."""


class SglangScheduler(SeatedScheduler):
    """Prompts first, in chunks, and one at a time left incomplete; decodes apart from them unless `mixed`.

    A request is admitted if it and a share of what the running ones may still emit fit in memory: optimism that falls
    slowly while all goes well and is taken back when decodes run short and some have to be retracted. Nobody is looked
    at after a refusal until somebody leaves (`batch_is_full`). `schedule_conservativeness` scales the share.
    `max_num_batched_tokens` is SGLang's `chunked_prefill_size`.
    """

    def __init__(
        self,
        kv: KVAllocator,
        batch: DecodeBatch,
        *,
        mixed: bool = False,
        schedule_conservativeness: Annotated[float, Field(ge=0, le=1e6)] = 1.0,
        **seats: Unpack[Seats],
    ) -> None:
        super().__init__(kv, batch, **seats)
        self._mixed = mixed
        self._ratio = _NewTokenRatio(min(INITIAL_RATIO * schedule_conservativeness, 1.0))
        self._future = FutureTokens(MOST_NEW_TOKENS)
        self._full = False  # somebody was refused, and nobody has left since
        self._partial: Request | None = None  # the prompt under way
        self._completing: list[Request] = []  # the last plan held their last chunks
        self._mixed_steps = 0  # decode steps that had chunks beside them

    def submit(self, request: Request) -> bool:
        """Ends the plan in force unless the batch is full: whether it is, is found out by a plan."""
        self._waiting.push(request)
        return not self._full

    def plan(self, now_ps: int) -> StepPlan | Idle:
        """Prompts if any can go on or be admitted, else the decodes."""
        if self._accounts is not None:
            self._accounts.settle(self._batch.steps)
        self._note_decoding()
        chunks = self._prefill() if self._partial or (self._waiting.size and not self._full) else []
        if chunks:
            decodes = self._mixed and self._batch.count > 0
            self._mixed_steps += decodes
            return StepPlan(chunks, decodes)
        if not self._running:
            self._ratio.reset(self._steps_alone)
            return IDLE
        return self._retract() if self._kv.shortage() else DECODE

    def finish(self, request: Request) -> None:
        """There may be room for somebody now."""
        super().finish(request)
        self._forget(request)

    def _preempt(self, victim: Request) -> None:
        super()._preempt(victim)
        self._forget(victim)

    def _requeue(self, victim: Request) -> None:
        if isinstance(self._waiting, FcfsQueue):
            self._waiting.push(victim)  # at the end, where SGLang puts them
        else:
            self._waiting.push_front(victim)

    def _forget(self, request: Request) -> None:
        self._future.discard(request.id)
        self._full = False
        if request is self._partial:
            self._partial = None

    def _note_decoding(self) -> None:
        for request in self._completing:
            if request.joined_step >= 0:
                self._future.add(request.id, request.joined_step + _left_to_emit(request))
        self._completing.clear()

    @property
    def _steps_alone(self) -> int:
        """Decode steps that had no chunks beside them."""
        return self._batch.steps - self._mixed_steps

    def _prefill(self) -> list[tuple[Request, int]]:
        """Chunks of the prompt under way and of new ones; room is counted as it is at the beginning of the plan."""
        kv, riding = self._kv, self._batch.count if self._mixed else 0
        room = kv.free_blocks * kv.block_tokens - riding - self._ratio.at(self._steps_alone) * self._expected()
        budget, claimed = self._max_num_batched_tokens - riding, 0
        chunks: list[tuple[Request, int]] = []
        if self._partial is not None:
            tokens = min(budget, self._partial.target_tokens - self._partial.computed_tokens)
            if tokens < 1 or kv.reserve(self._partial, tokens) is None:
                return chunks
            claimed = self._chunk(chunks, self._partial, tokens)
            budget -= tokens
        while self._waiting.size and budget > 0 and self._partial is None and not self._full:
            request = self._waiting.head()
            tokens = self._admit(request, budget, room - claimed)
            if tokens:
                claimed += self._chunk(chunks, request, tokens)
                budget -= tokens
        return chunks

    def _expected(self) -> int:
        """What the decoding requests may still emit."""
        return self._future.total(self._batch.steps)

    def _admit(self, request: Request, budget: int, room: float) -> int:
        """The tokens of the first chunk of the head of the queue; 0 if it is refused, and then the batch is full."""
        missing = request.target_tokens - self._kv.find_cached(request)
        fits = not self._running or missing + min(_left_to_emit(request), MOST_NEW_TOKENS) < room
        if fits and len(self._running) < self._max_num_seqs:
            tokens = min(missing, budget)
            grant = self._kv.reserve(request, tokens)
            if grant is not None:
                return self._seat(request, tokens, grant)
        self._full = True
        return 0

    def _chunk(self, chunks: list[tuple[Request, int]], request: Request, tokens: int) -> int:
        """One more chunk of this plan; the tokens of memory that it claims."""
        chunks.append((request, tokens))
        if request.computed_tokens + tokens < request.target_tokens:
            self._partial = request
            return tokens
        self._partial = None
        self._completing.append(request)
        return tokens + min(_left_to_emit(request), MOST_NEW_TOKENS)

    def _retract(self) -> StepPlan:
        """A step of the decodes after some of them have gone back to the queue, and if need be the prompt under way."""
        retracted = list(self._retractions())
        preempted = [*retracted]
        if self._kv.shortage() and self._partial is not None:
            preempted.append(self._partial)
            self._preempt(self._partial)
        decodes = self._batch.count > 0 and not self._kv.shortage()
        if retracted:
            self._ratio.raise_to(self._decoding_ratio(), self._steps_alone + decodes)
        return StepPlan((), decodes, preempted)

    def _retractions(self) -> Iterator[Request]:
        """Retract those who have emitted least until the rest have blocks, and room for some steps more."""
        kv, batch = self._kv, self._batch
        members = [r for r in self._running.values() if r.joined_step >= 0 and not batch.last_token_in_flight(r)]
        members.sort(key=lambda r: (r.emitted_tokens - r.joined_step, -r.prompt_tokens, -r.id))
        for retracted, victim in enumerate(members):
            headroom = kv.free_blocks * kv.block_tokens - RETRACT_DECODE_STEPS * batch.count
            if batch.count == 1 or (retracted and not kv.shortage() and headroom >= 0):
                return
            self._preempt(victim)
            yield victim

    def _decoding_ratio(self) -> float:
        """The share of their longest outputs that the decoding requests will have emitted some steps from now."""
        members = [r for r in self._running.values() if r.joined_step >= 0]
        emitted = sum(r.emitted_tokens + self._batch.steps - r.joined_step for r in members)
        most = sum(r.max_output_tokens for r in members)
        return min(1.0, (emitted + RETRACT_DECODE_STEPS * len(members)) / most) if members else 1.0


class _NewTokenRatio:
    """Falls by the same amount per step of the decodes alone, in closed form, from `start` to a floor."""

    def __init__(self, start: float) -> None:
        self._start, self._floor = start, start * LEAST_RATIO_FACTOR
        self._decay = (start - self._floor) / RATIO_DECAY_STEPS
        self._base, self._since = start, 0

    def at(self, steps: int) -> float:
        """The ratio once so many steps are done."""
        return max(self._base - (steps - self._since) * self._decay, self._floor)

    def raise_to(self, ratio: float, steps: int) -> None:
        """From this step count on, it falls from another value."""
        self._base, self._since = ratio, steps

    def reset(self, steps: int) -> None:
        """An idle server is as cautious as a new one."""
        self.raise_to(self._start, steps)


def _left_to_emit(request: Request) -> int:
    return request.max_output_tokens - request.emitted_tokens
