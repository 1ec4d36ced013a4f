"""From the replica that computed a prompt to the one that decodes: disaggregated serving (DistServe, OSDI 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sim.engine.events import HANDOVER, Alarm, Clock
from sim.engine.link import Link, LinkRate
from sim.engine.replica import Replica
from sim.engine.router import Router
from sim.request import NO_REASON, Reason, Request
from sim.step import OUT, Transfer


@dataclass(frozen=True, slots=True)
class HandoffRules:
    """How prompts get from one pool to the other. The rate is that of all copies together.

    With `layers`, keys and values are sent layer by layer while the prompt is computed (Splitwise, ISCA 2024): a
    chunk's begin to flow when its step begins, all but the last layer's, which flow once the decode replica has
    admitted the request. What has come before that waits beside it in memory that is not simulated. `token_bytes`
    are those of one token in all layers.
    """

    router: Router
    rate: LinkRate
    prefill_replicas: int
    layers: int | None = None
    token_bytes: int = 0


@dataclass(slots=True)
class HandoffTotals:
    """What went from pool to pool over a run."""

    handed_over: int = 0
    """Requests, those included whose clients gave up before the copy began."""
    copied_bytes: int = 0


class Handoff:
    """The hand-overs of one run, and the link that all of them share."""

    def __init__(self, env: Clock, rules: HandoffRules, decoding: Sequence[Replica]) -> None:
        self._env, self._rules, self._decoding = env, rules, decoding
        self._link = Link(env, rules.rate)
        self._sources: dict[int, tuple[Request, Replica]] = {}  # who holds what is still to be copied
        self._homes: dict[int, Replica] = {}  # where handed-over requests live now
        self._between: dict[int, Request] = {}  # handed over in this instant and not routed yet
        self._pushed: dict[int, int] = {}  # tokens sent ahead
        self._flying: dict[int, int] = {}  # copies under way, by request
        self._last: dict[int, Callable[[Alarm], None]] = {}  # who waits for the last of them
        self.totals = HandoffTotals()

    def hand_over(self, request: Request, source: Replica) -> None:
        """A prompt has been computed: its request goes to a decode replica in this instant, after arrivals."""
        self.totals.handed_over += 1
        self._sources[request.id] = request, source
        self._between[request.id] = request
        Alarm(self._env, HANDOVER + request.id, 0, lambda _: self._route(request))

    def home(self, request: Request, first: Replica) -> Replica:
        """The replica that has the request now, if it began at `first`."""
        return self._homes.get(request.id, first)

    def push(self, request: Request, tokens: int, start_ps: int) -> None:
        """So many tokens of a prompt will be computed by the step that starts then: send ahead what can be."""
        new = tokens - self._pushed.get(request.id, 0)
        if self._rules.layers is None or new <= 0:
            return
        self._pushed[request.id] = tokens
        layers, now = self._rules.layers, int(self._env.now)
        self._send(request.id, new * self._rules.token_bytes * (layers - 1) // layers, start_ps - now)

    def send(self, id_: int, bytes_: int, done: Callable[[Alarm], None], delay_ps: int = 0) -> None:
        """The decode replica has made room: the copy, or its last layer. `done` when all of it has arrived."""
        self._last[id_] = done
        self._send(id_, bytes_ if self._rules.layers is None else -(-bytes_ // self._rules.layers), delay_ps)

    def ended(self, request: Request) -> None:
        """A request has ended; if nobody has come for its keys and values, nobody will."""
        self._homes.pop(request.id, None)
        self._between.pop(request.id, None)
        self._pushed.pop(request.id, None)
        if request.id not in self._last:
            self._free_source(request.id)

    def homeless(self) -> list[tuple[Request, int]]:
        """Requests that no replica has when the simulation is cut off, and the index of the one they come from."""
        return [(request, self._sources[id_][1].index) for id_, request in sorted(self._between.items())]

    def refusal(self, request: Request, source: Replica) -> Reason:
        """Why the pools do not take a request whose prompt `source` would compute, or NONE."""
        prompt = Request(request.id, request.arrival_ps, request.prompt_tokens, 1, 1)
        reason = source.refusal(prompt)
        return reason if reason is not NO_REASON else self._decoding[0].refusal(request)

    def _route(self, request: Request) -> None:
        del self._between[request.id]
        target = self._rules.router(request, self._decoding)
        self._homes[request.id] = target
        target.take_over(request)

    def _send(self, id_: int, bytes_: int, delay_ps: int) -> None:
        self.totals.copied_bytes += bytes_
        self._flying[id_] = self._flying.get(id_, 0) + 1
        self._link.send(id_, bytes_, lambda alarm: self._landed(id_, alarm), delay_ps)

    def _landed(self, id_: int, alarm: Alarm) -> None:
        self._flying[id_] -= 1
        if self._flying[id_]:
            return
        del self._flying[id_]
        done = self._last.pop(id_, None)
        if done is not None:
            self._free_source(id_)
            done(alarm)

    def _free_source(self, id_: int) -> None:
        if id_ in self._sources:
            request, source = self._sources.pop(id_)
            source.forget(Transfer(request, 0, OUT))
