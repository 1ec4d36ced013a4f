"""Random serving scenarios, and what the engine and the naive simulator make of them.

A scenario is drawn either by Python's `random` (long ones) or by hypothesis (short ones, which it can shrink). Coarse
ticks make ends of steps, arrivals and time-outs fall on the same instant; few blocks force preemptions.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from naive.fleet import simulate_naively
from naive.model import Job, Outcome
from toy import ListWorkload, ToyTimer

from sim.batch import DecodeBatch
from sim.cost.shape import RunShape, Span
from sim.cost.step_times import Piece, StepTimer, StepTimes
from sim.engine.cluster import Cluster
from sim.engine.link import LinkRate
from sim.engine.replica import ReplicaParts
from sim.engine.router import Router
from sim.engine.tiers import TierLinks
from sim.kv.bounded import BoundedKV
from sim.kv.host_pool import HostPool
from sim.kv.tier_store import TierStore
from sim.kv.tiered import TieredKV
from sim.policies import (
    ALLOCATORS,
    FORKING,
    FORKING_PREFIX_CACHES,
    PREFIX_CACHES,
    QUEUE_ORDERS,
    ROUTERS,
    SCHEDULERS,
    TIERED,
)
from sim.request import Reason, Request, State, Traits
from sim.results import RunResult, Table
from sim.schedulers.base import Scheduler
from sim.schedulers.mover import Mover
from sim.sequences import BeamSearch, with_sequences
from sim.step import IN, NO_LIMIT, OUT

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "")
"""`thorough`: ten times as many scenarios. `quick`: a third of them, and none is shrunk, where only the verdict counts
(`make mutants`)."""

THOROUGH = PROFILE == "thorough"


def examples(count: int) -> settings:
    """Settings of a hypothesis test: the same examples in every process, more or fewer of them by profile."""
    phases = (Phase.explicit, Phase.generate)
    return settings(
        max_examples=amount(count),
        derandomize=True,
        database=None,
        deadline=None,
        phases=phases if PROFILE == "quick" else (*phases, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


def amount(count: int) -> int:
    """How many scenarios to try instead of the usual number."""
    return {"thorough": 10 * count, "quick": count // 3 + 1}.get(PROFILE, count)


class SpanTimer(ToyTimer):
    """As `ToyTimer`, and each attention span costs 7, 8, ... ticks per token seen through it."""

    def run(self, shape: RunShape, max_steps: int) -> StepTimes:
        """The pieces of the toy timer with a linear term more; the engine cuts runs where a span stops growing."""
        plain = super().run(shape, max_steps)
        if not shape.decodes:
            return plain
        weights = [self.tick_ps * (7 + i) for i in range(len(shape.local_tokens))]
        slope = sum(w * grows for w, grows in zip(weights, shape.local_growth, strict=True))
        first = sum(w * seen for w, seen in zip(weights, shape.local_tokens, strict=True))
        pieces: list[Piece] = []
        total = 0
        for begin, _, a, b, steps in plain.pieces:
            a, b = a + first + slope * begin, b + slope
            pieces.append((begin, total, a, b, steps))
            total += steps * a + b * (steps * (steps - 1) >> 1)
        return StepTimes(plain.steps, total, pieces)


@dataclass(frozen=True)
class Scenario:
    """Everything that one run of the toy engine depends on. `rows`: id, arrival, prompt, output, longest output."""

    rows: tuple[tuple[int, int, int, int, int], ...]
    scheduler: str = "chunked"
    lead: int = 0
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 512
    threshold: int = 0
    block_size: int = 16
    num_blocks: int = 10**6
    max_model_len: int = 10**9
    timeout_ps: int | None = None
    closed_loop: bool = False
    replicas: int = 1
    router: str = "round_robin"
    tick_ps: int = 1
    spans: tuple[Span, ...] = ()
    prefix_tokens: int = 0
    """Tokens per hash of the prompts' content; 0: no hashes, and no prefix cache."""
    alike: int = 1
    """Of this many prompt blocks, one differs from what most prompts have there."""
    allocator: str = "paged"
    memory: tuple[tuple[str, Any], ...] = ()
    """Options of the allocator."""
    fixed_blocks: int = 0
    swap: tuple[tuple[str, int], ...] = ()
    """Where victims are swapped to: capacity, block_bytes, bytes_per_s, latency_ps."""
    guesses: bool = False
    """Whether output lengths are guessed, badly; otherwise the longest output is expected."""
    policy: tuple[tuple[str, Any], ...] = ()
    """Options of the scheduler; times in ticks."""
    order: str = "fcfs"
    weights: tuple[tuple[str, int], ...] = ()
    victim: str = "newest"
    names_answers: bool = False
    """Whether hashes go on beyond the prompt, to the longest output."""
    match: str = "hash_block"
    eviction: str = "lru"
    tiers: tuple[int, ...] = ()
    """Blocks that fit in each tier below the prefix cache."""
    prefetch: bool = True
    sequences: int = 1
    """The most sequences that a request may have."""
    switch_probability: float | None = None
    """Of a beam after each token; None: sequences are samples."""

    def __repr__(self) -> str:
        """With the rows last, because they are long."""
        fields = {name: value for name, value in vars(self).items() if name != "rows"}
        return f"Scenario({', '.join(f'{k}={v!r}' for k, v in fields.items())}, rows={self.rows!r})"

    @property
    def longest_request(self) -> int:
        """The longest prompt plus output that the server accepts."""
        if self.scheduler == "continuous":  # a prompt must fit one step
            return min(self.max_model_len, self.max_num_batched_tokens)
        return self.max_model_len

    def timer(self) -> ToyTimer:
        """A fresh timer."""
        return SpanTimer(self.tick_ps) if self.spans else ToyTimer(self.tick_ps)

    def duration_ps(self, contexts: list[int], chunks: list[tuple[int, int]]) -> int:
        """What the timer says of a single step, one sequence after the other."""
        seen = 0
        for weight, span in enumerate(self.spans, 7):
            for context in contexts:
                seen += weight * (context % span.tokens if span.chunked else min(context, span.tokens - 1))
        return ToyTimer(self.tick_ps).duration(len(contexts), sum(contexts), chunks) + self.tick_ps * seen

    def requests(self) -> list[Request]:
        """Fresh requests."""
        return [self.request(row) for row in self.rows]

    def request(self, row: tuple[int, int, int, int, int]) -> Request:
        """The request of a row."""
        traits = Traits(
            prefix_hashes=self.hashes(row),
            prefix_block_tokens=self.prefix_tokens,
            priority=self.priority(row),
            tenant=self.tenant(row),
            hashes_output=self.names_answers,
        )
        request = Request(*row, traits)
        request.predicted_output_tokens = self.guess(row)
        lengths = self.lengths(row)
        return with_sequences(request, lengths, self.beams(len(lengths))) if len(lengths) > 1 else request

    def lengths(self, row: tuple[int, int, int, int, int]) -> tuple[int, ...]:
        """Output lengths of the sequences of a row: those of beams are equal."""
        rng = random.Random(row[0] + 1)
        more = rng.randint(0, self.sequences - 1)
        if self.switch_probability is not None:
            return (row[3],) * (1 + more)
        return (row[3], *(rng.randint(1, row[4]) for _ in range(more)))

    def beams(self, width: int) -> BeamSearch | None:
        """How beams are replaced, if there are any."""
        return None if self.switch_probability is None else BeamSearch(width, self.switch_probability)

    def job(self, row: tuple[int, int, int, int, int]) -> Job:
        """The same for the naive simulator."""
        return Job(
            *row, self.hashes(row), self.prefix_tokens, self.guess(row), self.priority(row), self.tenant(row),
            self.names_answers,
        )  # fmt: skip

    def priority(self, row: tuple[int, int, int, int, int]) -> int:
        """Lower goes first."""
        return row[0] * 5 % 7 % 4

    def tenant(self, row: tuple[int, int, int, int, int]) -> str:
        """One of three, of which one sends more."""
        return "aabc"[row[0] * 11 % 13 % 4]

    def guess(self, row: tuple[int, int, int, int, int]) -> int:
        """The output that is expected."""
        return min(row[4], 1 + row[0] * 7 % 23) if self.guesses else row[4]

    def hashes(self, row: tuple[int, int, int, int, int]) -> tuple[int, ...]:
        """What the prompt of a row holds: equal hashes mean something only after equal beginnings.

        Some requests have none, and those of others end before the prompt does.
        """
        if not self.prefix_tokens:
            return ()
        rng = random.Random(row[0])
        blocks = -(-(row[2] + row[4] * self.names_answers) // self.prefix_tokens)
        blocks = rng.choice([0, blocks // 2, blocks, blocks, blocks, blocks])
        return tuple(rng.choice([1, 2]) if rng.randrange(self.alike) == 0 else 0 for _ in range(blocks))


def with_forks(scenario: Scenario, rng: random.Random) -> Scenario:
    """The same with several samples or beams per request."""
    return replace(
        scenario,
        sequences=rng.randint(1, min(6, scenario.max_num_seqs)),
        switch_probability=rng.choice([None, None, 0.02, 0.3, 1.0]),
    )


Pick = Callable[[Sequence[Any]], Any]
Length = Callable[[int], int]


def _draw(pick: Pick, length: Length, most_requests: int) -> Scenario:
    """One scenario, from a way to pick from a list and a way to draw a positive integer with about the given mean."""
    tick, size, seats = pick([1, 1, 1000, 50]), pick([1, 3, 4, 16]), pick([1, 3, 8, 32])
    budget = seats + pick([0, 1, 7, 64, 500])
    prompt, output, slack = pick([3, 30, 150]), pick([1, 8, 60]), pick([0, 0, 5])
    count = pick([n for n in (10, 40, 120) if n <= most_requests])
    burst, gap = pick([0, 50, 95]), pick([5, 50, 500, 5000])
    rows, now = [], 0
    for i in range(count):
        if pick(range(100)) >= burst:
            now += (length(gap) - 1) * tick
        tokens = length(output)
        rows.append((i, now, length(prompt), tokens, tokens + slack))
    largest = max(p + most for _, _, p, _, most in rows)
    most_blocks = -(-largest // size)
    scheduler = pick(["chunked", "chunked", "continuous"])
    if scheduler == "continuous":
        budget = max(budget, largest - pick([0, 0, 1]))
    return Scenario(
        rows=tuple(rows),
        scheduler=scheduler,
        lead=pick([0, 0, 1, 1]),
        max_num_seqs=seats,
        max_num_batched_tokens=budget,
        threshold=pick([0, 0, 5, 20]) if scheduler == "chunked" else 0,
        block_size=size,
        num_blocks=max(1, most_blocks * pick([5, 10, 10, 12, 15, 20, 60, 1000]) // 10),
        max_model_len=pick([10**9, 10**9, 10**9, largest - 1]),
        timeout_ps=pick([None, None, 20 * tick, 300 * tick, 3000 * tick]),
        closed_loop=pick([False, False, True]),
        replicas=pick([1, 1, 2, 3]),
        router=pick(sorted(ROUTERS)),
        tick_ps=tick,
    )


def random_scenario(seed: int, most_requests: int = 120) -> Scenario:
    """The scenario of a seed."""
    rng = random.Random(seed)
    return _draw(rng.choice, lambda mean: 1 + int(rng.expovariate(1 / mean)), most_requests)


def with_prefixes(scenario: Scenario, rng: random.Random) -> Scenario:
    """The same with prompts that begin alike, and a prefix cache."""
    size = rng.choice([1, 3, 4, 5, 16])
    longest = max(p + most for _, _, p, _, most in scenario.rows)
    return replace(
        scenario,
        block_size=size,
        num_blocks=max(1, -(-longest // size) * rng.choice([10, 11, 12, 15, 20, 30, 60, 1000]) // 10),
        prefix_tokens=rng.choice([1, 2, 4, 6, 16, 16, 40]),
        alike=rng.choice([1, 4, 20, 1000]),
        names_answers=rng.random() < 0.5,
    )


def tight(scenario: Scenario, rng: random.Random) -> Scenario:
    """The same with long answers after short prompts, and memory for few of them: most are preempted."""
    outputs = [rng.randint(1, 60) for _ in scenario.rows]
    rows = tuple((i, at, min(p, 20), n, n) for (i, at, p, _, _), n in zip(scenario.rows, outputs, strict=True))
    longest = max(p + most for _, _, p, _, most in rows)
    return replace(
        scenario,
        rows=rows,
        max_num_seqs=8,
        max_num_batched_tokens=rng.choice([10, 30, 100]),
        num_blocks=-(-longest // scenario.block_size) * rng.choice([10, 13, 20, 30, 60]) // 10,
        timeout_ps=None if scenario.timeout_ps is None else 40 * scenario.timeout_ps,
    )


MEMORIES: list[tuple[str, dict[str, Any]]] = [
    ("paged", {"watermark": 0.1}),
    *(("max-length", {"placement": placement}) for placement in ("first-fit", "best-fit", "buddy", "paged")),
    ("max-length", {"reserve": "context", "placement": "buddy"}),
    ("predicted", {}),
    ("predicted", {"growth_blocks": 3}),
    ("paged", {"bound_tokens": 20}),
    ("max-length", {"bound_tokens": 20}),
    ("predicted", {"bound_tokens": 20, "growth_blocks": 2}),
]


def with_memory(scenario: Scenario, rng: random.Random, which: int | None = None) -> Scenario:
    """The same with another allocator."""
    allocator, options = rng.choice(MEMORIES) if which is None else MEMORIES[which]
    longest = max(p + most for _, _, p, _, most in scenario.rows)
    if allocator == "max-length":
        options = {**options, "max_model_len": min(scenario.max_model_len, 2 * longest)}
        scenario = replace(scenario, max_model_len=options["max_model_len"])
    fixed = rng.choice([0, 0, 2])
    stored = min(longest, options.get("bound_tokens", longest))
    blocks = -(-stored // scenario.block_size) * rng.choice([10, 11, 15, 20, 40, 1000]) // 10
    return replace(
        scenario,
        allocator=allocator,
        memory=tuple(options.items()),
        fixed_blocks=fixed,
        num_blocks=max(1, blocks + fixed * rng.choice([1, 4])),
        guesses=allocator == "predicted",
    )


POLICIES: list[tuple[str, dict[str, Any]]] = [
    ("chunked", {}),
    ("chunked", {"max_num_partial_prefills": 1}),
    *(("continuous", {"priority": priority, "mixed": mixed}) for priority in ("prefill", "decode") for mixed in (0, 1)),
    ("static", {}),
    ("static", {"padding": False}),
    ("dynamic", {"max_wait_ticks": 200, "max_batch_size": 4}),
    ("dynamic", {"max_wait_ticks": 3000, "padding": False}),
    ("sglang", {}),
    ("sglang", {"mixed": True, "schedule_conservativeness": 0.3}),
    ("sglang", {"mixed": True, "schedule_conservativeness": 0.0}),
]
ORDERS: list[tuple[str, dict[str, int]]] = [
    ("fcfs", {}), ("priority", {}), ("shortest_prompt", {}), ("shortest_predicted", {}), ("fair_share", {}),
    ("fair_share", {"input_weight": 3, "output_weight": 1}),
]  # fmt: skip


def with_policy(scenario: Scenario, rng: random.Random, which: int | None = None) -> Scenario:
    """The same with another scheduler, queue order and choice of victims."""
    scheduler, options = rng.choice(POLICIES) if which is None else POLICIES[which]
    order, weights = rng.choice(ORDERS)
    longest = max(p + most for _, _, p, _, most in scenario.rows)
    budget = scenario.max_num_batched_tokens
    return replace(
        scenario,
        scheduler=scheduler,
        policy=tuple(options.items()),
        order=order,
        weights=tuple(weights.items()),
        victim=rng.choice(["newest", "lowest_priority"]),
        threshold=scenario.threshold if scheduler == "chunked" else 0,
        max_num_batched_tokens=max(budget, longest - rng.choice([0, 1])) if scheduler == "continuous" else budget,
        guesses=rng.random() < 0.5,
    )


def with_swap(scenario: Scenario, rng: random.Random) -> Scenario:
    """The same with preemption by swapping, for the schedulers and allocators that can."""
    unit = scenario.block_size * scenario.tick_ps
    swap = {
        "capacity": scenario.block_size * rng.choice([3, 20, 10**6]),
        "block_bytes": scenario.block_size,
        "bytes_per_s": 10**12 // rng.choice([1, 7, 2 * unit]),
        "latency_ps": rng.choice([0, 5]) * scenario.tick_ps,
    }
    scheduler, options = rng.choice([policy for policy in POLICIES if policy[0] in ("chunked", "continuous")])
    which = POLICIES.index((scheduler, options))
    scenario = tight(scenario, rng)
    if rng.random() < 0.5:
        scenario = with_memory(scenario, rng, rng.choice([0, 6, 7]))
    scenario = with_policy(scenario, rng, which)
    return replace(scenario, swap=tuple(swap.items()))


def of_any_kind(scenario: Scenario, rng: random.Random) -> Scenario:
    """The same with any scheduler over any allocator or prefix cache."""
    if rng.random() < 0.5:
        scenario = tight(scenario, rng)
    if rng.random() < 0.4:
        scenario = with_policy(with_memory(scenario, rng), rng)
    else:
        match, eviction = rng.choice(["hash_block", "radix"]), rng.choice(["lru", "lfu"])
        scenario = replace(with_policy(with_prefixes(scenario, rng), rng), match=match, eviction=eviction)
        if scenario.scheduler in ("static", "dynamic"):  # padded batches and prefix caches exclude each other
            scenario = replace(scenario, policy=tuple({**dict(scenario.policy), "padding": False}.items()))
    return with_spans(scenario, rng.randrange(10**6)) if rng.random() < 0.2 else scenario


SPANS = [(Span(5),), (Span(16, chunked=True),), (Span(40), Span(7, chunked=True)), (Span(1),), (Span(3), Span(200))]


def with_spans(scenario: Scenario, seed: int) -> Scenario:
    """The same for a model some of whose layers see a window or a chunk only."""
    return replace(scenario, spans=random.Random(seed).choice(SPANS))


@st.composite
def scenarios(draw: st.DrawFn, most_requests: int = 40) -> Scenario:
    """Scenarios for hypothesis; lengths are uniform, because hypothesis searches the extremes by itself."""
    return _draw(lambda options: draw(st.sampled_from(options)), lambda m: draw(st.integers(1, 2 * m)), most_requests)


@dataclass
class Run:
    """What a run left behind, in forms that do not depend on how steps were grouped into rows."""

    cluster: Cluster
    ended: list[int]
    """Ids in the order in which requests ended."""

    @property
    def requests(self) -> Table:
        """The request table."""
        return self.cluster.recorder.requests.table()

    @property
    def steps(self) -> Table:
        """The step table."""
        return self.cluster.recorder.steps.table()

    @property
    def segments(self) -> Table:
        """The segment table."""
        return self.cluster.recorder.segments.table()

    def result(self) -> RunResult:
        """The three tables together."""
        return RunResult(self.requests, self.steps, self.segments)

    def boundaries(self, decoding_only: bool = False) -> dict[int, list[int]]:
        """Per replica, the end of every step, or of those in which sequences decode."""
        ends: dict[int, list[int]] = {}
        for row in rows_of(self.steps):
            if row["decodes"] or not decoding_only:
                a, b, start = row["first_step_ps"], row["slope_ps"], row["start_ps"]
                series = [start + k * a + b * (k * (k - 1) // 2) for k in range(1, row["steps"] + 1)]
                ends.setdefault(row["replica"], []).extend(series)
        return ends

    def token_times(self) -> dict[int, list[int]]:
        """When the client received each token of each request, as the segments say."""
        ends = self.boundaries(decoding_only=True)
        times: dict[int, list[int]] = {i: [] for i in self.requests["request_id"].tolist()}
        for row in rows_of(self.segments):
            if row["last_step"] < row["first_step"]:
                continue
            decoded = ends.get(row["replica"], [])[row["first_step"] : row["last_step"]]
            times[row["request_id"]] += [row["start_ps"], *decoded]
        return times

    def outcomes(self) -> dict[int, tuple[Any, ...]]:
        """The requests as the naive simulator reports them."""
        return {
            row["request_id"]: (
                State(row["state"]).name.lower(),
                Reason(row["reason"]).name.lower() if row["reason"] else "",
                row["replica"],
                row["scheduled_ps"],
                row["first_token_ps"],
                row["finish_ps"],
                row["output_tokens"],
                row["preemptions"],
            )
            for row in rows_of(self.requests)
        }


def rows_of(table: Table) -> Iterator[dict[str, int]]:
    """The rows of a table as mappings of plain integers."""
    names = list(table.columns)
    for values in zip(*(table[name].tolist() for name in names), strict=True):
        yield dict(zip(names, values, strict=True))


Wrap = Callable[[Scheduler, ReplicaParts], Scheduler]


def make_parts(scenario: Scenario, max_run: int = NO_LIMIT, timer: StepTimer | None = None) -> ReplicaParts:
    """One replica's scheduler, allocator, batch and timer."""
    forks = scenario.sequences > 1
    size = scenario.num_blocks, scenario.block_size, scenario.fixed_blocks
    if scenario.prefix_tokens:
        cached = (FORKING_PREFIX_CACHES if forks else PREFIX_CACHES)[scenario.match]
        cached = TIERED[scenario.match] if scenario.tiers else cached
        kv = cached(*size, eviction=scenario.eviction, **dict(scenario.memory), **_below(scenario))
    elif scenario.allocator == "paged" and "bound_tokens" in dict(scenario.memory):
        kv = BoundedKV(*size, **dict(scenario.memory))
    else:
        kv = (FORKING if forks else ALLOCATORS)[scenario.allocator](*size, **dict(scenario.memory))
    batch = DecodeBatch(scenario.spans)
    options = dict(scenario.policy)
    if "max_wait_ticks" in options:
        options["max_wait_ms"] = options.pop("max_wait_ticks") * scenario.tick_ps / 1e9
    if scenario.scheduler == "chunked":
        options["long_prefill_token_threshold"] = scenario.threshold
    scheduler = SCHEDULERS[scenario.scheduler](
        kv,
        batch,
        max_num_seqs=scenario.max_num_seqs,
        max_num_batched_tokens=scenario.max_num_batched_tokens,
        queue=QUEUE_ORDERS[scenario.order](**dict(scenario.weights)),
        preemption_victim=scenario.victim,
        **options,
    )
    parts = ReplicaParts(scheduler, kv, batch, timer or scenario.timer(), scenario.lead, max_run)
    if scenario.swap:
        swap = dict(scenario.swap)
        host, rate = HostPool(swap["capacity"]), LinkRate(swap["bytes_per_s"], swap["latency_ps"])
        scheduler._mover = Mover(kv, host, block_bytes=swap["block_bytes"], fixed_blocks=scenario.fixed_blocks)
        return replace(parts, links={IN: rate, OUT: rate})
    if not isinstance(kv, TieredKV):
        return parts
    # A block takes 2, 9, 16, ... ticks to read and 5 to write.
    reads = [LinkRate(10**12 // (scenario.tick_ps * (2 + 7 * i)), scenario.tick_ps) for i in range(len(scenario.tiers))]
    write = LinkRate(10**12 // (scenario.tick_ps * 5))
    return replace(parts, tiers=TierLinks(kv, reads, [write] * len(reads), 1))


def _below(scenario: Scenario) -> dict[str, Any]:
    """Tiers from which nothing is loaded that is one block only."""
    if not scenario.tiers:
        return {}
    store = TierStore(scenario.tiers)
    return {"store": store, "worth": lambda cached, parts: sum(parts) > 1, "prefetch": scenario.prefetch}


def make_cluster(
    scenario: Scenario,
    max_run: int = NO_LIMIT,
    wrap: Wrap | None = None,
    router: Router | None = None,
    timer: StepTimer | None = None,
) -> tuple[Cluster, ListWorkload]:
    """A cluster that has not run yet, and its traffic. `wrap` may put a watcher around every scheduler."""
    parts = [make_parts(scenario, max_run, timer) for _ in range(scenario.replicas)]
    if wrap is not None:
        parts = [replace(p, scheduler=wrap(p.scheduler, p)) for p in parts]
    workload = ListWorkload(scenario.requests(), _follow_ups(scenario))
    cluster = Cluster(
        workload,
        parts,
        router or ROUTERS[scenario.router](0),
        max_model_len=scenario.longest_request,
        client_timeout_ps=scenario.timeout_ps,
    )
    return cluster, workload


def play(scenario: Scenario, max_run: int = NO_LIMIT, **options: Any) -> Run:
    """Run a scenario to its end, at most `max_run` steps per plan, and check the books of every replica."""
    cluster, workload = make_cluster(scenario, max_run, **options)
    cluster.run()
    for replica in cluster.replicas:
        replica.check()
        assert replica.outstanding == 0
        assert replica.used_blocks() == 0
    return Run(cluster, workload.ended)


def _next_job(scenario: Scenario) -> Callable[[int, int, int, int], tuple[int, int, int, int, int] | None]:
    """The closed loop's rule, shared by both simulators: half the output, after no or little thinking."""
    left = len(scenario.rows) if scenario.closed_loop else 0
    next_id = 10**6

    def following(id_: int, prompt: int, output: int, now: int) -> tuple[int, int, int, int, int] | None:
        nonlocal left, next_id
        if left <= 0:
            return None
        left -= 1
        next_id += 1
        output = max(1, output // 2)
        return next_id, now + (id_ * 7919 % 4) * scenario.tick_ps * (id_ % 2), prompt, output, output

    return following


def _follow_ups(scenario: Scenario) -> Callable[[Request, int], Request | None]:
    following = _next_job(scenario)

    def follow_up(request: Request, now: int) -> Request | None:
        job = following(request.id, request.prompt_tokens, request._output_tokens, now)
        return None if job is None else scenario.request(job)

    return follow_up


def play_naively(scenario: Scenario) -> Outcome:
    """The same scenario in the naive simulator, which knows round robin and the fewest outstanding requests."""
    following = _next_job(scenario)
    jobs = {row[0]: scenario.job(row) for row in scenario.rows}

    def on_finish(id_: int, now: int) -> Job | None:
        row = following(id_, jobs[id_].prompt, jobs[id_].output, now)
        if row is None:
            return None
        jobs[row[0]] = scenario.job(row)
        return jobs[row[0]]

    return simulate_naively(
        list(jobs.values()),
        duration_ps=scenario.duration_ps,
        policy=scenario.scheduler,
        policy_options={
            "max_wait_ps" if name == "max_wait_ticks" else name: value * scenario.tick_ps if "ticks" in name else value
            for name, value in scenario.policy
        },
        queue=scenario.order,
        queue_options=dict(scenario.weights),
        victim=scenario.victim,
        max_num_seqs=scenario.max_num_seqs,
        max_num_batched_tokens=scenario.max_num_batched_tokens,
        block_size=scenario.block_size,
        num_blocks=scenario.num_blocks,
        max_model_len=scenario.max_model_len,
        lead=scenario.lead,
        long_prefill_token_threshold=scenario.threshold,
        client_timeout_ps=math.inf if scenario.timeout_ps is None else scenario.timeout_ps,
        replicas=scenario.replicas,
        router="round_robin" if scenario.router == "round_robin" else "least",
        on_finish=on_finish,
        prefix_caching=scenario.prefix_tokens > 0,
        match=scenario.match,
        eviction=scenario.eviction,
        memory=scenario.allocator,
        memory_options={name: value for name, value in scenario.memory if name != "max_model_len"},
        fixed_blocks=scenario.fixed_blocks,
        swap=dict(scenario.swap),
    )
