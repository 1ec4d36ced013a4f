"""A link that concurrent transfers share: PCIe, NVLink, a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush

from sim.engine.events import COMPLETION, LINK, Alarm, Clock
from sim.units import PS_PER_S, ceil_div


@dataclass(frozen=True, slots=True)
class LinkRate:
    """One direction of a link: whole bytes per second, and the delay that every transfer has besides."""

    bytes_per_s: int
    latency_ps: int = 0

    def duration_ps(self, bytes_: int) -> int:
        """A transfer that has the link to itself."""
        return self.latency_ps + ceil_div(bytes_ * PS_PER_S, self.bytes_per_s)


class Link:
    """Processor sharing: n transfers under way have an n-th of the bandwidth each; the latency comes after.

    All of them receive the same, so one clock of service (in 1e-12 bytes) tells when each has had its share: a start
    or an end costs O(log n). Between two of these every transfer receives `bytes_per_s * elapsed_ps // n`.
    """

    def __init__(self, env: Clock, rate: LinkRate) -> None:
        self._env, self._rate = env, rate
        self._service = self._at_ps = 0  # received by each since the beginning, as of the last start or end
        # Service at the end, request, serial number, who is told.
        self._ends: list[tuple[int, int, int, Callable[[Alarm], None]]] = []
        self._serial = 0
        self._alarm: Alarm | None = None

    def send(self, id_: int, bytes_: int, done: Callable[[Alarm], None], delay_ps: int = 0) -> None:
        """A transfer for a request begins `delay_ps` from now; `done` is called when it has arrived."""
        if delay_ps:
            Alarm(self._env, LINK, delay_ps, lambda _: self.send(id_, bytes_, done))
            return
        self._serve()
        self._serial += 1
        heappush(self._ends, (self._service + bytes_ * PS_PER_S, id_, self._serial, done))
        self._sleep()

    def _serve(self) -> None:
        now: int = self._env.now  # type: ignore[assignment]
        if self._ends:
            self._service += self._rate.bytes_per_s * (now - self._at_ps) // len(self._ends)
        self._at_ps = now

    def _sleep(self) -> None:
        """Until the transfer that ends first, if no other one starts before."""
        self._alarm = None
        if self._ends:
            left = max(0, self._ends[0][0] - self._service)
            delay = ceil_div(left * len(self._ends), self._rate.bytes_per_s)
            self._alarm = Alarm(self._env, LINK, delay, self._wake)

    def _wake(self, alarm: Alarm) -> None:
        if alarm is not self._alarm:
            return  # others have come since
        self._serve()
        while self._ends and self._ends[0][0] <= self._service:
            _, id_, _, done = heappop(self._ends)
            Alarm(self._env, COMPLETION + id_, self._rate.latency_ps, done)
        self._sleep()
