"""Blocks that outlive their request: the rules of sim/kv/README.md, block by block."""

from dataclasses import dataclass

from naive.memory import Paged


def identity(s, i, size):
    """What block i of a sequence holds, with all that comes before it; None if it is not named."""
    end, hashed = (i + 1) * size, len(s.job.hashes) * s.job.hash_tokens
    if end > (hashed if s.job.names_answer else min(s.job.prompt, hashed)):
        return None
    return i, s.job.hash_tokens, s.job.hashes[: -(-end // s.job.hash_tokens)]


class HashBlock(Paged):
    """vLLM V1."""

    def __init__(self, rules, **options):
        super().__init__(rules, **options)
        self.users = [0] * rules.num_blocks
        self.content, self.known = {}, {}  # block -> what it holds, and the other way round
        self.holders = {}  # block -> how many have held it since it became known

    def in_use(self, found):
        return sum(self.users[block] > 0 for block in found)

    def hold(self, s, found):
        self.free = [block for block in self.free if block not in found]
        for block in found:
            self.users[block] += 1
            self.holders[block] += 1
        s.table = list(found)

    def lookup(self, s):
        found = []
        while (len(found) + 1) * self.size < s.target:
            block = self.known.get(identity(s, len(found), self.size))
            if block is None:
                break
            found.append(block)
        return found

    def fill(self, s, before):
        super().fill(s, before)
        self.publish(s, s.computed)

    def take_block(self, s):
        block = self.free[0]
        if self.rules.eviction == "lfu":
            block = min(self.free, key=lambda block: self.holders[block] if block in self.content else 0)
        self.free.remove(block)
        if block in self.content:
            del self.known[self.content.pop(block)]
        self.users[block] = 1
        s.table.append(block)

    def publish(self, s, tokens):
        """Full blocks of so many tokens can be found from now on, unless equal ones can."""
        for i in range(tokens // self.size):
            name = identity(s, i, self.size)
            if s.own or name is None or self.known.get(name) == s.table[i]:
                continue
            if name in self.known:
                s.own = True
            else:
                self.known[name], self.content[s.table[i]], self.holders[s.table[i]] = s.table[i], name, 1

    def free_all(self, s, known):
        if s.state == "running":
            self.publish(s, known)
        for block in reversed(s.table):
            self.users[block] -= 1
            if self.users[block] == 0:
                self.free.append(block)
        s.table, s.own, s.room = [], False, 0


class Radix(Paged):
    """SGLang: nodes of a tree. A sequence's `table` holds what it has for itself; block numbers mean nothing here."""

    def __init__(self, rules, **options):
        super().__init__(rules, **options)
        self.nodes, self.holding, self.clock = [], [], 0

    def free_blocks(self):
        return len(self.free) + sum(len(node.names) for node in self.nodes if node.holders == 0)

    def held(self, s):
        return super().held(s) + sum(len(node.names) for node in s.path)

    def names(self, s, tokens):
        """Identities of the full named blocks of so many tokens."""
        found = []
        while (len(found) + 1) * self.size <= tokens and identity(s, len(found), self.size) is not None:
            found.append(identity(s, len(found), self.size))
        return found

    def match(self, names):
        """(node, how many of its blocks) from the root on."""
        path = []
        while names:
            node = next((node for node in self.nodes if node.names[0] == names[0]), None)
            if node is None:
                break
            same = sum(ours == theirs for ours, theirs in zip(names, node.names, strict=False))
            path.append((node, same))
            names = names[same:] if same == len(node.names) else []
        return path

    def lookup(self, s):
        return [node for node, same in self.match(self.names(s, s.target - 1)) for _ in range(same)]

    def in_use(self, found):
        return sum(node.holders > 0 for node in found)

    def hold(self, s, found):
        self.holding.append(s)
        for node in list(dict.fromkeys(found)):
            self.join(s, node, found.count(node))

    def join(self, s, node, blocks):
        """Hold the first blocks of a node, which is cut behind them."""
        if blocks < len(node.names):
            lower = Node(node.names[blocks:], node, node.holders, node.ever, node.time)
            node.names = node.names[:blocks]
            for other in self.nodes:
                other.parent = lower if other.parent is node else other.parent
            self.nodes.append(lower)
            for other in self.holding:
                if node in other.path:
                    other.path.insert(other.path.index(node) + 1, lower)
        node.holders, node.ever = node.holders + 1, node.ever + 1
        s.path.append(node)

    def fill(self, s, before):
        super().fill(s, before)
        if before:
            self.insert(s, before)

    def complete(self, s):
        self.insert(s, s.target)

    def insert(self, s, tokens):
        """Others can find its blocks from now on; what the tree has already it need not have twice."""
        names = self.names(s, tokens)[sum(len(node.names) for node in s.path) :]
        for node, same in self.match(names):
            self.join(s, node, same)
            self.free += [s.table.pop() for _ in range(same)]
            names = names[same:]
        if names:
            s.path.append(Node(names, s.path[-1] if s.path else None, 1, 1, 0))
            self.nodes.append(s.path[-1])
            del s.table[-len(names) :]

    def take_block(self, s):
        if not self.free:
            parents = [node.parent for node in self.nodes]
            leaves = [node for node in self.nodes if node.holders == 0 and node not in parents]
            first = min(leaves, key=lambda node: (node.ever if self.rules.eviction == "lfu" else 0, node.time))
            self.nodes.remove(first)
            self.free += first.names
        super().take_block(s)

    def free_all(self, s, known):
        if s not in self.holding:
            return
        self.insert(s, known)
        self.clock += 1
        for node in s.path:
            node.holders, node.time = node.holders - 1, self.clock
        self.holding.remove(s)
        s.path = []
        super().free_all(s, known)


@dataclass(eq=False)
class Node:
    names: list
    parent: "Node | None"
    holders: int
    ever: int
    time: int  # of the last letting go


PREFIX_CACHES = {"hash_block": HashBlock, "radix": Radix}
