"""Two prefix caches as plain as possible, one in blocks and one a tree of nodes, for tests: every look walks all."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(eq=False)
class Guest:
    """A request: what its tokens are (None: nobody's), and what it has."""

    content: list[object]
    has: int = 0  # tokens with room
    grows: bool = False
    table: list[Page] = field(default_factory=list)
    node: Node | None = None  # radix: the last node it holds
    own: int = 0  # radix: pages of its own, behind those of its nodes
    apart: bool = False  # blocks: equal ones existed, so what follows is nobody's to find


@dataclass(eq=False)
class Page:
    """A block: what it holds with all before it, who holds it, how many ever did, and when it was let go."""

    name: object = None
    refs: int = 0
    hits: int = 0
    since: int = 0


@dataclass(eq=False)
class Node:
    """A node of the radix tree."""

    parent: Node | None
    pages: list[object]
    children: list[Node] = field(default_factory=list)
    refs: int = 0
    hits: int = 0
    since: int = 0


def full_pages(guest: Guest, size: int, tokens: int) -> list[object]:
    """The full pages within so many tokens whose content is known."""
    pages: list[object] = []
    for begin in range(0, min(tokens, len(guest.content)) // size * size, size):
        page = tuple(guest.content[begin : begin + size])
        if None in page:
            break
        pages.append(page)
    return pages


class PlainBlocks:
    """Hash blocks: each block by itself; the order of eviction is `by_hits`, or by time alone."""

    def __init__(self, blocks: int, size: int, by_hits: bool) -> None:
        self.size, self.by_hits, self.clock = size, by_hits, 0
        self.blocks = [Page() for _ in range(blocks)]

    @property
    def free(self) -> int:
        return sum(not b.refs for b in self.blocks)

    def find(self, guest: Guest, limit: int) -> list[Page]:
        """Blocks that hold its beginning."""
        names = full_pages(guest, self.size, limit)
        found: list[Page] = []
        for i in range(len(names)):
            block = next((b for b in self.blocks if b.name == tuple(names[: i + 1])), None)
            if block is None:
                break
            found.append(block)
        return found

    def admit(self, guest: Guest, limit: int) -> int:
        """Hold what is found; tokens."""
        guest.table = self.find(guest, limit)
        for block in guest.table:
            block.refs += 1
            block.hits += 1
        guest.has = len(guest.table) * self.size
        return guest.has

    def extend(self, guest: Guest, tokens: int, known: int) -> None:
        """Room for `tokens` more; full blocks of the first `known` tokens can be found."""
        guest.has += tokens
        while len(guest.table) * self.size < guest.has:
            block = min((b for b in self.blocks if not b.refs), key=self.order)
            block.name, block.refs, block.hits = None, 1, 1
            guest.table.append(block)
        self.publish(guest, known)

    def order(self, block: Page) -> tuple[int, int]:
        """Who goes first."""
        return (0 if block.name is None else block.hits) if self.by_hits else 0, block.since

    def publish(self, guest: Guest, known: int) -> None:
        """Name the full blocks; stop at the first that exists elsewhere."""
        names = full_pages(guest, self.size, known)
        for i in range(len(names)):
            name, block = tuple(names[: i + 1]), guest.table[i]
            if guest.apart or block.name == name:
                continue
            guest.apart = any(b.name == name for b in self.blocks)
            if not guest.apart:
                block.name = name

    def leave(self, guest: Guest, known: int) -> None:
        """Blocks go back, the last one first."""
        self.publish(guest, known)
        for block in reversed(guest.table):
            block.refs -= 1
            self.clock += 1
            block.since = self.clock if not block.refs else block.since

    def computed(self, guest: Guest, known: int) -> None:
        """Nothing happens when a chunk is computed."""


class PlainRadix:
    """A tree of nodes, evicted leaf by leaf."""

    def __init__(self, pages: int, size: int, by_hits: bool) -> None:
        self.size, self.by_hits, self.clock = size, by_hits, 0
        self.root, self.empty = Node(None, []), pages

    @property
    def free(self) -> int:
        return self.empty + sum(len(n.pages) for n in self.nodes() if not n.refs)

    def nodes(self) -> list[Node]:
        """All but the root."""
        found, todo = [], [self.root]
        for node in todo:
            todo += node.children
            found += node.children
        return found

    def find(self, guest: Guest, limit: int) -> list[object]:
        """The pages that match."""
        wanted, at, matched = full_pages(guest, self.size, limit), self.root, 0
        while True:
            child = next((c for c in at.children if c.pages[:1] == wanted[matched : matched + 1]), None)
            if child is None:
                return wanted[:matched]
            for page in child.pages:
                if matched == len(wanted) or page != wanted[matched]:
                    return wanted[:matched]
                matched += 1
            at = child

    def hold(self, guest: Guest, pages: list[object]) -> None:
        """Hold the nodes of these pages, which are in the tree, below those the guest holds; splits the last one."""
        at = guest.node or self.root
        while pages:
            child = next(c for c in at.children if c.pages[0] == pages[0])
            common = min(len(child.pages), len(pages))
            if common < len(child.pages):
                upper = Node(at, child.pages[:common], [child], child.refs, child.hits, child.since)
                at.children[at.children.index(child)] = upper
                child.parent, child.pages = upper, child.pages[common:]
                child = upper
            child.refs += 1
            child.hits += 1
            at = guest.node = child
            pages = pages[common:]

    def admit(self, guest: Guest, limit: int) -> int:
        """Hold what is found; tokens."""
        pages = self.find(guest, limit)
        self.hold(guest, pages)
        guest.has = len(pages) * self.size
        return guest.has

    def held(self, guest: Guest) -> list[object]:
        """The pages of its nodes."""
        pages: list[object] = []
        node = guest.node
        while node is not None:
            pages, node = node.pages + pages, node.parent
        return pages

    def extend(self, guest: Guest, tokens: int, known: int) -> None:
        """Pages of its own for `tokens` more."""
        guest.has += tokens
        need = -(-guest.has // self.size) - guest.own - len(self.held(guest))
        while self.empty < need:
            self.evict()
        self.empty -= need
        guest.own += need

    def evict(self) -> None:
        """One leaf that nobody holds."""
        leaves = [n for n in self.nodes() if not n.refs and not n.children]
        leaf = min(leaves, key=lambda n: (n.hits if self.by_hits else 0, n.since))
        assert leaf.parent is not None
        leaf.parent.children.remove(leaf)
        self.empty += len(leaf.pages)

    def computed(self, guest: Guest, known: int) -> None:
        """Insert the full pages of `known` tokens; what is there already is held there, and the own copy freed."""
        pages, before = full_pages(guest, self.size, known), len(self.held(guest))
        if len(pages) <= before:
            return
        there = len(self.find(guest, known))
        self.hold(guest, pages[before:there])
        guest.own -= len(pages) - before
        self.empty += there - before
        if pages[there:]:
            above = guest.node or self.root
            guest.node = Node(above, pages[there:], refs=1, hits=1)
            above.children.append(guest.node)

    def leave(self, guest: Guest, known: int) -> None:
        """Insert, and let go."""
        self.computed(guest, known)
        self.clock += 1
        self.empty += guest.own
        node = guest.node
        while node is not None:
            node.refs -= 1
            node.since = self.clock
            node = node.parent
