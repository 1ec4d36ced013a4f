"""The copies between a GPU's prefix cache and the memory below it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sim.engine.events import Alarm, Clock
from sim.engine.link import Link, LinkRate
from sim.kv.tiered import Load, TieredKV, Write
from sim.request import Request
from sim.schedulers.base import Scheduler
from sim.step import Idle, StepPlan


@dataclass(frozen=True, slots=True)
class TierLinks:
    """What each tier reads and writes per second, fastest tier first, and the bytes of a block on all GPUs."""

    kv: TieredKV
    reads: Sequence[LinkRate]
    writes: Sequence[LinkRate]
    block_bytes: int


class TierTraffic:
    """Loads and writes of one replica. Steps go on meanwhile; every tier has a link for each direction.

    With prefetching, an arrival whose beginning a tier knows is kept from the queue until its load has ended, and
    others pass it; without, it waits in the queue, and those behind it wait as well. A load begins and takes effect
    where the replica plans; what is written can be loaded when the copy to the first tier has ended.
    """

    def __init__(self, env: Clock, scheduler: Scheduler, links: TierLinks, interrupt: Callable[[], None]) -> None:
        self._kv, self._scheduler, self._interrupt = links.kv, scheduler, interrupt
        self._reads = [Link(env, rate) for rate in links.reads]
        self._writes = [Link(env, rate) for rate in links.writes]
        self._block_bytes = links.block_bytes
        self._under_way: dict[Request, int] = {}  # copies of a load that have not ended
        self._ended: list[Load] = []  # they take effect with the next plan
        self._new: list[Request] = []  # arrivals since the last plan
        self.withheld: dict[int, Request] = {}
        """Requests that are not in the queue yet."""

    @property
    def busy(self) -> bool:
        """Whether a load is under way."""
        return bool(self._under_way)

    def withhold(self, request: Request) -> bool:
        """Whether an arrival is kept from the queue, because something of it may have to be loaded first."""
        if not self._kv.prefetch or not self._kv.is_stored(request):
            return False
        self.withheld[request.id] = request
        self._new.append(request)
        return True

    def withdraw(self, request: Request) -> bool:
        """A request is gone; whether it had been kept from the queue."""
        return self.withheld.pop(request.id, None) is not None

    def plan(self, now_ps: int) -> StepPlan | Idle:
        """The scheduler's plan, after the loads that have ended, and the copies that begin with it."""
        ended, self._ended = self._ended, []
        for load in ended:
            self._kv.end_load(load)
            self._enqueue(load.request)
        new, self._new = self._new, []
        for request in new:
            parts = self._kv.begin_load(request) if request.id in self.withheld else None
            if parts is None:
                self._enqueue(request)
            else:
                self._load(Load(request, parts))
        plan = self._scheduler.plan(now_ps)
        loads, self._kv.loads = self._kv.loads, []
        for load in loads:
            self._load(load)
        writes, self._kv.writes = self._kv.writes, []
        for write in writes:
            self._write(write)
        return plan

    def _enqueue(self, request: Request) -> None:
        if self.withdraw(request):
            self._scheduler.submit(request)

    def _load(self, load: Load) -> None:
        self._under_way[load.request] = sum(blocks > 0 for blocks in load.parts)
        for link, blocks in zip(self._reads, load.parts, strict=True):
            if blocks:
                link.send(load.request.id, blocks * self._block_bytes, lambda _: self._loaded(load))

    def _loaded(self, load: Load) -> None:
        self._under_way[load.request] -= 1
        if not self._under_way[load.request]:
            del self._under_way[load.request]
            self._ended.append(load)
            self._interrupt()

    def _write(self, write: Write) -> None:
        """What the first tier has already is not copied again, but counts as used just now."""
        blocks = self._kv.store.missing(write.prompt, write.end)
        if blocks:
            self._writes[0].send(write.request.id, blocks * self._block_bytes, lambda _: self._written(write))
        else:
            self._kv.store.put(write.prompt, write.end)

    def _written(self, write: Write) -> None:
        """What has to make room moves on; it can be read where it was until it has arrived."""
        received = self._kv.store.put(write.prompt, write.end)
        for link, blocks in zip(self._writes[1:], received[1:], strict=True):
            if blocks:
                link.send(write.request.id, blocks * self._block_bytes, _nothing)


def _nothing(_: Alarm) -> None:
    """A copy has ended that nobody waits for."""
