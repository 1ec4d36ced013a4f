"""Memory as lists of block numbers."""


class Paged:
    """Blocks on demand; full blocks of equal beginnings are shared when `prefix_caching` is set."""

    def __init__(self, rules):
        self.rules, self.size = rules, rules.block_size
        self.free = list(range(rules.num_blocks))  # the next block to be taken first
        self.users = [0] * rules.num_blocks
        self.content, self.known = {}, {}  # block -> what it holds, and the other way round

    def blocks(self, tokens):
        return -(-tokens // self.size)

    def most(self, job):
        """Blocks without which the job is refused."""
        return self.blocks(job.prompt + job.max_output) + self.rules.fixed_blocks

    def held(self, s):
        return len(s.table) - (self.rules.fixed_blocks if s.table else 0)

    def growth(self, s):
        """Blocks that the next token of a decode takes."""
        return max(0, self.blocks(s.computed + 1) - self.held(s))

    def spare(self, decodes):
        """Blocks that nobody holds and no decode of this step needs; negative when the decodes do not fit."""
        return len(self.free) - sum(self.growth(s) for s in decodes)

    def fits(self, s, n, decodes):
        """Whether a later chunk finds its blocks."""
        return max(0, self.blocks(s.computed + n) - self.held(s)) <= self.spare(decodes)

    def admit(self, s, n, found, decodes):
        """The blocks that hold the beginning of the prompt become its own, if there is room for n tokens more."""
        in_use = sum(self.users[block] > 0 for block in found)
        need = self.blocks(len(found) * self.size + n) + self.rules.fixed_blocks - in_use
        if need > self.spare(decodes):
            return False
        self.free = [block for block in self.free if block not in found]
        for block in found:
            self.users[block] += 1
        s.table, s.computed = list(found), len(found) * self.size
        return True

    def identity(self, s, i):
        """What block i of a prompt holds, with all that comes before it; None if that is not known."""
        end = (i + 1) * self.size
        if not self.rules.prefix_caching or end > min(s.job.prompt, len(s.job.hashes) * s.job.hash_tokens):
            return None
        return i, s.job.hash_tokens, s.job.hashes[: -(-end // s.job.hash_tokens)]

    def lookup(self, s):
        """The blocks that hold the beginning of the prompt, but not the last token that is to be computed."""
        found = []
        while (len(found) + 1) * self.size < s.target:
            block = self.known.get(self.identity(s, len(found)))
            if block is None:
                break
            found.append(block)
        return found

    def fill(self, s):
        """Give a sequence the blocks for its computed tokens; full blocks of the prompt can be found from now on."""
        while len(s.table) < self.blocks(s.computed) + self.rules.fixed_blocks:
            block = self.free.pop(0)
            if block in self.content:
                del self.known[self.content.pop(block)]
            self.users[block] = 1
            s.table.append(block)
        for i in range(s.computed // self.size):
            identity = self.identity(s, i)
            if s.own or identity is None or self.known.get(identity) == s.table[i]:
                continue
            if identity in self.known:
                s.own = True
            else:
                self.known[identity], self.content[s.table[i]] = s.table[i], identity

    def free_all(self, s):
        for block in reversed(s.table):
            self.users[block] -= 1
            if self.users[block] == 0:
                self.free.append(block)
        s.table, s.own = [], False
