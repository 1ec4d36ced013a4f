"""What a scheduler may answer when it is asked for a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sim.request import Request

NO_LIMIT = 1 << 60
OUT, IN, HANDOFF = "out", "in", "handoff"
"""Kinds of transfers: to the host's memory, back, and from the replica that computed the prompt."""


class Transfer(NamedTuple):
    """Keys and values of a request that are copied. `kind` names the link of the replica that carries them."""

    request: Request
    bytes_: int
    kind: str


class StepPlan:
    """The work of the next step, and for how many steps the same work may repeat.

    `chunks` are prompt pieces, `(request, new tokens)`; all decoding sequences take part when `decodes` is true.
    A plan with chunks, or one that preempted, is good for one step only. `valid_until_ps` asks for a new plan at the
    first boundary at or after that time. A plan may be empty (neither chunks nor decodes) when requests were preempted
    and yet nothing can run before a step in flight, or a copy, has ended. `transfers` are copies that begin with it.
    """

    __slots__ = ("chunks", "decodes", "max_steps", "preempted", "transfers", "valid_until_ps")

    def __init__(
        self,
        chunks: Sequence[tuple[Request, int]] = (),
        decodes: bool = True,
        preempted: list[Request] | None = None,
        valid_until_ps: int = NO_LIMIT,
        transfers: Sequence[Transfer] = (),
    ) -> None:
        self.chunks, self.decodes, self.valid_until_ps, self.transfers = chunks, decodes, valid_until_ps, transfers
        self.preempted = preempted
        """Requests that were sent back to the waiting queue to make room."""
        self.max_steps = 1 if chunks or preempted or transfers else NO_LIMIT


DECODE = StepPlan()
"""The commonest plan: all decoding sequences, nothing else, for as long as it lasts."""


class Idle:
    """Nothing to do until something arrives or `until_ps` comes (how a batcher with a deadline waits)."""

    __slots__ = ("until_ps",)

    def __init__(self, until_ps: int = NO_LIMIT) -> None:
        self.until_ps = until_ps


IDLE = Idle()
