"""What a prefix cache remembers: a tree of block runs, and the queue of blocks that may be taken.

Both hold runs of consecutive blocks, never single blocks, so their cost follows the number of distinct prompts and not
their length.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator

Keys = tuple[Hashable, ...]


class Run:
    """Blocks `begin` to before `end` of a prompt, after those of its `parent`; a path from the root is a prompt.

    A key says what `ratio` consecutive blocks hold; `keys` are those of this run, the first and the last of which may
    belong to it in part. All requests that hold one of the run's blocks hold all of them, and those of its ancestors:
    `refs` counts these requests. A run without a parent that is not a root holds nothing anybody could ask for.
    """

    __slots__ = ("begin", "children", "end", "keys", "parent", "refs")

    def __init__(self, parent: Run | None, keys: Keys, begin: int, end: int, refs: int = 0) -> None:
        self.parent, self.keys, self.begin, self.end, self.refs = parent, keys, begin, end, refs
        self.children: dict[Hashable, Run] = {}

    @property
    def blocks(self) -> int:
        """Blocks in the run."""
        return self.end - self.begin

    def split(self, at: int, ratio: int) -> Run:
        """The blocks before `at` become a run of their own, which is returned: the parent of what is left."""
        first = self.begin // ratio
        upper = Run(self.parent, self.keys[: (at - 1) // ratio + 1 - first], self.begin, at, self.refs)
        if self.parent is not None:
            self.parent.children[self.keys[0]] = upper
        self.keys = self.keys[at // ratio - first :]
        upper.children[self.keys[0]] = self
        self.parent, self.begin = upper, at
        return upper

    def absorb(self, upper: Run, ratio: int) -> None:
        """Undo a split that no longer matters: nobody holds the parent without this run, its only child."""
        self.keys = upper.keys + (self.keys[1:] if self.begin % ratio else self.keys)
        self.begin, self.parent = upper.begin, upper.parent
        if self.parent is not None:
            self.parent.children[self.keys[0]] = self

    def descendants(self) -> Iterator[Run]:
        """All runs below this one, parents first."""
        todo = list(self.children.values())
        while todo:
            run = todo.pop()
            yield run
            todo += run.children.values()


class Prompt:
    """The beginning of one request's prompt whose content is known, and how much of it the request has in the tree."""

    __slots__ = ("blocks", "keys", "ratio", "run")

    def __init__(self, root: Run, keys: Keys, ratio: int, blocks: int) -> None:
        self.keys, self.ratio = keys, ratio
        self.blocks = blocks
        """Blocks that may be in the tree; what the request has beyond them is its own."""
        self.run = root
        """The last run the request holds."""

    def find(self, limit: int) -> tuple[list[Run], int]:
        """The longest known beginning, up to `limit` blocks: the runs it touches and the number of blocks.

        It may end within the last of these runs.
        """
        path: list[Run] = []
        node, found, keys, ratio = self.run, 0, self.keys, self.ratio
        while found < limit:
            at = found // ratio
            run = node.children.get(keys[at])
            if run is None:
                break
            path.append(run)
            count = (run.end - 1) // ratio + 1 - at
            if len(run.keys) != count:
                run.keys = run.keys[:count]  # its last blocks have been taken since
            mine = keys[at : at + count]
            if mine != run.keys:
                return path, min((at + _common(mine, run.keys)) * ratio, run.end, limit)
            node, found = run, run.end
        return path, min(found, limit)

    def extend(self, end: int) -> None:
        """The request has filled its blocks up to `end`: others may find them from now on.

        Unless another request has filled blocks with the same content meanwhile; then these stay as they are, and
        this request's blocks from here on are its own.
        """
        run, ratio = self.run, self.ratio
        at, upto = run.end // ratio, (end - 1) // ratio + 1
        if self.keys[at] in run.children:
            self.blocks = run.end
        elif run.refs == 1 and not run.children and run.parent is not None:
            run.keys, run.end = self.keys[run.begin // ratio : upto], end
        else:
            self.run = run.children[self.keys[at]] = Run(run, self.keys[at:upto], run.end, end, 1)


class FreeQueue:
    """Runs of blocks nobody holds, in the order in which they will be taken.

    Blocks without known content are counts. `blocks` is the length of the queue.
    """

    __slots__ = ("_last", "_runs", "blocks")

    def __init__(self, blocks: int) -> None:
        self._last: Run | None = None
        """The run at the end, if its content is unknown."""
        self._runs: OrderedDict[Run, None] = OrderedDict()
        self.blocks = 0
        self.add_unknown(blocks)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    def add_unknown(self, blocks: int) -> None:
        """Blocks that nobody can ask for, at the end."""
        if not blocks:
            return
        self.blocks += blocks
        if self._last is None:
            self._last = Run(None, (), 0, blocks)
            self._runs[self._last] = None
        else:
            self._last.end += blocks

    def add(self, run: Run) -> None:
        """A run of the tree, at the end; the last of its blocks will be taken first."""
        self.blocks += run.end - run.begin
        self._runs[run] = None
        self._last = None

    def remove(self, run: Run) -> None:
        """A run that somebody holds again."""
        self.blocks -= run.end - run.begin
        del self._runs[run]

    def take(self, blocks: int) -> None:
        """Blocks from the front; what they held is forgotten."""
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
                del run.parent.children[run.keys[0]]
                run.parent = None
            elif run is self._last:
                self._last = None


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
