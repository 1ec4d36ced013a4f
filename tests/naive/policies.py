"""What the next step computes. Each policy walks all sequences every time it is asked."""

import math


class Chunked:
    """vLLM V1: decodes, then prompts under way, then newcomers, under one budget."""

    def __init__(self, replica):
        self.rules, self.memory, self.replica = replica.rules, replica.memory, replica
        self.budget = self.rules.max_num_batched_tokens
        self.chunk_limit = self.rules.long_prefill_token_threshold or math.inf

    @staticmethod
    def longest(rules):
        """Tokens of the longest request that is accepted."""
        return rules.max_model_len

    def plan(self):
        """(decodes, chunks) of the next step; None if there is nothing to compute."""
        self.decodes, self.chunks = [s for s in self.replica.running if s.decodes], []
        if not self.make_room():
            return None
        preempted = self.continue_prompts() or self.preempted
        if not preempted:
            self.admit()
        return self.decodes, self.chunks

    def left(self):
        return self.budget - len(self.decodes) - sum(n for _, _, n in self.chunks)

    def make_room(self):
        """Preempt until the decodes fit; False if that cannot be."""
        self.preempted = False
        while self.memory.spare(self.decodes) < 0:
            self.preempted = True
            if not self.preempt_newest():
                return False
        return True

    def preempt_newest(self):
        """Nobody whose last token is in flight, nobody who has a chunk in this plan; None if nobody is left."""
        served = [s for s, _, _ in self.chunks]
        running = self.replica.running
        victim = ([None] + [s for s in running if s.promised < s.job.output and s not in served])[-1]
        if victim:
            self.replica.preempt(victim)
        if victim in self.decodes:
            self.decodes.remove(victim)
        return victim

    def continue_prompts(self):
        """Chunks for those who have begun; whether somebody was preempted for one."""
        preempted = False
        for s in [s for s in self.replica.running if not s.decodes]:  # a preemption may shorten the list behind s
            n = min(self.left(), s.target - s.computed, self.chunk_limit)
            while n > 0 and s.state == "running" and not self.memory.fits(s, n, self.decodes):
                preempted = True
                self.preempt_newest()
            if n > 0 and s.state == "running":
                self.take(s, n)
        return preempted

    def first_chunk(self, missing):
        """Of a newcomer; more than the budget has left: not now."""
        return min(self.left(), missing, self.chunk_limit)

    def admit(self):
        waiting, running = self.replica.waiting, self.replica.running
        while waiting and self.left() > 0 and len(running) < self.rules.max_num_seqs:
            s = waiting[0]
            found = self.memory.lookup(s)
            cached = len(found) * self.rules.block_size
            n = self.first_chunk(s.target - cached)
            if n > self.left() or not self.memory.admit(s, n, found, self.decodes):
                break
            s.cached = cached if s.cached < 0 else s.cached
            self.replica.seat(s)
            self.take(s, n)

    def take(self, s, n):
        self.chunks.append((s, s.computed, n))
        s.computed += n
        self.memory.fill(s)


class PrefillFirst(Chunked):
    """vLLM V0: whole prompts go first and alone."""

    @staticmethod
    def longest(rules):
        return min(rules.max_model_len, rules.max_num_batched_tokens)  # a prompt must fit one step

    def first_chunk(self, missing):
        return missing

    def plan(self):
        self.decodes, self.chunks = [], []
        decodes = [s for s in self.replica.running if s.decodes]
        self.admit_beside(decodes)
        if self.chunks:
            return [], self.chunks
        self.decodes = decodes
        return (self.decodes, []) if self.make_room() else None

    def admit_beside(self, decodes):
        """The budget is the prompts' alone, but the blocks that the decodes need next stay theirs."""
        self.decodes, self.budget = decodes, self.rules.max_num_batched_tokens + len(decodes)
        self.admit()


POLICIES = {"chunked": Chunked, "prefill_first": PrefillFirst}
