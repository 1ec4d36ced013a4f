"""Replicas, a router and a client side on one clock."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from sim.engine.events import ARRIVAL, STOP, TIMEOUT, Alarm, Clock
from sim.engine.front_end import FrontEnd
from sim.engine.handoff import Handoff, HandoffRules
from sim.engine.lifecycle import add_request
from sim.engine.recorder import Recorder
from sim.engine.replica import Replica, ReplicaParts
from sim.engine.router import Router
from sim.errors import ConfigError
from sim.request import NO_REASON, Reason, Request, State
from sim.workloads.base import Workload

_MOST_IN_VAIN = 100_000
"""Clients who send again as soon as they are refused, or give up in a nanosecond, would keep a run busy for ever."""
_TIDY_EVERY = 1024  # requests between two looks at buffers and progress


class _StopSimulationError(Exception):
    """Raised by an event to leave the event loop at a clean point."""


class Cluster:
    """Plays a workload against replicas. One object is good for one run.

    `max_model_len` is the longest prompt plus output a server accepts; `client_timeout_ps` the patience of a client;
    `front_ends` what delays requests between the router and each replica's scheduler, by replica (none: no delay); with
    `handoff` the first replicas compute prompts and the others decode;
    `on_progress` hears how many requests have ended; `directory` is where tables that outgrow memory may be written.
    """

    def __init__(
        self,
        workload: Workload,
        parts: list[ReplicaParts],
        router: Router,
        *,
        max_model_len: int,
        client_timeout_ps: int | None = None,
        front_ends: Sequence[FrontEnd] = (),
        handoff: HandoffRules | None = None,
        on_progress: Callable[[int], None] | None = None,
        directory: Path | None = None,
    ) -> None:
        self.env = Clock()
        self.recorder = Recorder(directory)
        self.replicas = [Replica(self.env, i, p, self.recorder, self._ended) for i, p in enumerate(parts)]
        self._front, self.handoff = self.replicas, None
        if handoff is not None:
            self._disaggregate(handoff)
        self.submitted = self.ended = 0
        self.interrupted = False
        self._in_vain = 0  # requests in a row that were followed by another and had no token
        self._workload, self._router = workload, router
        self._max_model_len, self._timeout_ps = max_model_len, client_timeout_ps
        self._on_progress, self._front_ends = on_progress, front_ends
        self._arrivals: Iterator[Request] = iter(workload)
        self._next: Request | None = None
        self._stopping = False

    def run(self) -> None:
        """Simulate until every request has ended, or Ctrl-C; then close what is left as unfinished."""
        self._next = next(self._arrivals, None)
        if self._next is not None:
            Alarm(self.env, ARRIVAL + self._next.id, self._next.arrival_ps, self._arrive)
        previous = self._catch_interrupts()
        collecting = gc.isenabled()
        gc.disable()  # the engine makes no cycles, and looking for them takes a twentieth of its time
        try:
            self.env.run()
        except _StopSimulationError:
            self.interrupted = self._stopping = True
            for replica in self.replicas:
                replica.stop()
            self._close_homeless()
            self._close_under_way()
        finally:
            if collecting:
                gc.enable()
            if previous is not None:
                signal.signal(signal.SIGINT, previous)
        if self._on_progress is not None:
            self._on_progress(self.ended)

    def submit(self, request: Request, replica: Replica) -> None:
        """A request reaches a replica: it is refused there or waits for its scheduler."""
        self.submitted += 1
        if request.prompt_tokens + request.max_output_tokens > self._max_model_len:
            self._refuse(request, Reason.TOO_LONG)
        elif (reason := self._refusal(request, replica)) is not NO_REASON:
            self._refuse(request, reason)
        else:
            if self._timeout_ps is not None:
                waited: int = self.env.now - request.arrival_ps  # type: ignore[assignment]
                patience = max(0, self._timeout_ps - waited)
                Alarm(self.env, TIMEOUT + request.id, patience, lambda _: self._time_out(request, replica))
            replica.submit(request)

    handoff: Handoff | None
    """The hand-overs between the pools, if there are two."""

    def _disaggregate(self, rules: HandoffRules) -> None:
        """The first replicas pass on what they have computed, the others take it over."""
        self._front, decoding = self.replicas[: rules.prefill_replicas], self.replicas[rules.prefill_replicas :]
        self.handoff = Handoff(self.env, rules, decoding)
        for replica in self._front:
            replica.prefill_for(self.handoff.hand_over, self.handoff.push)
        for replica in decoding:
            replica.receive_over(self.handoff)

    def _refusal(self, request: Request, replica: Replica) -> Reason:
        return replica.refusal(request) if self.handoff is None else self.handoff.refusal(request, replica)

    def _time_out(self, request: Request, first: Replica) -> None:
        replica = first if self.handoff is None else self.handoff.home(request, first)
        replica.time_out(request)

    def _arrive(self, alarm: Alarm) -> None:
        """The next request arrives, and those after it as long as nothing else happens before them."""
        request = self._next
        while request is not None:
            self._accept(request)
            self._next = request = next(self._arrivals, None)
            if request is not None and not self.env.reach(request.arrival_ps):
                alarm.rank = ARRIVAL + request.id
                alarm.set(request.arrival_ps)
                return

    def _accept(self, request: Request) -> None:
        """A client sends a request now, and a router chooses who will serve it."""
        replica = self._router(request, self._front)
        if not self._front_ends:
            self.submit(request, replica)
            return
        now: int = self.env.now  # type: ignore[assignment]
        delay, patience = self._front_ends[replica.index].delay_ps(request, now), self._timeout_ps
        replica.outstanding += 1  # routers know of it while it is on its way
        if patience is not None and patience <= delay:
            Alarm(self.env, TIMEOUT + request.id, patience, partial(self._lose, request, replica))
        else:
            Alarm(self.env, ARRIVAL + request.id, delay, partial(self._reach, request, replica))

    def _reach(self, request: Request, replica: Replica, _: Alarm) -> None:
        """A request has passed the API server of its replica."""
        replica.outstanding -= 1
        self.submit(request, replica)

    def _lose(self, request: Request, replica: Replica, _: Alarm) -> None:
        """A client gives up before its request has passed the API server."""
        request.state = State.ABORTED
        self._drop(request, replica, Reason.CLIENT_TIMEOUT)

    def _drop(self, request: Request, replica: Replica, reason: Reason) -> None:
        """A request ends on its way through the API server."""
        self.submitted += 1
        replica.outstanding -= 1
        now: int = self.env.now  # type: ignore[assignment]
        add_request(self.recorder.requests, request, -1, reason, now)
        self._ended(request, now)

    def _close_under_way(self) -> None:
        """Ctrl-C came while requests passed API servers."""
        alarms = [event for *_, event in sorted(self.env._queue) if isinstance(event, Alarm)]
        for alarm in alarms:
            passing = alarm.callback
            if isinstance(passing, partial) and passing.func in (self._reach, self._lose):
                request, replica = passing.args
                request.state = State.UNFINISHED
                self._drop(request, replica, Reason.INTERRUPTED)

    def _close_homeless(self) -> None:
        """Ctrl-C came between two replicas."""
        now: int = self.env.now  # type: ignore[assignment]
        for request, source in [] if self.handoff is None else self.handoff.homeless():
            request.state = State.UNFINISHED
            add_request(self.recorder.requests, request, source, Reason.INTERRUPTED, now)
            self._ended(request, now)

    def _refuse(self, request: Request, reason: Reason) -> None:
        request.state = State.REJECTED
        now: int = self.env.now  # type: ignore[assignment]
        add_request(self.recorder.requests, request, -1, reason, now)
        self._ended(request, now)

    def _ended(self, request: Request, now: int) -> None:
        self.ended += 1
        if self.handoff is not None:
            self.handoff.ended(request)
        if not self.ended % _TIDY_EVERY:
            self.recorder.tidy()
            if self._on_progress is not None:
                self._on_progress(self.ended)
        if self._stopping:
            return
        for follow_up in self._workload.on_finish(request, now):
            self._in_vain = 0 if request.emitted_tokens else self._in_vain + 1
            if self._in_vain >= _MOST_IN_VAIN:
                raise ConfigError(f"can never end: {_MOST_IN_VAIN:,} requests in a row, up to number {request.id}, "
                                  "were refused or given up before their first token and sent again")  # fmt: skip
            delay = follow_up.arrival_ps - now
            Alarm(self.env, ARRIVAL + follow_up.id, delay, lambda _, r=follow_up: self._accept(r))  # type: ignore[misc]

    def _catch_interrupts(self) -> Any:
        """Ctrl-C becomes the most urgent event, so that it never tears a state change apart."""
        if threading.current_thread() is not threading.main_thread():
            return None

        def stop(_: Alarm) -> None:
            raise _StopSimulationError

        def on_signal(number: int, frame: FrameType | None) -> None:
            Alarm(self.env, STOP, 0, stop)

        return signal.signal(signal.SIGINT, on_signal)
