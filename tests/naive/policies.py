"""What the next step computes: sim/engine/README.md. Each policy walks all sequences every time it is asked."""

import math


class Policy:
    """What all have in common; as it stands, the plan called "chunked"."""

    drains = False

    def __init__(self, replica, max_num_partial_prefills=0):
        self.most_partial = max_num_partial_prefills or math.inf
        self.rules, self.memory, self.queue, self.replica = replica.rules, replica.memory, replica.queue, replica
        self.budget = self.rules.max_num_batched_tokens
        self.chunk_limit = self.rules.long_prefill_token_threshold or math.inf
        self.seats = self.rules.max_num_seqs

    @staticmethod
    def longest(rules):
        """Tokens of the longest request that is accepted."""
        return rules.max_model_len

    def wake(self):
        """When a plan is to be made though nothing happens."""
        return math.inf

    def ended(self, s):
        """A request that ran is gone."""

    def begin(self):
        self.decodes, self.chunks, self.preempted = [s for s in self.replica.running if s.decodes], [], False
        for s in self.decodes:
            self.memory.complete(s)

    def plan(self):
        """(decodes, chunks) of the next step; None if there is nothing to compute."""
        self.begin()
        if not self.make_room():
            return None
        self.continue_prompts()
        if not self.preempted:
            self.admit()
        return self.decodes, self.chunks

    def left(self):
        return self.budget - len(self.decodes) - sum(n for _, _, n in self.chunks)

    def short(self):
        return self.memory.spare(self.decodes) < 0

    def make_room(self):
        """Preempt until the decodes fit; False if that cannot be."""
        while self.short():
            victim = self.victim()
            if not victim:
                return False
            self.preempt(victim)
        return True

    def victim(self):
        """Nobody whose last token is in flight, nobody who has a chunk in this plan; None if nobody is left."""
        served = [s for s, _, _ in self.chunks]
        running = [s for s in self.replica.running if s.promised < s.job.output and s not in served]
        if self.rules.victim == "lowest_priority":
            running.sort(key=lambda s: (s.job.priority, s.job.arrival_ps, s.job.id))
        return running[-1] if running else None

    def preempt(self, s, last=False):
        self.preempted = True
        self.replica.preempt(s, last)
        if s in self.decodes:
            self.decodes.remove(s)

    def continue_prompts(self):
        """Chunks for those who have begun."""
        for s in [s for s in self.replica.running if not s.decodes]:  # a preemption may shorten the list behind s
            n = min(self.left(), s.target - s.computed, self.chunk_limit)
            while n > 0 and s.state == "running" and not self.memory.fits(s, n, self.decodes):
                self.preempt(self.victim())
            if n > 0 and s.state == "running":
                self.take(s, n)

    def first_chunk(self, missing):
        """Of a newcomer; more than the budget has left: not now."""
        return min(self.left(), missing, self.chunk_limit)

    def admit(self):
        while self.replica.waiting() and self.left() > 0 and len(self.replica.running) < self.seats:
            if sum(not s.decodes for s in self.replica.running) >= self.most_partial:
                return
            if not self.admit_one(self.replica.waiting()[0]):
                return

    def admit_one(self, s):
        if s.computed:
            return self.restore(s)
        found = self.memory.lookup(s)
        n = self.first_chunk(s.target - len(found) * self.rules.block_size)
        if n > self.left() or not self.memory.admit(s, n, found, self.decodes):
            return False
        s.cached = s.computed if s.cached < 0 else s.cached
        self.replica.seat(s)
        self.take(s, n)
        return True

    def restore(self, s):
        """One that was swapped out comes back and decodes."""
        if not self.memory.restore_computed(s, self.decodes):
            return False
        self.replica.seat(s)
        self.replica.copy_in(s)
        self.decodes.append(s)
        return True

    def take(self, s, n):
        before = s.computed
        self.chunks.append((s, before, n))
        s.computed += n
        self.memory.fill(s, before)


class Continuous(Policy):
    """Whole prompts."""

    def __init__(self, replica, priority="prefill", mixed=False):
        super().__init__(replica)
        self.priority, self.mixed = priority, mixed

    @staticmethod
    def longest(rules):
        return min(rules.max_model_len, rules.max_num_batched_tokens)  # a prompt must fit one step

    def first_chunk(self, missing):
        return missing

    def plan(self):
        self.begin()
        if self.priority == "prefill":
            return self.prompts_first()
        if not self.make_room():
            return None
        if not self.preempted and (self.mixed or not self.decodes):
            self.admit()
        return self.decodes if self.mixed or not self.chunks else [], self.chunks

    def left(self):
        """Who only comes back needs no budget."""
        waiting = self.replica.waiting()
        return max(super().left(), 1 if waiting and waiting[0].computed else 0)

    def restore(self, s):
        self.budget += self.priority == "prefill"
        return super().restore(s)

    def prompts_first(self):
        self.budget = self.rules.max_num_batched_tokens + len(self.decodes)  # all of it is the prompts'
        self.admit()
        if self.chunks:
            beside = self.mixed and super().left() >= len(self.decodes)
            return self.decodes if beside else [], self.chunks
        return (self.decodes, []) if self.make_room() else None


class Static(Policy):
    """A batch that starts and ends together."""

    drains = True

    def __init__(self, replica, padding=True):
        super().__init__(replica)
        self.padding, self.budget = padding, math.inf

    def first_chunk(self, missing):
        return missing

    def plan(self):
        self.begin()
        if self.replica.running:
            room = self.make_room()
            left = any(s.promised < s.job.output for s in self.decodes)
            if self.replica.running:
                return (self.decodes, []) if room and (left or not self.preempted) else None
        if not self.due():
            return None
        waiting, count = self.replica.waiting()[: self.seats], 0
        while self.padding and count < len(waiting) and self.together(waiting[: count + 1]):
            count += 1
        self.pad(waiting[:count])
        for s in waiting[:count] if self.padding else waiting:
            if not self.admit_one(s):
                break
        return [], self.chunks

    def due(self):
        return True

    def pad(self, batch):
        if self.padding:
            for s in batch:
                s.target = max(other.job.prompt + other.promised for other in batch)

    def together(self, batch):
        """Whether all find blocks, one after the other; everything is as before afterwards."""
        saved = self.memory.save(batch)
        self.pad(batch)
        fit = True
        for s in batch:
            found = self.memory.lookup(s)
            fit = fit and self.memory.admit(s, s.target - len(found) * self.rules.block_size, found, [])
            if fit:
                before, s.computed = s.computed, s.target
                self.memory.fill(s, before)
        self.memory.restore(saved)
        for s in batch:
            s.computed, s.target = 0, s.job.prompt + s.promised
        return fit


class Dynamic(Static):
    """As static, once enough wait or the oldest has waited long enough."""

    def __init__(self, replica, max_batch_size=None, max_wait_ps=0, **options):
        super().__init__(replica, **options)
        self.seats, self.max_wait_ps = min(self.seats, max_batch_size or self.seats), max_wait_ps

    def wake(self):
        waiting = self.replica.waiting()
        if self.replica.running or not waiting:
            return math.inf
        return min(s.job.arrival_ps for s in waiting) + self.max_wait_ps

    def due(self):
        return len(self.replica.waiting()) >= self.seats or self.replica.now >= self.wake()


class SGLang(Policy):
    """One prompt under way at most; admission by an estimate of what the decodes will still need."""

    def __init__(self, replica, mixed=False, schedule_conservativeness=1.0):
        super().__init__(replica)
        self.mixed, self.full = mixed, False
        self.top = min(1.0, 0.7 * schedule_conservativeness)
        self.from_, self.steps = self.top, 0

    def ended(self, s):
        self.full = False

    def ratio(self):
        return max(self.from_ - self.steps * (self.top - 0.14 * self.top) / 600, 0.14 * self.top)

    def to_come(self, s):
        return min(s.job.max_output - s.promised, 4096)

    def left(self):
        return self.budget - (len(self.decodes) if self.mixed else 0) - sum(n for _, _, n in self.chunks)

    def plan(self):
        self.begin()
        if not self.replica.running and not self.replica.waiting():
            self.from_, self.steps = self.top, 0
            return None
        self.free = self.memory.free_blocks() * self.rules.block_size - (len(self.decodes) if self.mixed else 0)
        self.ends = []  # m of those whose prompt this plan completes
        under_way = [s for s in self.replica.running if not s.decodes]
        if self.first_prompt(under_way) and not self.full:
            self.admit()
        if self.chunks:
            return self.decodes if self.mixed else [], self.chunks
        return self.decode(under_way)

    def first_prompt(self, under_way):
        """A chunk for the one that has begun; False if it finds no blocks."""
        for s in under_way:
            n = min(self.left(), s.target - s.computed)
            if n <= 0 or not self.memory.fits(s, n, self.decodes):
                return False
            self.take(s, n)
        return True

    def admit(self):
        while self.replica.waiting() and self.left() > 0 and all(s.decodes for s, _, _ in self.chunks):
            s = self.replica.waiting()[0]
            if not self.estimate(s) or len(self.replica.running) >= self.seats or not self.admit_one(s):
                self.full = True
                return

    def estimate(self, s):
        if not self.replica.running:
            return True
        e = s.target - len(self.memory.lookup(s)) * self.rules.block_size
        later = sum(self.to_come(d) for d in self.decodes)
        now = sum(n for _, _, n in self.chunks) + sum(self.ends)
        return e + self.to_come(s) < self.free - self.ratio() * later - now

    def take(self, s, n):
        super().take(s, n)
        if s.decodes:
            self.ends.append(self.to_come(s))

    def decode(self, under_way):
        if not self.short():
            self.steps += bool(self.decodes)
            return self.decodes, []
        retracted = []
        while (self.short() or self.tight() or not retracted) and len(self.decodes) > 1:
            able = [s for s in self.decodes if s.promised < s.job.output]
            if not able:
                break
            retracted.append(min(able, key=lambda s: (s.promised, -s.job.prompt, -s.job.id)))
            self.preempt(retracted[-1], last=True)
        if retracted:
            emitted, longest = sum(s.promised for s in self.decodes), sum(s.job.max_output for s in self.decodes)
            self.from_, self.steps = min(1.0, (emitted + 20 * len(self.decodes)) / longest), 0
        for s in under_way:
            if self.short():
                self.preempt(s)
        return None if self.short() else (self.decodes, [])

    def tight(self):
        return self.memory.free_blocks() * self.rules.block_size < 20 * len(self.decodes)

    def preempt(self, s, last=False):
        super().preempt(s, last)
        self.full = False


POLICIES = {"chunked": Policy, "continuous": Continuous, "static": Static, "dynamic": Dynamic, "sglang": SGLang}
