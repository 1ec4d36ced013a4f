"""The seam between traffic and engine: who sends what, and when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from sim.request import Request


class Workload(Protocol):
    """The requests of one run: those that arrive by themselves, and those that follow when another one ends.

    Iterating starts the traffic from its beginning, so one object serves one run at a time. Requests are made while
    they are asked for and belong to the caller afterwards; none is kept here.
    """

    def __iter__(self) -> Iterator[Request]:
        """The requests that depend on no other, in non-decreasing `arrival_ps`, with rising ids from 0."""
        ...

    def on_finish(self, request: Request, now_ps: int) -> Iterable[Request]:
        """What a client sends because `request` has ended (completed, aborted or refused) at `now_ps`.

        Each follow-up arrives at or after `now_ps` and has an id no other request has. Empty for open-loop traffic.
        The engine calls this exactly once for every request that ended.
        """
        ...

    @property
    def num_requests(self) -> int | None:
        """How many requests there will be, follow-ups included; None when that is only known at the end."""
        ...

    @property
    def has_prefixes(self) -> bool:
        """Whether a prompt may say what it shares with others (`Traits.prefix_hashes`)."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user: what was dropped, clipped or assumed."""
        ...

    def describe(self) -> dict[str, Any]:
        """What this traffic is, ready for JSON: kind, rate, mean lengths; for a trace also its hash and row counts."""
        ...
