"""Request-level batching with a deadline: the dynamic batcher of Triton Inference Server and of Clipper (NSDI 2017)."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Annotated, Unpack

from pydantic import Field

from sim.batch import DecodeBatch
from sim.kv.base import KVAllocator
from sim.request import Request, State
from sim.schedulers.seats import Seats
from sim.schedulers.static import StaticScheduler
from sim.step import Idle, StepPlan
from sim.units import to_ps


class DynamicScheduler(StaticScheduler):
    """Waits for `max_batch_size` requests, but lets nobody wait longer than `max_wait_ms` while the GPU is idle.

    `max_batch_size` defaults to `max_num_seqs`, which also bounds it. 0 ms is static batching.
    """

    def __init__(
        self,
        kv: KVAllocator,
        batch: DecodeBatch,
        *,
        max_wait_ms: Annotated[float, Field(ge=0, le=1e9)] = 10.0,
        max_batch_size: Annotated[int, Field(ge=1)] | None = None,
        padding: bool = True,
        **seats: Unpack[Seats],
    ) -> None:
        super().__init__(kv, batch, padding=padding, **seats)
        self._max_wait_ps = to_ps(max_wait_ms / 1e3)
        self._size = min(max_batch_size or self._max_num_seqs, self._max_num_seqs)
        self._ages: list[tuple[int, int, int, Request]] = []  # who has waited, by (arrival, id, preemptions)

    def submit(self, request: Request) -> bool:
        """Nobody joins a batch under way; an idle replica looks whether there are enough now."""
        self._note_age(request)
        return super().submit(request)

    def plan(self, now_ps: int) -> StepPlan | Idle:
        """The batch under way, or a new one if it is full or somebody has waited long enough."""
        if self._accounts is not None:
            self._accounts.settle(self._batch.steps)
        if not self._running and 0 < self._waiting.size < self._size:
            deadline_ps = self._oldest().arrival_ps + self._max_wait_ps
            if now_ps < deadline_ps:
                return Idle(deadline_ps)
        return super().plan(now_ps)

    def _requeue(self, victim: Request) -> None:
        self._note_age(victim)
        super()._requeue(victim)

    def _note_age(self, request: Request) -> None:
        heappush(self._ages, (request.arrival_ps, request.id, request.preemptions, request))

    def _oldest(self) -> Request:
        """Of those who wait, whoever arrived first."""
        while self._ages[0][-1].state is not State.WAITING:
            heappop(self._ages)
        return self._ages[0][-1]
