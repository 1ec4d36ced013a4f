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

    A key says what `ratio` consecutive blocks hold. `keys` are those of some prompt that goes through this run, from
    its first block, so that nothing is copied when a run is cut or grows; `key` is that of this run's first block, and
    its name among its parent's children. All requests that hold one of the run's blocks hold all of them, and those of
    its ancestors: `refs` counts these requests. A run without a parent that is not a root holds nothing anybody could
    ask for.
    """

    __slots__ = ("begin", "children", "end", "key", "keys", "parent", "refs")

    def __init__(self, parent: Run | None, key: Hashable, keys: Keys, begin: int, end: int) -> None:
        self.parent, self.key, self.keys, self.begin, self.end = parent, key, keys, begin, end
        self.refs = 0
        self.children: dict[Hashable, Run] = {}

    @property
    def blocks(self) -> int:
        """Blocks in the run."""
        return self.end - self.begin

    def split(self, at: int, ratio: int) -> Run:
        """The blocks before `at` become a run of their own, which is returned: the parent of what is left."""
        upper = Run(self.parent, self.key, self.keys, self.begin, at)
        upper.refs = self.refs
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

    def find(self, limit: int) -> tuple[list[Run], int, int]:
        """The longest known beginning, up to `limit` blocks: the runs it touches, its blocks, and those in use.

        It may end within the last of these runs.
        """
        path: list[Run] = []
        node, found, held, keys, ratio = self.run, 0, 0, self.keys, self.ratio
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

    def extend(self, end: int) -> None:
        """The request has filled its blocks up to `end`: others may find them from now on.

        Unless another request has filled blocks with the same content meanwhile; then these stay as they are, and
        this request's blocks from here on are its own.
        """
        run, keys = self.run, self.keys
        key = keys[run.end // self.ratio]
        if key in run.children:
            self.blocks = run.end
        elif run.refs == 1 and not run.children and run.parent is not None:
            run.keys, run.end = keys, end
        else:
            self.run = run.children[key] = Run(run, key, keys, run.end, end)
            self.run.refs = 1


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
            self._last = Run(None, None, (), 0, blocks)
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
                del run.parent.children[run.key]
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
