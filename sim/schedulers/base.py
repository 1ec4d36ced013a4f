"""The seam between the step loop and a scheduling policy."""

from __future__ import annotations

from typing import Protocol

from sim.request import Request
from sim.step import Idle, StepPlan


class Scheduler(Protocol):
    """Decides what the next step computes. Holds who waits and who runs; may reserve and release KV memory.

    It never sees the simulation's clock beyond `now_ps`, nor true output lengths, nor another replica, so the same
    object can be driven by a `for` loop in a test.
    """

    drains_together: bool
    """Whether a running request keeps its seat, its memory and its place in the steps until all that run have received
    their last token. Then they leave together: a batch that nobody joins (static and dynamic batching)."""

    @property
    def num_waiting(self) -> int:
        """Requests that are not admitted, preempted ones included."""
        ...

    @property
    def num_running(self) -> int:
        """Admitted requests, prefilling or decoding."""
        ...

    def running(self) -> list[Request]:
        """Admitted requests in order of admission."""
        ...

    def waiting(self) -> list[Request]:
        """Waiting requests, the next one first."""
        ...

    def submit(self, request: Request) -> bool:
        """A request arrives. True when the plan in force should end at the next step boundary.

        True is always safe; False promises that the plan in force stays right until something else ends it.
        """
        ...

    def plan(self, now_ps: int) -> StepPlan | Idle:
        """The next step's work. Preempted requests are waiting again and hold no memory when this returns."""
        ...

    def ready(self, request: Request) -> None:
        """The keys and values of a running request have arrived: it decodes from the next step on."""
        ...

    def fork(self, child: Request) -> None:
        """A sequence begins where a running one has completed its prompt; it takes a seat that was kept for it.

        A request is admitted only with a seat for itself and each of its `forks`.
        """
        ...

    def finish(self, request: Request) -> None:
        """A running request has ended (completed or aborted); its memory has been released."""
        ...

    def abort(self, request: Request) -> None:
        """A waiting request is gone: its client gave up. It holds no memory."""
        ...
