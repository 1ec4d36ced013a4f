"""The blocks nobody holds, in the order in which they will be taken for something else."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import ClassVar, Protocol

from sim.kv.prefix_tree import Run


class FreeQueue(Protocol):
    """Runs of blocks nobody holds, in an order that takes the end of a prompt before its beginning.

    Blocks without known content are counts. `blocks` is the length of the queue.
    """

    blocks: int
    lazy: ClassVar[bool]
    """Whether it comes to the same if blocks that are used already are taken only after others were added."""

    def __iter__(self) -> Iterator[Run]:
        """What will be taken, the first of it first; blocks without known content are runs without a parent."""
        ...

    def add_unknown(self, blocks: int) -> None:
        """Blocks that nobody can ask for."""
        ...

    def add(self, run: Run) -> None:
        """A run of the tree that nobody holds any more; those below it were added before."""
        ...

    def remove(self, run: Run) -> None:
        """A run that somebody holds again. `hits` are still those with which it was added."""
        ...

    def take(self, blocks: int) -> None:
        """Blocks for a new use; what they held is forgotten."""
        ...

    @property
    def empty(self) -> int:
        """Blocks without content at the front."""
        ...

    def joins(self, upper_hits: int, lower_hits: int) -> bool:
        """Whether two runs in a row, held by the same requests, may as well be one."""
        ...


class RecencyQueue:
    """Least recently used first, block by block: the free queue of vLLM V1 (`v1/core/kv_cache_utils.py`, 0.11).

    Blocks join at the end, the last one of a request first, whether or not anybody can ask for them.
    """

    __slots__ = ("_last", "_runs", "blocks")
    lazy: ClassVar[bool] = True

    def __init__(self, blocks: int) -> None:
        self._last: Run | None = None
        """The run at the end, if its content is unknown."""
        self._runs: OrderedDict[Run, None] = OrderedDict()
        self.blocks = 0
        self.add_unknown(blocks)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    def add_unknown(self, blocks: int) -> None:
        """At the end."""
        if not blocks:
            return
        self.blocks += blocks
        if self._last is None:
            self._last = Run(None, None, (), 0, blocks)
            self._runs[self._last] = None
        else:
            self._last.end += blocks

    def add(self, run: Run) -> None:
        """At the end; the last of its blocks will be taken first."""
        self.blocks += run.end - run.begin
        self._runs[run] = None
        self._last = None

    def remove(self, run: Run) -> None:
        """From wherever it stands."""
        self.blocks -= run.end - run.begin
        del self._runs[run]

    def take(self, blocks: int) -> None:
        """From the front."""
        self.blocks -= blocks
        runs = self._runs
        while blocks:
            run = next(iter(runs))
            size = run.end - run.begin
            if size > blocks:
                run.end -= blocks
                return
            blocks -= size
            del runs[run]
            if run.parent is not None:
                run.forget()
            elif run is self._last:
                self._last = None

    @property
    def empty(self) -> int:
        """Those at the front."""
        first = next(iter(self._runs), None)
        return first.blocks if first is not None and first.parent is None else 0

    def joins(self, upper_hits: int, lower_hits: int) -> bool:
        """Always: how often a block was used does not matter."""
        return True


class RankedQueue:
    """What nobody can ask for first, then the run of the lowest rank, and among equals the one let go the longest ago.

    The rank is the number of requests that have used a run (`by_hits`: least frequently used), or the same for all
    (least recently used). `whole`: a run is taken as a whole, as SGLang evicts a leaf of its tree; what is not needed
    of it joins the blocks without content. All operations take O(log n) in the number of different ranks.
    """

    __slots__ = ("_buckets", "_by_hits", "_ranks", "_unknown", "_whole", "blocks")
    lazy: ClassVar[bool] = False

    def __init__(self, blocks: int, *, by_hits: bool, whole: bool) -> None:
        self._by_hits, self._whole = by_hits, whole
        self.blocks = self._unknown = blocks
        self._buckets: dict[int, OrderedDict[Run, None]] = {}
        self._ranks: list[int] = []  # a heap of the keys of `_buckets`

    def __iter__(self) -> Iterator[Run]:
        if self._unknown:
            yield Run(None, None, (), 0, self._unknown)
        for rank in sorted(self._buckets):
            yield from self._buckets[rank]

    def add_unknown(self, blocks: int) -> None:
        """They are the first to be taken."""
        self.blocks += blocks
        self._unknown += blocks

    def add(self, run: Run) -> None:
        """Behind all of its rank."""
        self.blocks += run.end - run.begin
        rank = run.hits if self._by_hits else 0
        bucket = self._buckets.get(rank)
        if bucket is None:
            bucket = self._buckets[rank] = OrderedDict()
            heappush(self._ranks, rank)
        bucket[run] = None

    def remove(self, run: Run) -> None:
        """From its rank."""
        self.blocks -= run.end - run.begin
        del self._buckets[run.hits if self._by_hits else 0][run]

    def take(self, blocks: int) -> None:
        """Blocks without content, then runs from the lowest rank."""
        self.blocks -= blocks
        self._unknown -= blocks
        while self._unknown < 0:
            bucket = self._lowest()
            run = next(iter(bucket))
            size = run.end - run.begin
            if size + self._unknown > 0 and not self._whole:
                run.end += self._unknown
                self._unknown = 0
                return
            self._unknown += size
            del bucket[run]
            run.forget()

    @property
    def empty(self) -> int:
        """Blocks without content."""
        return self._unknown

    def joins(self, upper_hits: int, lower_hits: int) -> bool:
        """If they have the same rank, and not if runs are taken as a whole: then it matters where one ends."""
        return upper_hits == lower_hits and not self._whole

    def _lowest(self) -> OrderedDict[Run, None]:
        while not self._buckets[self._ranks[0]]:
            del self._buckets[heappop(self._ranks)]
        return self._buckets[self._ranks[0]]
