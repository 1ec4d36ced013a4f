"""Who is next: lists that are looked through at every question."""


class Fcfs:
    def __init__(self, rules):
        self.rules, self.waiting = rules, []

    def in_order(self):
        return list(self.waiting)

    def arrive(self, s):
        self.waiting.append(s)

    def return_(self, s):
        self.waiting.insert(0, s)

    def return_last(self, s):
        self.waiting.append(s)

    def leave(self, s):
        self.waiting.remove(s)

    def admitted(self, s):
        pass

    def settle(self, everybody, changed):
        pass


def by_arrival(s):
    return s.job.arrival_ps, s.job.id


KEYS = {
    "priority": lambda s: s.job.priority,
    "shortest_prompt": lambda s: s.job.prompt,
    "shortest_predicted": lambda s: s.job.predicted,
}


class Sorted(Fcfs):
    def in_order(self):
        key = KEYS[self.rules.queue]
        return sorted(self.waiting, key=lambda s: (key(s), *by_arrival(s)))

    def return_(self, s):
        self.waiting.append(s)


class FairShare(Sorted):
    """Virtual token counters."""

    def __init__(self, rules, input_weight=1, output_weight=2):
        super().__init__(rules)
        self.input_weight, self.output_weight = input_weight, output_weight
        self.counters, self.settled = {}, {}  # per tenant; per sequence: tokens that have been charged
        self.last_left = None

    def tenant(self, s):
        return self.counters.get(s.job.tenant, 0)

    def in_order(self):
        """As they would be admitted one after the other, now."""
        left, counters, order = sorted(self.waiting, key=by_arrival), dict(self.counters), []
        while left:
            firsts = {s.job.tenant: s for s in reversed(left)}.values()
            s = min(firsts, key=lambda s: (counters.get(s.job.tenant, 0), *by_arrival(s)))
            left.remove(s)
            order.append(s)
            counters[s.job.tenant] = counters.get(s.job.tenant, 0) + self.prompt_weight(s)
        return order

    def prompt_weight(self, s):
        return 0 if s.preemptions else self.input_weight * s.job.prompt

    def arrive(self, s):
        if not any(other.job.tenant == s.job.tenant for other in self.waiting):
            floor = min((self.tenant(other) for other in self.waiting), default=self.counters.get(self.last_left, 0))
            self.counters[s.job.tenant] = max(self.tenant(s), floor)
        self.waiting.append(s)

    def leave(self, s):
        self.waiting.remove(s)
        self.last_left = s.job.tenant

    def admitted(self, s):
        self.counters[s.job.tenant] = self.tenant(s) + self.prompt_weight(s)

    def settle(self, everybody, changed):
        if not changed:
            return
        for s in everybody:
            emitted = s.promised + s.wasted if s.finish < 0 else len(s.tokens)
            new = emitted - self.settled.get(s, 0)
            self.counters[s.job.tenant] = self.tenant(s) + self.output_weight * new
            self.settled[s] = self.settled.get(s, 0) + new


QUEUES = dict.fromkeys(KEYS, Sorted) | {"fcfs": Fcfs, "fair_share": FairShare}
