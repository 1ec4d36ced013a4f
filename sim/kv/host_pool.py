"""Host memory that keys and values are swapped to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from sim.request import Request


@dataclass(slots=True)
class SwapTotals:
    """What was swapped over a run. Bytes that went out came in again, or were dropped, or are still there."""

    swaps: int = 0
    swapped_out_bytes: int = 0
    swapped_in_bytes: int = 0
    dropped_bytes: int = 0
    """Of requests that ended while they were swapped out."""
    host_full: int = 0
    """Victims that were recomputed because the host had no room."""


class HostPool:
    """Room for a number of bytes; requests come and go whole."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes, self.used_bytes = capacity_bytes, 0
        self.totals = SwapTotals()
        self._held: dict[int, int] = {}

    def put(self, request: Request, bytes_: int) -> bool:
        """A request is swapped out; False: it does not fit, and nothing has changed."""
        if self.used_bytes + bytes_ > self.capacity_bytes:
            self.totals.host_full += 1
            return False
        self._held[request.id] = bytes_
        self.used_bytes += bytes_
        self.totals.swaps += 1
        self.totals.swapped_out_bytes += bytes_
        return True

    def size(self, request: Request) -> int:
        """Bytes that it holds of a request."""
        return self._held.get(request.id, 0)

    def take(self, request: Request) -> None:
        """A request has been swapped in."""
        self.totals.swapped_in_bytes += self._free(request)

    def drop(self, request: Request) -> None:
        """A request has ended; what is held of it, if anything, is of no use any more."""
        self.totals.dropped_bytes += self._free(request)

    def _free(self, request: Request) -> int:
        bytes_ = self._held.pop(request.id, 0)
        self.used_bytes -= bytes_
        return bytes_


def swap_totals(pools: Iterable[HostPool]) -> dict[str, int]:
    """The totals of several replicas together, and what is still on their hosts."""
    pools = list(pools)
    totals = [asdict(pool.totals) for pool in pools]
    return {name: sum(each[name] for each in totals) for name in totals[0]} | {
        "held_bytes": sum(pool.used_bytes for pool in pools)
    }
