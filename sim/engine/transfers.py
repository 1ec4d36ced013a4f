"""Keys and values on the move: what a replica's copies delay, and who goes on when they have arrived."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from sim.batch import DecodeBatch
from sim.engine.events import Alarm, Clock
from sim.engine.lifecycle import EndHandler, Lifecycle
from sim.engine.link import Link, LinkRate
from sim.engine.recorder import Recorder
from sim.kv.base import KVAllocator
from sim.request import RUNNING, Request
from sim.schedulers.base import Scheduler
from sim.step import HANDOFF, NO_LIMIT, OUT, Transfer


class Carrier(Protocol):
    """What carries copies while steps go on."""

    def send(self, id_: int, bytes_: int, done: Callable[[Alarm], None], delay_ps: int = 0) -> None:
        """A copy for a request begins `delay_ps` from now; `done` is called when it has arrived."""
        ...


class Transfers(Lifecycle, ABC):
    """The copies of one replica. With `overlap` they share links while steps go on; else the next step waits.

    A copy that ends takes effect at the first boundary at or after that, or at once when nothing is planned.
    """

    __slots__ = ("_arrived", "_links", "_rates", "_rejoined", "_stall_ps", "stalled_ps")

    def __init__(
        self,
        index: int,
        scheduler: Scheduler,
        kv: KVAllocator,
        batch: DecodeBatch,
        recorder: Recorder,
        ended: EndHandler,
    ) -> None:
        super().__init__(index, scheduler, kv, batch, recorder, ended)
        self._rates: Mapping[str, LinkRate] = {}
        self._links: dict[str, Carrier] = {}  # a kind without one: the next step waits for the copies
        self._arrived: list[Transfer] = []  # they take effect at the next boundary
        self._rejoined: list[Request] = []  # they decode again, from the next decode step on
        self._stall_ps = 0  # by so much the next step is delayed
        self.stalled_ps = 0
        """Time in which requests ran but no step could, because of copies."""

    def connect(self, env: Clock, rates: Mapping[str, LinkRate], overlap: bool) -> None:
        """Links of the replica's own, by the kind of transfer that they carry."""
        self._rates = rates
        self._links = {kind: Link(env, rate) for kind, rate in rates.items()} if overlap else {}

    def receive_over(self, link: Carrier) -> None:
        """Prompts that other replicas have computed come over a link that is not this replica's alone."""
        self._links[HANDOFF] = link

    @property
    def _loading(self) -> bool:
        return self._tiers is not None and self._tiers.busy

    def _copy(self, transfers: Sequence[Transfer], start_ps: int, now: int) -> None:
        """The copies of a plan: they begin when its step does, or delay it. Different links work side by side."""
        sizes: dict[str, int] = {}
        for transfer in transfers:
            request, bytes_, kind = transfer
            link = self._links.get(kind)
            if link is not None:
                self._copying[request.id] = transfer
                link.send(request.id, bytes_, lambda _, t=transfer: self._copied(t), start_ps - now)  # type: ignore[misc]
                continue
            sizes[kind] = sizes.get(kind, 0) + bytes_
            if kind != OUT:
                self._rejoin(request)
        delay = max((self._rates[kind].duration_ps(size) for kind, size in sizes.items()), default=0)
        self._stall_ps += delay
        self.stalled_ps += delay

    @abstractmethod
    def _copied(self, transfer: Transfer) -> None:
        """A copy has ended."""

    def _deliver(self) -> None:
        """What has arrived takes effect: blocks are free, or a request that runs decodes again."""
        arrived, self._arrived = self._arrived, []
        for transfer in arrived:
            request = transfer.request
            del self._copying[request.id]
            if transfer.kind != OUT and request.state is RUNNING:
                self._scheduler.ready(request)
                self._rejoin(request)
            else:
                self._kv.release(request)

    def _rejoin(self, request: Request) -> None:
        """The scheduler has joined a request to the batch; its next token comes with the next decode step."""
        steps = self._batch.steps
        request._finish_step = last = steps + request._output_tokens - request.emitted_tokens
        heapq.heappush(self._finishes, (last, request.id, request.preemptions, request))
        request.segment_step = steps + 1
        request.segment_start_ps = NO_LIMIT  # until that step is planned
        self._rejoined.append(request)

    def _note_rejoined(self, first_step_ps: int) -> None:
        """The first decode step since `_rejoin` starts at `_start` and lasts `first_step_ps`."""
        for request in self._rejoined:
            if request.joined_step >= 0 and request.segment_start_ps == NO_LIMIT:
                request.segment_start_ps = self._start + first_step_ps
                self._note_scheduled(request)
        self._rejoined.clear()
