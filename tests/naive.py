"""A second simulator of the same rules, as plain as possible: it walks every request at every step and shares no code
with `sim`. Slow on purpose: blocks held are counted as ceil(tokens / block size), request by request, at every look."""

import math
from dataclasses import dataclass, field
from types import SimpleNamespace


@dataclass
class Job:
    id: int
    arrival_ps: int
    prompt: int
    output: int
    max_output: int
    hashes: tuple = ()  # what the prompt holds, one hash per `hash_tokens` tokens
    hash_tokens: int = 0
    names_answer: bool = False  # whether the hashes go on beyond the prompt


@dataclass
class Outcome:
    requests: dict[int, tuple]  # state, reason, replica, scheduled_ps, first_token_ps, finish_ps, emitted, preemptions
    boundaries: list[list[int]]  # per replica: the end of every step
    order: list[list[tuple[str, int]]]  # per replica: ("admit" | "preempt" | "finish" | "abort", id)
    token_times: dict[int, list[int]]
    cached: dict[int, int]  # tokens found in the prefix cache at the first admission


@dataclass(eq=False)
class _Sequence:
    job: Job
    target: int  # tokens to compute before the next one can be emitted
    deadline: float
    home: "_Replica"
    state: str = "waiting"
    reason: str = ""
    computed: int = 0  # like `promised`, as it will be once every step planned so far has ended
    promised: int = 0  # tokens emitted, counting those of planned steps
    scheduled: int = -1
    finish: int = -1
    preemptions: int = 0
    cached: int = -1
    table: list[int] = field(default_factory=list)  # the numbers of its blocks
    own: bool = False  # its blocks from here on hold what blocks of another sequence hold, or follow such a block
    tokens: list[int] = field(default_factory=list)  # when the client received each

    @property
    def idle(self):
        """Waiting, and no step in flight still emits a token for it."""
        return self.state == "waiting" and self.promised == len(self.tokens)


class _Replica:
    def __init__(self, rules, index):
        self.rules, self.index = rules, index
        self.waiting, self.running, self.boundaries, self.order = [], [], [], []
        self.current = self.planned = None  # the step on the GPU and, with lead = 1, the one after it
        self.free = list(range(rules.num_blocks))  # the next block to be taken first
        self.users = [0] * rules.num_blocks
        self.content, self.known = {}, {}  # block -> what it holds, and the other way round
        self.may_plan = False  # this instant holds an arrival or the end of a step

    def blocks(self, tokens):
        return -(-tokens // self.rules.block_size)

    def spare(self, decodes):
        """Blocks that nobody holds and no decode of this step needs; negative when the decodes do not fit."""
        return len(self.free) - sum(s.computed % self.rules.block_size == 0 for s in decodes)

    def identity(self, s, i):
        """What block i of a sequence holds, with all that comes before it; None if that is not known."""
        end, hashed = (i + 1) * self.rules.block_size, len(s.job.hashes) * s.job.hash_tokens
        if not self.rules.prefix_caching or end > (hashed if s.job.names_answer else min(s.job.prompt, hashed)):
            return None
        return i, s.job.hash_tokens, s.job.hashes[: -(-end // s.job.hash_tokens)]

    def lookup(self, s):
        """The blocks that hold the beginning of the prompt, but not the last token that is to be computed."""
        found = []
        while (len(found) + 1) * self.rules.block_size < s.target:
            block = self.known.get(self.identity(s, len(found)))
            if block is None:
                break
            found.append(block)
        return found

    def fill(self, s):
        """Give a sequence the blocks for its computed tokens; full blocks of the prompt can be found from now on."""
        while len(s.table) < self.blocks(s.computed):
            block = self.free.pop(0)
            if block in self.content:
                del self.known[self.content.pop(block)]
            self.users[block] = 1
            s.table.append(block)
        self.publish(s, min(s.computed, s.target))

    def publish(self, s, tokens):
        """Full blocks of so many tokens can be found from now on, unless equal ones can."""
        for i in range(tokens // self.rules.block_size):
            identity = self.identity(s, i)
            if s.own or identity is None or self.known.get(identity) == s.table[i]:
                continue
            if identity in self.known:
                s.own = True
            else:
                self.known[identity], self.content[s.table[i]] = s.table[i], identity

    def free_all(self, s, emitted):
        if s.computed >= s.target:  # it decodes: all it generated is known, but the last token is not in the cache
            self.publish(s, s.job.prompt + emitted - 1)
        for block in reversed(s.table):
            self.users[block] -= 1
            if self.users[block] == 0:
                self.free.append(block)
        s.table, s.own = [], False

    def preempt_newest(self, decodes, chunks):
        """Nobody whose last token is in flight, nobody who has a chunk in this plan; None if nobody is left."""
        served = [s for s, _, _ in chunks]
        victim = ([None] + [s for s in self.running if s.promised < s.job.output and s not in served])[-1]
        if victim:
            self.running.remove(victim)
            self.free_all(victim, victim.promised)
            self.waiting.insert(0, victim)
            victim.state, victim.computed, victim.target = "waiting", 0, victim.job.prompt + victim.promised
            victim.preemptions += 1
            self.order.append(("preempt", victim.job.id))
        if victim in decodes:
            decodes.remove(victim)
        return victim

    def plan(self):
        chunked, cap = self.rules.policy == "chunked", self.rules.max_num_batched_tokens
        decodes, chunks, preempted = [s for s in self.running if s.computed >= s.target], [], False
        if not chunked and self.admissions(decodes, chunks, cap):
            return self.step([], chunks)
        while self.spare(decodes) < 0:
            preempted = True
            if not self.preempt_newest(decodes, chunks):
                return None
        for s in [s for s in self.running if s.computed < s.target]:  # a preemption may shorten the list behind s
            n = min(cap - len(decodes) - sum(n for _, _, n in chunks), s.target - s.computed, self.rules.chunk_limit)
            new_blocks = self.blocks(s.computed + n) - self.blocks(s.computed)
            while n > 0 and s in self.running and new_blocks > self.spare(decodes):
                preempted = True
                self.preempt_newest(decodes, chunks)
            if n > 0 and s in self.running:
                self.take(s, n, chunks)
        if chunked and not preempted:
            self.admissions(decodes, chunks, cap - len(decodes) - sum(n for _, _, n in chunks))
        return self.step(decodes, chunks) if decodes or chunks else None

    def admissions(self, decodes, chunks, budget):
        while self.waiting and budget > 0 and len(self.running) < self.rules.max_num_seqs:
            s = self.waiting[0]
            found = self.lookup(s)
            cached = len(found) * self.rules.block_size
            n = s.target - cached
            if self.rules.policy == "chunked":
                n = min(budget, n, self.rules.chunk_limit)
            in_use = sum(self.users[block] > 0 for block in found)
            if n > budget or self.blocks(cached + n) - in_use > self.spare(decodes):
                break
            self.free = [block for block in self.free if block not in found]
            for block in found:
                self.users[block] += 1
            s.table, s.computed, s.cached = found, cached, cached if s.cached < 0 else s.cached
            self.running.append(self.waiting.pop(0))
            s.state = "running"
            self.order.append(("admit", s.job.id))
            self.take(s, n, chunks)
            budget -= n
        return chunks

    def take(self, s, n, chunks):
        chunks.append((s, s.computed, n))
        s.computed += n
        self.fill(s)

    def step(self, decodes, chunks):
        emitters = [s for s in decodes if s.promised < s.job.output]  # the others' last token is in flight: wasted
        emitters += [s for s, _, _ in chunks if s.computed == s.target]
        shape = len(decodes), sum(s.computed for s in decodes), [(before, n) for _, before, n in chunks]
        for s in decodes:
            s.computed += 1
            self.fill(s)
        for s in emitters:
            s.promised += 1
        members = decodes + [s for s, _, _ in chunks]
        return SimpleNamespace(duration=self.rules.duration_ps(*shape), members=members, emitters=emitters)

    def start(self, step, now):
        self.current, step.end = step, now + step.duration
        for s in step.members:
            s.scheduled = now if s.scheduled < 0 else s.scheduled

    def plan_phase(self, now):
        if self.planned and not self.current:
            self.start(self.planned, now)
            self.planned = None
        while self.may_plan and not self.planned and (self.rules.lead or not self.current):
            step = self.plan()
            if not step:
                break
            if self.current:
                self.planned = step
            else:
                self.start(step, now)
        self.may_plan = False


class _Fleet:
    def __init__(self, jobs, rules):
        self.rules, self.replicas = rules, [_Replica(rules, i) for i in range(rules.replicas)]
        self.to_come, self.all = list(jobs), {}

    def live(self):
        return [s for _, s in sorted(self.all.items()) if s.finish < 0]

    def end(self, s, now, state, reason=""):
        home = s.home
        if state != "rejected":
            (home.running if s.state == "running" else home.waiting).remove(s)
            home.free_all(s, len(s.tokens))
            home.order.append(("finish" if state == "completed" else "abort", s.job.id))
        s.state, s.reason, s.finish = state, reason, now
        self.to_come += [job for job in [self.rules.on_finish(s.job.id, now)] if job]

    def boundary(self, home, now):
        step, home.current, home.may_plan = home.current, None, True
        home.boundaries.append(now)
        emitters = sorted((s for s in step.emitters if s.finish < 0), key=lambda s: s.job.id)
        for s in emitters:
            s.tokens.append(now)
        for s in sorted({*home.running, *emitters}, key=lambda s: s.job.id):
            if s.deadline < now:
                self.end(s, now, "aborted", "client_timeout")
        for s in emitters:
            if len(s.tokens) == s.job.output and s.finish < 0:
                self.end(s, now, "completed")

    def arrive(self, job, now):
        loads = [sum(s.home is replica for s in self.live()) for replica in self.replicas]
        index = len(self.all) % len(loads) if self.rules.router == "round_robin" else loads.index(min(loads))
        home = self.replicas[index]
        s = self.all[job.id] = _Sequence(job, job.prompt, now + self.rules.client_timeout_ps, home)
        if job.prompt + job.max_output > self.rules.longest:
            self.end(s, now, "rejected", "too_long")
        elif home.blocks(job.prompt + job.max_output) > self.rules.num_blocks:
            self.end(s, now, "rejected", "never_fits")
        else:
            home.waiting.append(s)
            home.may_plan = True

    def doorstep(self, now):
        """Arrivals, then time-outs one by one; a follow-up that a time-out brings comes before the next time-out."""
        while True:
            while due := [job for job in self.to_come if job.arrival_ps <= now]:
                job = min(due, key=lambda job: job.id)
                self.to_come.remove(job)
                self.arrive(job, now)
            late = [s for s in self.live() if s.deadline == now and (s.idle or not s.home.current)]
            if not late:
                return
            self.end(late[0], now, "aborted", "client_timeout")

    def run(self):
        now = -1
        while True:
            instants = [replica.current.end for replica in self.replicas if replica.current]
            instants += [job.arrival_ps for job in self.to_come] + [s.deadline for s in self.live() if s.deadline > now]
            now = min(instants, default=math.inf)
            if now == math.inf:
                return
            for replica in self.replicas:
                if replica.current and replica.current.end == now:
                    self.boundary(replica, now)
            self.doorstep(now)
            for replica in self.replicas:
                replica.plan_phase(now)


def simulate_naively(
    jobs, *, duration_ps, policy="chunked", max_num_seqs, max_num_batched_tokens, block_size, num_blocks,
    max_model_len=10**9, lead=0, long_prefill_token_threshold=0, client_timeout_ps=None, replicas=1,
    router="round_robin", on_finish=None, prefix_caching=False,
):  # fmt: skip
    """Serves the jobs to the end. `duration_ps(decodes, context, chunks)` is the length of a step with these many
    decodes over that many cached tokens and chunks of (tokens computed before, new tokens); `on_finish(id, now)` may
    return the client's next job. A router other than "round_robin" means the fewest outstanding requests."""
    rules = SimpleNamespace(**locals())
    rules.longest = max_model_len if policy == "chunked" else min(max_model_len, max_num_batched_tokens)
    rules.chunk_limit = long_prefill_token_threshold or math.inf
    rules.client_timeout_ps = math.inf if client_timeout_ps is None else client_timeout_ps
    rules.on_finish = on_finish or (lambda job_id, now: None)
    fleet = _Fleet(jobs, rules)
    fleet.run()
    if fleet.live():
        raise RuntimeError(f"no event is left, yet {[s.job.id for s in fleet.live()]} have not ended")
    requests = {}
    for i, s in sorted(fleet.all.items()):
        replica, first = -1 if s.state == "rejected" else s.home.index, s.tokens[0] if s.tokens else -1
        requests[i] = (s.state, s.reason, replica, s.scheduled, first, s.finish, len(s.tokens), s.preemptions)
    token_times = {i: s.tokens for i, s in sorted(fleet.all.items())}
    per_replica = [r.boundaries for r in fleet.replicas], [r.order for r in fleet.replicas]
    return Outcome(requests, *per_replica, token_times, {i: max(0, s.cached) for i, s in sorted(fleet.all.items())})
