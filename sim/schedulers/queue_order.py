"""Who is next: the order of the waiting queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from sim.request import WAITING, Request


class FcfsQueue:
    """First come, first served; preempted requests go back to the front. Every operation takes constant time.

    `size` counts the waiting requests. Those that are aborted are dropped when they reach the front.
    """

    __slots__ = ("_requests", "size")

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()
        self.size = 0

    def __iter__(self) -> Iterator[Request]:
        return (request for request in self._requests if request.state is WAITING)

    def push(self, request: Request) -> None:
        """A new arrival, at the end."""
        self._requests.append(request)
        self.size += 1

    def push_front(self, request: Request) -> None:
        """A preempted request, before all others."""
        self._requests.appendleft(request)
        self.size += 1

    def head(self) -> Request:
        """The next request; the queue must not be empty."""
        requests = self._requests
        while requests[0].state is not WAITING:
            requests.popleft()
        return requests[0]

    def pop(self) -> None:
        """The head is taken."""
        self._requests.popleft()
        self.size -= 1

    def discard(self) -> None:
        """One of the waiting requests, whose state is no longer WAITING, is gone."""
        self.size -= 1
