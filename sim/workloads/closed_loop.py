"""Traffic at the server's own pace: clients that wait for their answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from sim.errors import ConfigError
from sim.request import Request
from sim.units import to_ps
from sim.workloads.arrivals import ClosedLoop
from sim.workloads.sizes import RequestRows, Row


class ClosedLoopClients:
    """`loop.concurrency` clients, each with at most one request in flight.

    Request k has the same lengths whichever client sends it, so they do not depend on the order of events. Stops once
    `num_requests` were sent, and sends nothing at or after `duration_s`. Iterating starts a new run.
    """

    def __init__(
        self,
        loop: ClosedLoop,
        sizes: RequestRows,
        *,
        seed: int = 0,
        num_requests: int | None = None,
        duration_s: float | None = None,
    ) -> None:
        if num_requests is None and duration_s is None:
            raise ConfigError("say after how many requests this traffic ends", key="num_requests")
        self.loop, self.sizes, self.seed, self.duration_s = loop, sizes, seed, duration_s
        self.num_requests = num_requests if duration_s is None else None
        self.notes: tuple[str, ...] = sizes.notes
        self.has_prefixes = sizes.has_prefixes
        self._limit = num_requests
        self._think_ps = to_ps(loop.think_time_s)
        self._until_ps = None if duration_s is None else to_ps(duration_s)
        self._rows = self._numbered_rows()

    def __iter__(self) -> Iterator[Request]:
        self._rows = self._numbered_rows()
        return iter([Request(number, 0, *row) for number, row in islice(self._rows, self.loop.concurrency)])

    def on_finish(self, request: Request, now_ps: int) -> Iterable[Request]:
        """The client's next request, after its think time, unless the traffic is over."""
        at_ps = now_ps + self._think_ps
        if self._until_ps is not None and at_ps >= self._until_ps:
            return []
        return [Request(number, at_ps, *row) for number, row in islice(self._rows, 1)]

    def describe(self) -> dict[str, Any]:
        """The clients and mean lengths in tokens; there is no arrival rate to state."""
        return {
            "arrival": self.loop.model_dump(mode="json"),
            "mean_rate": None,
            "num_requests": self._limit,
            "duration_s": self.duration_s,
            **self.sizes.describe(),
        }

    def _numbered_rows(self) -> Iterator[tuple[int, Row]]:
        return islice(enumerate(self.sizes.rows(self.seed)), self._limit)
