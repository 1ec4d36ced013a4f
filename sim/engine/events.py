"""The one event type of the engine: at a time, with a rank inside that instant.

Two modes of execution (leaping and single-stepping) insert events in different orders, so insertion order must never
decide anything. Every event carries a rank that does: ends of steps by replica, then arrivals and completions by
request, then client time-outs by request, then plans by replica.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush

import simpy
from simpy.events import Event

# Ranks are SimPy priorities; the lower goes first. Request ids stay below 1 << 40.
STOP = -(1 << 60)
BOUNDARY = -(1 << 50)  # + replica
ARRIVAL = 0  # + request id
TIMEOUT = 1 << 45  # + request id
PLAN = 1 << 50  # + replica


class Clock(simpy.Environment):
    """SimPy's environment with a shorter way to the next event, which is all that it adds."""

    def __init__(self) -> None:
        super().__init__(initial_time=0)  # an integer, and so are all delays: the clock counts picoseconds

    def reach(self, time_ps: int) -> bool:
        """Move on to a time, unless something else happens before it or at it.

        What an alarm does that would be the next event anyway. Whoever is told True goes on as its callback would;
        whoever is told False sets the alarm.
        """
        queue = self._queue
        if queue and queue[0][0] <= time_ps:
            return False
        self._now = time_ps
        return True


class Alarm(Event):
    """Calls back `delay` picoseconds from now, at its rank within that instant."""

    _ok, _value = True, None  # of the class: an alarm cannot fail and carries nothing

    def __init__(self, env: simpy.Environment, rank: int, delay_ps: int, callback: Callable[[Alarm], None]) -> None:
        # As simpy.Timeout and Environment.schedule do together, but with a rank of our own in place of the priority
        # that is common to all timeouts, and without the call: this runs several times per request.
        self.callbacks = (callback,)  # type: ignore[assignment]
        heappush(env._queue, (env._now + delay_ps, rank, next(env._eid), self))  # type: ignore[misc]
