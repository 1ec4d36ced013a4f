"""Who is next: the order of the waiting queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Protocol

from sim.request import WAITING, Request


class Queue(Protocol):
    """Waiting requests in order. Only the first is ever looked at: if it cannot be admitted, nobody behind it is.

    Those that are aborted are dropped when they reach the front.
    """

    size: int
    """Requests that wait."""

    def __iter__(self) -> Iterator[Request]:
        """Who waits, the next one first."""
        ...

    def push(self, request: Request) -> bool:
        """A request arrives. Whether it is next."""
        ...

    def push_front(self, request: Request) -> None:
        """A preempted request comes back: before all others, or to its place where the order knows one."""
        ...

    def head(self) -> Request:
        """The next request; the queue must not be empty. It stays the next until one of the other methods is called."""
        ...

    def pop(self) -> None:
        """The head, which has just been asked for, is admitted."""
        ...

    def discard(self, request: Request) -> None:
        """One of the waiting requests, whose state is no longer WAITING, is gone."""
        ...


class FcfsQueue:
    """First come, first served; preempted requests go back to the front. Every operation takes constant time."""

    __slots__ = ("_requests", "size")

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()
        self.size = 0

    def __iter__(self) -> Iterator[Request]:
        return (request for request in self._requests if request.state is WAITING)

    def push(self, request: Request) -> bool:
        """At the end."""
        self._requests.append(request)
        self.size += 1
        return self.size == 1

    def push_front(self, request: Request) -> None:
        """Before all others."""
        self._requests.appendleft(request)
        self.size += 1

    def head(self) -> Request:
        """The one that has waited longest, preempted ones first."""
        requests = self._requests
        while requests[0].state is not WAITING:
            requests.popleft()
        return requests[0]

    def pop(self) -> None:
        """The head is taken."""
        self._requests.popleft()
        self.size -= 1

    def discard(self, request: Request) -> None:
        """It is dropped later."""
        self.size -= 1


class SortedQueue:
    """Sorted by a number that never changes for a request, then by arrival, then by id: a heap.

    Preempted requests go back to their place.
    """

    __slots__ = ("_heap", "_key", "size")

    def __init__(self, key: Callable[[Request], int]) -> None:
        self._key = key
        self._heap: list[tuple[int, int, int, Request]] = []
        self.size = 0

    def __iter__(self) -> Iterator[Request]:
        return (entry[-1] for entry in sorted(self._heap) if entry[-1].state is WAITING)

    def push(self, request: Request) -> bool:
        """To its place."""
        self.push_front(request)
        return self.head() is request

    def push_front(self, request: Request) -> None:
        """To its place as well."""
        heappush(self._heap, (self._key(request), request.arrival_ps, request.id, request))
        self.size += 1

    def head(self) -> Request:
        """The one with the least number."""
        heap = self._heap
        while heap[0][-1].state is not WAITING:
            heappop(heap)
        return heap[0][-1]

    def pop(self) -> None:
        """The head is taken."""
        heappop(self._heap)
        self.size -= 1

    def discard(self, request: Request) -> None:
        """It is dropped later."""
        self.size -= 1


def by_priority() -> SortedQueue:
    """Lower `priority` values first, as in vLLM; nobody who runs is preempted for somebody who waits."""
    return SortedQueue(lambda request: request.traits.priority)


def by_prompt() -> SortedQueue:
    """Shortest prompt first; what a preempted request had emitted is not counted."""
    return SortedQueue(lambda request: request.prompt_tokens)


def by_prediction() -> SortedQueue:
    """Shortest answer first, as far as `length_predictor` can tell: shortest job first."""
    return SortedQueue(lambda request: request.predicted_output_tokens)
