"""How much memory the running requests may still ask for."""

from __future__ import annotations

from heapq import heappop, heappush


class FutureTokens:
    """The sum over decoding requests of min(tokens each may still emit, `most`), without walking them.

    What a request may still emit falls by one per decode step, so its end stands still on the count of steps. Requests
    further than `most` from their end wait in a heap until they come that near.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._ends: dict[int, int] = {}  # id -> step count at which it has emitted all it is allowed
        self._far: list[tuple[int, int]] = []  # (end, id); those that left are dropped when they come up
        self._near: set[int] = set()
        self._near_ends = 0  # sum

    def add(self, id_: int, end: int) -> None:
        """A request decodes that may emit tokens until the batch has done `end` steps."""
        self._ends[id_] = end
        heappush(self._far, (end, id_))

    def discard(self, id_: int) -> None:
        """The request decodes no more, if it did."""
        end = self._ends.pop(id_, None)
        if end is not None and id_ in self._near:
            self._near.remove(id_)
            self._near_ends -= end

    def total(self, steps: int) -> int:
        """The sum once the batch has done `steps` steps; never fewer than at the call before."""
        while self._far and self._far[0][0] - steps <= self._most:
            end, id_ = heappop(self._far)
            if self._ends.get(id_) == end and id_ not in self._near:
                self._near.add(id_)
                self._near_ends += end
        far = len(self._ends) - len(self._near)
        return self._near_ends - len(self._near) * steps + far * self._most
