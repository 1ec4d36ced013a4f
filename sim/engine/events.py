"""The one event type of the engine: at a time, with a rank inside that instant.

Two modes of execution (leaping and single-stepping) insert events in different orders, so insertion order must never
decide anything. Every event carries a rank that does: ends of steps by replica, then what links do, then arrivals by
request, ends of copies by request, client time-outs by request, plans by replica.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush

import simpy
from simpy.events import Event

# Ranks are SimPy priorities; the lower goes first. Request ids stay below 1 << 40.
STOP = -(1 << 60)
BOUNDARY = -(1 << 50)  # + replica
LINK = -(1 << 40)  # nothing but the link's own books
ARRIVAL = 0  # + request id
COMPLETION = 1 << 42  # + request id
TIMEOUT = 1 << 45  # + request id
PLAN = 1 << 50  # + replica


class Alarm(Event):
    """Calls back `delay` picoseconds from now, at its rank within that instant."""

    _ok, _value = True, None  # of the class: an alarm cannot fail and carries nothing

    def __init__(self, env: simpy.Environment, rank: int, delay_ps: int, callback: Callable[[Alarm], None]) -> None:
        # As simpy.Timeout and Environment.schedule do together, but with a rank of our own in place of the priority
        # that is common to all timeouts, and without the call: this runs several times per request.
        self.callbacks = (callback,)  # type: ignore[assignment]
        heappush(env._queue, (env._now + delay_ps, rank, next(env._eid), self))  # type: ignore[misc]
