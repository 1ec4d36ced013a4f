"""A second simulator of the same rules, as plain as possible: it walks every request at every step and shares no code
with `sim`. Slow on purpose: nothing is counted that can be counted anew."""

import math
from types import SimpleNamespace

from naive.memory import MEMORIES
from naive.model import Outcome, Rules, Sequence
from naive.policies import POLICIES
from naive.prefix import PREFIX_CACHES
from naive.queues import QUEUES


class Replica:
    def __init__(self, rules, index):
        self.rules, self.index, self.now = rules, index, 0
        self.running, self.boundaries, self.order = [], [], []
        kind = PREFIX_CACHES[rules.match] if rules.prefix_caching else MEMORIES[rules.memory]
        self.memory = kind(rules, **rules.memory_options)
        self.queue = QUEUES[rules.queue](rules, **rules.queue_options)
        self.policy = POLICIES[rules.policy](self, **rules.policy_options)
        self.current = self.planned = None  # the step on the GPU and, with lead = 1, the one after it
        self.may_plan = False  # this instant holds an arrival or the end of a step
        self.ending = False  # a step ends right now
        self.changed = False  # somebody was admitted, preempted, or ended after running since the last plan
        self.known = []  # everybody who ever came
        self.host, self.copied = {}, {"out": 0, "in": 0}  # bytes of who was swapped out; of the copies to be waited for

    def waiting(self):
        return self.queue.in_order()

    def seat(self, s):
        self.queue.leave(s)
        self.queue.admitted(s)
        self.running.append(s)
        s.state, s.ran, self.changed = "running", True, True
        self.order.append(("admit", s.job.id))

    def preempt(self, s, last=False):
        self.running.remove(s)
        self.memory.free_all(s, s.job.prompt + s.promised - 1 if s.decodes else s.computed)
        s.state = "waiting"
        if not self.copy_out(s):
            s.computed, s.target = 0, s.job.prompt + s.promised
        s.preemptions += 1
        (self.queue.return_last if last else self.queue.return_)(s)
        self.changed = True
        self.order.append(("preempt", s.job.id))

    def copy_out(self, s):
        """Whether the host keeps what the sequence has computed."""
        if not self.rules.swap or not s.decodes:
            return False
        bytes_ = (self.memory.blocks(s.computed) + self.rules.fixed_blocks) * self.rules.swap["block_bytes"]
        if sum(self.host.values()) + bytes_ > self.rules.swap["capacity"]:
            return False
        self.host[s] = bytes_
        self.copied["out"] += bytes_
        return True

    def copy_in(self, s):
        self.copied["in"] += self.host.pop(s)

    def delay(self):
        """Of the next step, by what is copied in the direction that takes longer."""
        each = [
            self.rules.swap["latency_ps"] - (-bytes_ * 10**12 // self.rules.swap["bytes_per_s"])
            for bytes_ in self.copied.values()
            if bytes_
        ]
        self.copied = dict.fromkeys(self.copied, 0)
        return max(each, default=0)

    def let_go(self, s):
        self.host.pop(s, None)
        """Out of the queue or the batch."""
        if s.state == "running":
            self.running.remove(s)
        else:
            self.queue.leave(s)
        computed = self.started(s)
        self.memory.free_all(s, s.job.prompt + len(s.tokens) - 1 if computed >= s.target else computed)
        if s.ran:
            self.changed = True
            self.policy.ended(s)

    def started(self, s):
        """Tokens computed by steps that have begun."""
        waits = self.planned and self.ending  # the next step begins when all that ends here has ended
        ahead = [before for other, before, _ in self.planned.chunks if other is s] if waits else []
        return ahead[0] if ahead else s.computed

    def plan(self):
        self.queue.settle(self.known, self.changed)
        self.changed = False
        return self.policy.plan() or ([], [])

    def drained(self):
        """Everybody who runs has the last token, in a batch that ends together."""
        return self.running if self.policy.drains and all(s.served for s in self.running) else []

    def step(self, decodes, chunks):
        emitters = [s for s in decodes if s.promised < s.job.output]  # the others' last token is in flight: wasted
        emitters += [s for s, _, _ in chunks if s.decodes]
        shape = [s.computed for s in decodes], [(before, n) for _, before, n in chunks]
        for s in decodes:
            s.wasted += s not in emitters
            self.memory.grow(s)
        for s in emitters:
            s.promised += 1
        members = decodes + [s for s, _, _ in chunks]
        duration = self.rules.duration_ps(*shape)
        return SimpleNamespace(duration=duration, members=members, emitters=emitters, chunks=chunks)

    def start(self, step, now):
        self.current, step.end = step, now + step.delay + step.duration
        for s in step.members:
            s.scheduled = now + step.delay if s.scheduled < 0 else s.scheduled

    def plan_phase(self, now):
        """Whoever is left by a preemption in a batch that is to end together, and now can."""
        self.now = now
        if self.planned and not self.current:
            self.start(self.planned, now)
            self.planned = None
        while self.may_plan and not self.planned and (self.rules.lead or not self.current):
            decodes, chunks = self.plan()
            if self.policy.preempted and self.drained():
                return self.drained()
            if not decodes and not chunks:
                break
            step = self.step(decodes, chunks)
            step.delay = self.delay()
            if self.current:
                self.planned = step
            else:
                self.start(step, now)
        self.may_plan = False
        return []


class Fleet:
    def __init__(self, jobs, rules):
        self.rules, self.replicas = rules, [Replica(rules, i) for i in range(rules.replicas)]
        self.to_come, self.all = list(jobs), {}

    def live(self):
        return [s for _, s in sorted(self.all.items()) if s.finish < 0]

    def end(self, s, now, state, reason=""):
        home = s.home
        if state != "rejected":
            home.let_go(s)
            home.order.append(("finish" if state == "completed" else "abort", s.job.id))
        s.state, s.reason, s.finish = state, reason, now
        self.to_come += [job for job in [self.rules.on_finish(s.job.id, now)] if job]

    def boundary(self, home, now):
        step, home.current, home.may_plan, home.ending = home.current, None, True, True
        home.boundaries.append(now)
        emitters = sorted((s for s in step.emitters if s.finish < 0), key=lambda s: s.job.id)
        for s in emitters:
            s.tokens.append(now)
        for s in sorted({*home.running, *emitters}, key=lambda s: s.job.id):
            if s.deadline < now:
                self.end(s, now, "aborted", "client_timeout")
        for s in emitters:
            if s.served and s.finish < 0 and not home.policy.drains:
                self.end(s, now, "completed")
        self.drain(home, now)
        home.ending = False

    def drain(self, home, now):
        """Whether a batch has ended together."""
        leaving = sorted(home.drained(), key=lambda s: s.job.id)
        for s in leaving:
            self.end(s, now, "completed")
        return bool(leaving)

    def arrive(self, job, now):
        loads = [sum(s.home is replica for s in self.live()) for replica in self.replicas]
        index = len(self.all) % len(loads) if self.rules.router == "round_robin" else loads.index(min(loads))
        home = self.replicas[index]
        s = self.all[job.id] = Sequence(job, job.prompt, now + self.rules.client_timeout_ps, home)
        if job.prompt + job.max_output > home.policy.longest(self.rules):
            self.end(s, now, "rejected", "too_long")
        elif home.memory.most(job) > self.rules.num_blocks:
            self.end(s, now, "rejected", "never_fits")
        else:
            home.queue.arrive(s)
            home.known.append(s)
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
            late[0].home.may_plan = True
            self.drain(late[0].home, now)

    def run(self):
        now = -1
        while True:
            instants = [replica.current.end for replica in self.replicas if replica.current]
            instants += [job.arrival_ps for job in self.to_come] + [s.deadline for s in self.live() if s.deadline > now]
            wakes = [replica.policy.wake() for replica in self.replicas]
            now = min([*instants, *(at for at in wakes if at > now)], default=math.inf)
            if now == math.inf:
                return
            for replica in self.replicas:
                if replica.current and replica.current.end == now:
                    self.boundary(replica, now)
            for replica in self.replicas:
                replica.may_plan |= replica.policy.wake() == now
            self.doorstep(now)
            while any(self.drain(replica, now) for replica in self.replicas if replica.plan_phase(now)):
                self.doorstep(now)  # follow-ups come before the plan that is made then


def simulate_naively(jobs, **rules):
    """Serves the jobs to the end under these `Rules`."""
    fleet = Fleet(jobs, Rules(**rules))
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
