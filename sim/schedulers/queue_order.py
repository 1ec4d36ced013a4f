"""Who is next: the order of the waiting queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from sim.request import Request, State


class FcfsQueue:
    """First come, first served; preempted requests go back to the front. Every operation takes constant time."""

    __slots__ = ("_gone", "_requests")

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()
        self._gone = 0  # aborted requests are dropped when they reach the front

    def __len__(self) -> int:
        return len(self._requests) - self._gone

    def __iter__(self) -> Iterator[Request]:
        return (request for request in self._requests if request.state is State.WAITING)

    def push(self, request: Request) -> None:
        """A new arrival, at the end."""
        self._requests.append(request)

    def push_front(self, request: Request) -> None:
        """A preempted request, before all others."""
        self._requests.appendleft(request)

    def head(self) -> Request:
        """The next request; the queue must not be empty."""
        requests = self._requests
        while requests[0].state is not State.WAITING:
            requests.popleft()
            self._gone -= 1
        return requests[0]

    def pop(self) -> Request:
        """Take the next request."""
        request = self.head()
        self._requests.popleft()
        return request

    def discard(self) -> None:
        """One of the waiting requests, whose state is no longer WAITING, is gone."""
        self._gone += 1
