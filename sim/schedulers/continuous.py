"""Iteration-level scheduling (Orca, OSDI 2022), prefill first: the rule of vLLM V0 without chunked prefill."""

from __future__ import annotations

from collections.abc import Collection

from sim.batch import DecodeBatch
from sim.kv.base import GRANTED, Grant, KVAllocator
from sim.request import Request, State
from sim.schedulers.queue_order import FcfsQueue
from sim.schedulers.swap import Swap
from sim.step import DECODE, IDLE, Idle, StepPlan, Transfer


class ContinuousScheduler:
    """Requests join and leave between steps. Whole prompts go first and alone; the decodes stand still meanwhile.

    With `swap`, keys and values of preempted requests go to the host's memory while it has room.
    """

    drains_together = False

    def __init__(
        self,
        kv: KVAllocator,
        batch: DecodeBatch,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        swap: Swap | None = None,
    ) -> None:
        self._kv, self._batch = kv, batch
        self._max_num_seqs, self._max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self._waiting = FcfsQueue()
        self._running: dict[int, Request] = {}  # in order of admission
        self._swap = swap
        self._copies: list[Transfer] = []  # of the plan in the making
        self._loading: set[int] = set()  # running, but their keys and values are on the way

    @property
    def num_waiting(self) -> int:
        """Requests that are not admitted, preempted ones included."""
        return self._waiting.size

    @property
    def num_running(self) -> int:
        """Admitted requests, prefilling or decoding."""
        return len(self._running)

    def running(self) -> list[Request]:
        """Admitted requests in order of admission."""
        return list(self._running.values())

    def waiting(self) -> list[Request]:
        """Waiting requests, the next one first."""
        return list(self._waiting)

    def submit(self, request: Request) -> bool:
        """Ends the plan in force if the request is next, has a seat, and its prompt fits the blocks now free.

        Free blocks only get fewer while a plan lasts, and a plan ends whenever a request does.
        """
        waiting = self._waiting
        waiting.push(request)
        if waiting.size > 1 or len(self._running) >= self._max_num_seqs:
            return False
        return self._kv.can_reserve(request, self._first_chunk(request))

    def plan(self, now_ps: int) -> StepPlan | Idle:
        """Admit whole prompts if any fits; otherwise the running requests decode."""
        if self._waiting.size:
            chunks: list[tuple[Request, int]] = []
            self._admit(chunks, self._max_num_batched_tokens)
            if chunks or self._copies:
                return StepPlan(chunks, not chunks and self._batch.count > 0, transfers=self._take_copies())
        if not self._batch.count:
            return IDLE
        return self._under_pressure() if self._kv.shortage() else DECODE

    def ready(self, request: Request) -> None:
        """A running request is in the cache now and decodes."""
        self._loading.discard(request.id)
        if self._swap is not None:
            self._swap.pool.take(request)
        self._batch.join(request)
        self._kv.grow(request)

    def finish(self, request: Request) -> None:
        """The request's seat is free."""
        del self._running[request.id]
        if self._swap is not None:
            self._swap.pool.drop(request)

    def abort(self, request: Request) -> None:
        """A waiting request is gone."""
        self._waiting.discard()
        if self._swap is not None:
            self._swap.pool.drop(request)

    def _first_chunk(self, request: Request) -> int:
        """Tokens that must fit before a waiting request can be admitted."""
        return request.target_tokens

    def _admit(self, chunks: list[tuple[Request, int]], budget: int) -> None:
        kv, waiting, running = self._kv, self._waiting, self._running
        while waiting.size and len(running) < self._max_num_seqs:
            request = waiting.head()
            if request.computed_tokens:
                if not self._restore(request):
                    return
                continue
            tokens = request.target_tokens
            if tokens > budget and tokens - kv.find_cached(request) > budget:
                return
            grant = kv.reserve(request, tokens)
            if grant is None:
                return
            tokens = self._seat(request, tokens, grant)
            chunks.append((request, tokens))
            budget -= tokens

    def _restore(self, request: Request) -> bool:
        """Admit the head of the queue, whose keys and values are elsewhere; whether there is room."""
        copy = None if self._swap is None else self._swap.bring_in(request)
        if self._swap is None or copy is None:
            return False
        self._seat(request, 0, GRANTED)
        self._copies.append(copy)
        if self._swap.overlap:
            self._loading.add(request.id)
        else:
            self.ready(request)  # the step waits for the copy
        return True

    def _take_copies(self) -> list[Transfer]:
        copies, self._copies = self._copies, []
        return copies

    def _seat(self, request: Request, tokens: int, grant: Grant) -> int:
        """The head of the queue is admitted; the new tokens of its first chunk. What the cache holds is skipped."""
        self._waiting.pop()
        request.state = State.RUNNING
        self._running[request.id] = request
        if not grant.cached_tokens:
            return tokens
        request.computed_tokens = grant.cached_tokens
        if not request.preemptions:
            request.cached_tokens = grant.cached_tokens
        return min(tokens, request.target_tokens - grant.cached_tokens)

    def _under_pressure(self) -> StepPlan:
        """A step of the decodes after preempting; empty when nobody may be preempted and blocks are still short."""
        preempted = self._make_room()
        decodes = self._batch.count > 0 and not self._kv.shortage()
        return StepPlan((), decodes, preempted, transfers=self._take_copies())

    def _make_room(self) -> list[Request]:
        """Preempt newest-first until the next token of every decode has a block, or will once copies have ended."""
        preempted: list[Request] = []
        while self._kv.shortage() > self._kv.parked_blocks:
            victim = self._newest()
            if victim is None:
                break
            self._preempt(victim)
            preempted.append(victim)
        return preempted

    def _newest(self, spared: Collection[int] = ()) -> Request | None:
        """The running request admitted last that is here, not `spared`, and whose last token is not in flight."""
        for request in reversed(self._running.values()):
            if request.id in spared or request.id in self._loading or self._batch.last_token_in_flight(request):
                continue
            return request
        return None

    def _preempt(self, victim: Request) -> None:
        """Back to the front of the queue, to be swapped in again or recomputed: prompt and what was emitted."""
        del self._running[victim.id]
        copy = None
        if victim.joined_step >= 0:
            self._batch.leave(victim, self._batch.steps)
            copy = None if self._swap is None else self._swap.out(victim)
        if copy is not None:
            self._copies.append(copy)
        else:
            self._kv.release(victim)
            victim.computed_tokens = 0
            victim.target_tokens = victim.prompt_tokens + victim.emitted_tokens
        victim.preemptions += 1
        victim.state = State.WAITING
        self._waiting.push_front(victim)
