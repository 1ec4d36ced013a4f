"""Memory as lists of block numbers: the rules of sim/kv/README.md."""

import copy


class Paged:
    """Blocks on demand."""

    unit = 1  # blocks that a decode takes when it needs any

    def __init__(self, rules, watermark=0, bound_tokens=None):
        self.rules, self.size, self.watermark = rules, rules.block_size, int(watermark * rules.num_blocks)
        self.bound = bound_tokens or 10**12
        self.free = list(range(rules.num_blocks))  # the next block to be taken first

    def blocks(self, tokens):
        return -(-min(tokens, self.bound) // self.size)

    def most(self, job):
        """Blocks without which the job is refused."""
        return self.blocks(job.prompt + job.max_output) + self.rules.fixed_blocks

    def free_blocks(self):
        return len(self.free)

    def held(self, s):
        """Blocks for tokens that it holds, alone or with others."""
        return len(s.table) - self.rules.fixed_blocks

    def growth(self, s):
        """Blocks that the next token of a decode takes."""
        return max(0, self.blocks(s.computed + 1) - self.held(s))

    def spare(self, decodes):
        """Blocks that nobody holds and no decode of this step needs; negative when the decodes do not fit."""
        return self.free_blocks() - sum(self.growth(s) for s in decodes)

    def fits(self, s, n, decodes):
        """Whether a later chunk finds its blocks."""
        return max(0, self.blocks(s.computed + n) - self.held(s)) <= self.spare(decodes)

    def lookup(self, s):
        """Blocks that a request need not compute, because they hold the beginning of its prompt."""
        return []

    def in_use(self, found):
        """How many of these somebody holds."""
        return 0

    def admit(self, s, n, found, decodes):
        """Whether there is room for what was found and n tokens more; what was found is taken then."""
        s.room = self.room(s, len(found) * self.size + n)
        need = self.blocks(s.room) + self.rules.fixed_blocks - self.in_use(found)
        kept = self.watermark if self.free_blocks() < self.rules.num_blocks else 0
        if need > self.spare(decodes) - kept:
            return False
        self.hold(s, found)
        s.computed = len(found) * self.size
        return True

    def restore_computed(self, s, decodes):
        """Room for what one that was swapped out has computed, if its next token has room as well."""
        s.room = self.room(s, s.computed)
        more = self.blocks(s.computed + 1) > self.blocks(s.room)
        need = self.blocks(s.room) + self.rules.fixed_blocks + (self.unit if more else 0)
        kept = self.watermark if self.free_blocks() < self.rules.num_blocks else 0
        if need > self.spare(decodes) - kept:
            return False
        self.fill(s, s.computed)
        return True

    def hold(self, s, found):
        pass

    def room(self, s, tokens):
        """Tokens that a newcomer whose first chunk ends at `tokens` reserves."""
        return tokens

    def fill(self, s, before):
        """Blocks for the computed tokens and the room of one that had computed so many before."""
        while self.held(s) < self.blocks(max(s.computed, s.room)):
            self.take_block(s)

    def grow(self, s):
        """A decode stores one token more."""
        for _ in range(self.growth(s)):
            self.take_block(s)
        s.computed += 1

    def take_block(self, s):
        s.table.append(self.free.pop(0))

    def complete(self, s):
        """Its prompt is computed."""

    def free_all(self, s, known):
        """It lets go; the first `known` tokens are computed and received."""
        self.free += reversed(s.table)
        s.table, s.room = [], 0

    def save(self, sequences):
        """All that `restore` needs to bring this moment back."""
        mine = {name: copy.copy(value) for name, value in vars(self).items() if isinstance(value, (list, dict))}
        return mine, [(s, list(s.table), s.own, s.room) for s in sequences]

    def restore(self, saved):
        mine, sequences = saved
        vars(self).update(mine)
        for s, table, own, room in sequences:
            s.table, s.own, s.room = table, own, room


class Predicted(Paged):
    """Room for the answer that is expected; a decode beyond it takes some blocks at a time."""

    def __init__(self, rules, growth_blocks=1, **options):
        super().__init__(rules, **options)
        self.unit = growth_blocks

    def most(self, job):
        return super().most(job) + self.unit - 1

    def room(self, s, tokens):
        return max(tokens, s.target, s.job.prompt + min(s.job.predicted, s.job.max_output))

    def growth(self, s):
        return self.unit if super().growth(s) else 0


class MaxLength(Paged):
    """Room for the longest answer, at one place."""

    def __init__(self, rules, reserve="output", placement="first-fit", **options):
        super().__init__(rules, **options)
        self.reserve, self.placement = reserve, placement
        self.places = {}  # sequence -> (address, size)

    def most(self, job):
        return self.size_of(job.prompt + job.max_output)

    def size_of(self, longest):
        """Blocks that are taken for a sequence of so many tokens."""
        room = max(longest, self.rules.max_model_len) if self.reserve == "context" else longest
        size = self.blocks(room) + self.rules.fixed_blocks
        return 1 << (size - 1).bit_length() if self.placement == "buddy" else size

    def growth(self, s):
        return 0

    def fits(self, s, n, decodes):
        return True

    def fill(self, s, before):
        pass  # all its room is taken

    def grow(self, s):
        s.computed += 1

    def admit(self, s, n, found, decodes):
        size = self.size_of(s.target + s.job.max_output - s.promised)
        address = self.address(size)
        if address is not None:
            self.places[s] = address, size
        return address is not None

    def free_blocks(self):
        return self.rules.num_blocks - sum(size for _, size in self.places.values())

    def free_all(self, s, known):
        self.places.pop(s, None)

    def address(self, size):
        if self.placement == "paged":
            return 0 if size <= self.free_blocks() else None
        holes = self.pieces() if self.placement == "buddy" else self.holes()
        large = [(length, at) for at, length in holes if length >= size]
        if not large:
            return None
        return min(at for _, at in large) if self.placement == "first-fit" else min(large)[1]

    def holes(self):
        """(address, length) of what lies between the places that are taken."""
        at = 0
        for start, size in [*sorted(self.places.values()), (self.rules.num_blocks, 0)]:
            if start > at:
                yield at, start - at
            at = start + size

    def pieces(self):
        """The free pieces of a buddy system: halves of halves, down to where nothing is taken."""
        todo, at = [], 0
        for power in reversed(range(40)):
            if self.rules.num_blocks >> power & 1:
                todo.append((at, 1 << power))
                at += 1 << power
        while todo:
            at, length = todo.pop()
            inside = [(start, size) for start, size in self.places.values() if at <= start < at + length]
            if not inside:
                yield at, length
            elif inside != [(at, length)]:
                todo += [(at, length // 2), (at + length // 2, length // 2)]


MEMORIES = {"paged": Paged, "predicted": Predicted, "max-length": MaxLength}
