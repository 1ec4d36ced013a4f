"""What a prefix cache remembers: a tree of prompts.

It holds runs of consecutive blocks, never single blocks, so its cost follows the number of distinct prompts and not
their length.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

Keys = tuple[Hashable, ...]
Joins = Callable[[int, int], bool]
"""Whether two runs in a row that so many requests have used may be one run (`FreeQueue.joins`)."""


class Run:
    """Blocks `begin` to before `end` of a prompt, after those of its `parent`; a path from the root is a prompt.

    A key says what `ratio` consecutive blocks hold. `keys` are those of some prompt that goes through this run, from
    its first block, so that nothing is copied when a run is cut or grows; `key` is that of this run's first block, and
    its name among its parent's children. All requests that hold one of the run's blocks hold all of them, and those of
    its ancestors: `refs` counts these requests, and `hits` those that ever did. A run without a parent that is not a
    root holds nothing anybody could ask for. `tier` says where the blocks are, in a store that has several places.
    """

    __slots__ = ("begin", "children", "end", "hits", "key", "keys", "parent", "refs", "tier")

    def __init__(self, parent: Run | None, key: Hashable, keys: Keys, begin: int, end: int) -> None:
        self.parent, self.key, self.keys, self.begin, self.end = parent, key, keys, begin, end
        self.refs = self.hits = self.tier = 0
        self.children: dict[Hashable, Run] = {}

    @property
    def blocks(self) -> int:
        """Blocks in the run."""
        return self.end - self.begin

    def split(self, at: int, ratio: int) -> Run:
        """The blocks before `at` become a run of their own, which is returned: the parent of what is left."""
        upper = Run(self.parent, self.key, self.keys, self.begin, at)
        upper.refs, upper.hits, upper.tier = self.refs, self.hits, self.tier
        if self.parent is not None:
            self.parent.children[self.key] = upper
        self.parent, self.begin, self.key = upper, at, self.keys[at // ratio]
        upper.children[self.key] = self
        return upper

    def absorb(self, upper: Run) -> None:
        """Undo a split that no longer matters: nobody holds the parent without this run, its only child."""
        self.parent, self.begin, self.key = upper.parent, upper.begin, upper.key
        if self.parent is not None:
            self.parent.children[self.key] = self

    def forget(self) -> None:
        """Nobody can ask for this run any more; nothing is left below it."""
        if self.parent is not None:
            del self.parent.children[self.key]
            self.parent = None

    def descendants(self) -> Iterator[Run]:
        """All runs below this one, parents first."""
        todo = list(self.children.values())
        while todo:
            run = todo.pop()
            yield run
            todo += run.children.values()


class Prompt:
    """The tokens of one request whose content is known, and how much of them the request has in the tree."""

    __slots__ = ("blocks", "keys", "ratio", "run")

    def __init__(self, root: Run, keys: Keys, ratio: int, blocks: int) -> None:
        self.keys, self.ratio = keys, ratio
        self.blocks = blocks
        """Blocks that may be in the tree; what the request has beyond them is its own."""
        self.run = root
        """The last run the request holds."""

    def find(self, limit: int) -> tuple[list[Run], int, int]:
        """The longest known beginning, up to `limit` blocks: the runs it touches below those that the request holds,
        its blocks, and how many of these are in use.

        It may end within the last of these runs.
        """
        path: list[Run] = []
        node, keys, ratio = self.run, self.keys, self.ratio
        found = held = node.end
        while found < limit:
            at = found // ratio
            run = node.children.get(keys[at])
            if run is None:
                break
            path.append(run)
            end = run.end if run.end < limit else limit
            upto = (end - 1) // ratio + 1
            mine, theirs = keys[at:upto], run.keys[at:upto]
            if mine != theirs:
                end = limit = (at + _common(mine, theirs)) * ratio
            if run.refs:  # and so have all before it
                held = end
            node, found = run, end
        return path, found, held

    def extend(self, end: int, joins: Joins) -> None:
        """The request has filled its blocks up to `end`: others may find them from now on.

        Unless another request has filled blocks with the same content meanwhile; then these stay as they are, and
        this request's blocks from here on are its own.
        """
        run, keys = self.run, self.keys
        key = keys[run.end // self.ratio]
        if key in run.children:
            self.blocks = run.end
        elif run.refs == 1 and not run.children and run.parent is not None and joins(run.hits, 1):
            run.keys, run.end = keys, end
        else:
            self.run = run.children[key] = Run(run, key, keys, run.end, end)
            self.run.refs = self.run.hits = 1


def _common(a: Keys, b: Keys) -> int:
    """The number of leading keys that are equal, by bisection: comparing slices is quicker than comparing keys."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
