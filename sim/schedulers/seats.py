"""What iteration-level policies have in common: a queue, seats, admission and preemption."""

from __future__ import annotations

from collections.abc import Collection
from heapq import heappop, heappush
from typing import Literal, Required, TypedDict

from sim.batch import DecodeBatch
from sim.kv.base import GRANTED, Grant, KVAllocator
from sim.request import RUNNING, WAITING, Request
from sim.schedulers.fair_share import FairShareQueue
from sim.schedulers.mover import Mover
from sim.schedulers.queue_order import FcfsQueue, Queue
from sim.step import DECODE, StepPlan, Transfer

Victim = Literal["newest", "lowest_priority"]
"""Who gives way when memory is short: who was admitted last, or who has the largest (priority, arrival, id)."""


class Seats(TypedDict, total=False):
    """Arguments that every scheduler takes; its own come before them in its constructor."""

    max_num_seqs: Required[int]
    max_num_batched_tokens: Required[int]
    queue: Queue
    preemption_victim: Victim
    mover: Mover | None


class SeatedScheduler:
    """Requests take one of `max_num_seqs` seats, keep it until they end, and lose it when memory runs short.

    A policy adds `plan`. It calls `_settle` first, admits with `_seat` what the allocator has granted room, and calls
    `_make_room` before a step of the decodes when the allocator reports a shortage. With a `mover`, it calls `_restore`
    for waiting requests with computed tokens, and hands over `_take_copies` with its plan.
    """

    drains_together = False

    def __init__(
        self,
        kv: KVAllocator,
        batch: DecodeBatch,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        queue: Queue | None = None,
        preemption_victim: Victim = "newest",
        mover: Mover | None = None,
    ) -> None:
        self._kv, self._batch = kv, batch
        self._max_num_seqs, self._max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self._waiting: Queue = FcfsQueue() if queue is None else queue
        self._accounts = queue if isinstance(queue, FairShareQueue) else None
        self._running: dict[int, Request] = {}  # in order of admission; sequences that forked when they begin
        self.num_running = 0
        """Admitted requests, prefilling or decoding. Kept beside them, because it is read for every plan."""
        self._kept_seats = 0  # for sequences that begin when the prompt of a running request is complete
        self._mover = mover
        self._copies: list[Transfer] = []  # of the plan in the making
        self._loading: set[int] = set()  # running, but their keys and values are on the way
        # By rank, the lowest first: (-priority, -arrival, -id, preemptions when it was admitted, request).
        self._ranks: list[tuple[int, int, int, int, Request]] | None = None if preemption_victim == "newest" else []

    @property
    def num_waiting(self) -> int:
        """Requests that are not admitted, preempted ones included."""
        return self._waiting.size

    def running(self) -> list[Request]:
        """Admitted requests in order of admission."""
        return list(self._running.values())

    def waiting(self) -> list[Request]:
        """Waiting requests, the next one first."""
        return list(self._waiting)

    def submit(self, request: Request) -> bool:
        """Ends the plan in force if the request is next, has a seat, and its prompt fits the blocks now free.

        Free blocks only get fewer while a plan lasts, and a plan ends whenever a request does. Who was next before and
        could not be admitted still cannot.
        """
        if not self._waiting.push(request) or len(self._running) >= self._max_num_seqs:
            return False
        return self._kv.can_reserve(request, self._first_chunk(request))

    def ready(self, request: Request) -> None:
        """A running request is in the cache now and decodes."""
        self._loading.discard(request.id)
        if self._mover is not None:
            self._mover.arrived(request)
        self._batch.join(request)
        self._kv.grow(request)

    def fork(self, child: Request) -> None:
        """The child is the one admitted last, in a seat that was kept for it."""
        self._kept_seats -= 1
        self._running[child.id] = child
        self.num_running += 1
        if self._ranks is not None:
            heappush(self._ranks, _rank(child))
        if self._accounts is not None:
            self._accounts.forked(child)

    def finish(self, request: Request) -> None:
        """The request's seat is free, and those that were kept for its forks."""
        self._kept_seats -= request.forks
        del self._running[request.id]
        self.num_running -= 1
        if self._mover is not None:
            self._mover.gone(request)
        if self._accounts is not None:
            self._accounts.ended(request)

    def abort(self, request: Request) -> None:
        """A waiting request is gone."""
        self._waiting.discard(request)
        if self._mover is not None:
            self._mover.gone(request)

    def _seats_for(self, request: Request) -> bool:
        """Whether there is a seat for every sequence of a waiting request."""
        return len(self._running) + self._kept_seats + request.forks < self._max_num_seqs

    def _first_chunk(self, request: Request) -> int:
        """Tokens that must fit before a waiting request can be admitted."""
        return request.target_tokens

    def _seat(self, request: Request, tokens: int, grant: Grant) -> int:
        """The head of the queue is admitted; the new tokens of its first chunk. What the cache holds is skipped."""
        self._waiting.pop()
        request.state = RUNNING
        self._running[request.id] = request
        self._kept_seats += request.forks
        self.num_running += 1
        if self._ranks is not None:
            heappush(self._ranks, _rank(request))
        if not grant.cached_tokens:
            return tokens
        request.computed_tokens = grant.cached_tokens
        if not request.preemptions:
            request.cached_tokens = grant.cached_tokens
        return min(tokens, request.target_tokens - grant.cached_tokens)

    def _restore(self, request: Request) -> bool:
        """Admit the head of the queue, whose keys and values are elsewhere; whether there is room."""
        copy = None if self._mover is None else self._mover.bring_in(request)
        if self._mover is None or copy is None:
            return False
        self._seat(request, 0, GRANTED)
        self._copies.append(copy)
        if self._mover.delays_step(copy):
            self.ready(request)
        else:
            self._loading.add(request.id)
        return True

    def _take_copies(self) -> list[Transfer]:
        copies, self._copies = self._copies, []
        return copies

    def _decode(self) -> StepPlan:
        """A step of the decodes; it preempts if it must, and is empty if blocks are still short."""
        if not self._kv.shortage():
            return DECODE
        preempted = self._make_room()
        decodes = self._batch.count > 0 and not self._kv.shortage()
        return StepPlan((), decodes, preempted, transfers=self._take_copies())

    def _make_room(self) -> list[Request]:
        """Preempt until the next token of every decode has a block, or will once copies have ended.

        Or until nobody may be preempted.
        """
        preempted: list[Request] = []
        while self._kv.shortage() > self._kv.parked_blocks:
            victim = self._victim()
            if victim is None:
                break
            self._preempt(victim)
            preempted.append(victim)
        return preempted

    def _victim(self, spared: Collection[int] = ()) -> Request | None:
        """The running request that gives way.

        Not one that is `spared`, nor one whose last token is in flight, nor one that is still on its way here.
        """
        if self._ranks is not None:
            return self._lowest(self._ranks, spared)
        for request in reversed(self._running.values()):
            if self._may_go(request, spared):
                return request
        return None

    def _may_go(self, request: Request, spared: Collection[int]) -> bool:
        away = request.id in spared or request.id in self._loading
        return not away and not self._batch.last_token_in_flight(request)

    def _lowest(self, ranks: list[tuple[int, int, int, int, Request]], spared: Collection[int]) -> Request | None:
        passed, found = [], None
        while ranks and found is None:
            *_, admission, request = entry = heappop(ranks)
            if request.id not in self._running or request.preemptions != admission:
                continue  # left behind by an end or a preemption
            passed.append(entry)
            if self._may_go(request, spared):
                found = request
        for entry in passed:
            heappush(ranks, entry)
        return found

    def _preempt(self, victim: Request) -> None:
        """Back to the queue, to be swapped in again, or to be recomputed: prompt and what was emitted."""
        self._kept_seats -= victim.forks
        del self._running[victim.id]
        self.num_running -= 1
        copy = None
        if victim.joined_step >= 0:
            self._batch.leave(victim, self._batch.steps)
            copy = None if self._mover is None else self._mover.out(victim)
        if copy is not None:
            self._copies.append(copy)
        else:
            self._kv.release(victim)
            victim.computed_tokens = 0
            victim.target_tokens = victim.prompt_tokens + victim.emitted_tokens
        victim.preemptions += 1
        victim.state = WAITING
        self._requeue(victim)

    def _requeue(self, victim: Request) -> None:
        """To the front, or to its place in the order."""
        self._waiting.push_front(victim)


def _rank(request: Request) -> tuple[int, int, int, int, Request]:
    return -request.traits.priority, -request.arrival_ps, -request.id, request.preemptions, request
