"""The one event type of the engine: at a time, with a rank inside that instant.

Two modes of execution (leaping and single-stepping) insert events in different orders, so insertion order must never
decide anything. Every event carries a rank that does: ends of steps by replica, then what links do, then arrivals by
request, hand-overs of computed prompts and ends of copies by request, client time-outs by request, plans by replica.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

import simpy
from simpy.events import Event

# Ranks are SimPy priorities; the lower goes first. Request ids stay below 1 << 40.
STOP = -(1 << 60)
BOUNDARY = -(1 << 50)  # + replica
LINK = -(1 << 40)  # nothing but the link's own books
ARRIVAL = 0  # + request id
HANDOVER = 1 << 41  # + request id
COMPLETION = 1 << 42  # + request id
TIMEOUT = 1 << 45  # + request id
PLAN = 1 << 50  # + replica


class Clock(simpy.Environment):
    """SimPy's environment with a shorter way from one alarm to the next, and integer picoseconds for its time."""

    def __init__(self) -> None:
        super().__init__(initial_time=0)

    def run(self, until: None = None) -> None:  # type: ignore[override]
        """Until nothing is left to happen.

        As in SimPy, but that nobody looks whether an alarm has failed: it cannot.
        """
        queue = self._queue
        while queue:
            event = queue[0][3]
            if type(event) is Alarm:
                self._now = heappop(queue)[0]
                event.callback(event)
            else:
                self.step()

    def reach(self, time_ps: int) -> bool:
        """Move on to a time, unless something else happens before it or at it.

        Spares an alarm that would be the next event anyway: whoever is told True goes on as its callback would,
        whoever is told False sets the alarm.
        """
        queue = self._queue
        if queue and queue[0][0] <= time_ps:
            return False
        self._now = time_ps
        return True


class Alarm(Event):
    """Calls back `delay_ps` from now, at its rank within that instant; an owner who needs it again may set it again.

    What was set is not taken back: whoever changes his mind ignores the alarm that comes at the wrong time.
    """

    _ok, _value = True, None  # of the class: an alarm cannot fail and carries nothing

    def __init__(self, env: Clock, rank: int, delay_ps: int | None, callback: Callable[[Alarm], None]) -> None:
        self.env, self.rank, self.callback = env, rank, callback
        if delay_ps is not None:
            self.set(int(env._now) + delay_ps)

    def set(self, time_ps: int) -> None:
        """Call back at this time."""
        # As Environment.schedule does, which knows delays only.
        env = self.env
        heappush(env._queue, (time_ps, self.rank, next(env._eid), self))  # type: ignore[misc]
