"""The one event type of the engine: at a time, with a rank inside that instant.

Two modes of execution (leaping and single-stepping) insert events in different orders, so insertion order must never
decide anything. Every event carries a rank that does: ends of steps by replica, then arrivals and completions by
request, then client time-outs by request, then plans by replica.
"""

from __future__ import annotations

from collections.abc import Callable

import simpy
from simpy.events import Event

# Ranks are SimPy priorities; the lower goes first. Request ids stay below 1 << 40.
STOP = -(1 << 60)
BOUNDARY = -(1 << 50)  # + replica
ARRIVAL = 0  # + request id
TIMEOUT = 1 << 45  # + request id
PLAN = 1 << 50  # + replica


class Alarm(Event):
    """Calls back `delay` picoseconds from now, at its rank within that instant."""

    __slots__ = ()

    def __init__(self, env: simpy.Environment, rank: int, delay_ps: int, callback: Callable[[Alarm], None]) -> None:
        # As simpy.Timeout does, but with a rank of our own in place of the priority that is common to all timeouts.
        self.env, self._value, self._ok = env, None, True
        self.callbacks = [callback]
        env.schedule(self, rank, delay_ps)  # type: ignore[arg-type]
