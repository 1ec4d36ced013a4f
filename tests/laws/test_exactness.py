"""Leaping over many steps gives exactly what single-stepping gives, and what a naive simulator of the rules gives."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios import (
    POLICIES,
    Run,
    Scenario,
    amount,
    examples,
    of_any_kind,
    play,
    play_naively,
    random_scenario,
    rows_of,
    scenarios,
    tight,
    with_memory,
    with_policy,
    with_prefixes,
    with_spans,
    with_swap,
)
from sim.engine.replica import ReplicaParts
from sim.kv.base import Grant, KVAllocator
from sim.request import Request, State
from sim.schedulers.base import Scheduler

SEEDS_PER_TEST = amount(35)
KNOWN_TO_NAIVE = ("round_robin", "least_outstanding_requests")


def assert_same(leaping: Run, other: Run) -> None:
    """Equal request and segment tables, boundaries and order of ends; the step rows may be cut differently."""
    for name in ("requests", "segments"):
        ours, theirs = getattr(leaping, name), getattr(other, name)
        for column in ours.columns:
            assert ours[column].tolist() == theirs[column].tolist(), f"{name}.{column}"
    assert leaping.ended == other.ended
    assert leaping.boundaries() == other.boundaries()


def assert_same_rows(leaping: Run, single: Run) -> None:
    """A row of the leaping run begins with a step that single-stepping recorded with the same batch and memory."""
    columns = ("decodes", "context_tokens", "prefill_tokens", "prefill_sequences", "prefill_pairs")
    columns += ("kv_blocks", "kv_tokens", "running")
    steps = {(row["replica"], row["start_ps"]): row for row in rows_of(single.steps)}
    for row in rows_of(leaping.steps):
        alone = steps[row["replica"], row["start_ps"]]
        assert {c: row[c] for c in columns} == {c: alone[c] for c in columns}
        assert row["first_step_ps"] == alone["first_step_ps"]


def assert_naive_agrees(scenario: Scenario, run: Run) -> None:
    """States, reasons, times, tokens and preemptions of every request, and every step's end."""
    naive = play_naively(scenario)
    assert run.outcomes() == naive.requests
    assert run.boundaries() == {i: ends for i, ends in enumerate(naive.boundaries) if ends}
    assert run.token_times() == naive.token_times
    cached = run.requests["cached_tokens"].tolist()
    assert dict(zip(run.requests["request_id"].tolist(), cached, strict=True)) == naive.cached


def compare_all(scenario: Scenario) -> Run:
    """All ways to simulate a scenario; returns the leaping run."""
    leaping, single = play(scenario), play(scenario, max_run=1)
    assert_same(leaping, single)
    assert_same_rows(leaping, single)
    assert_same(leaping, play(scenario, max_run=3))
    if scenario.router in KNOWN_TO_NAIVE:
        assert_naive_agrees(scenario, leaping)
    return leaping


@given(scenario=scenarios(), seed=st.integers(0, 10**6))
@examples(150)
def test_short_scenarios_with_shared_prefixes_agree_in_every_mode(scenario: Scenario, seed: int) -> None:
    """With a prefix cache: who hits what, and whose blocks are taken, does not depend on how steps were grouped."""
    compare_all(with_prefixes(scenario, random.Random(seed)))


@pytest.mark.parametrize("batch", range(4))
def test_long_scenarios_with_shared_prefixes_agree_in_every_mode(batch: int) -> None:
    """The same for longer scenarios, held to a naive simulator that keeps every block and what it holds in lists."""
    for seed in range(12000 + batch * SEEDS_PER_TEST, 12000 + (batch + 1) * SEEDS_PER_TEST):
        compare_all(with_prefixes(random_scenario(seed), random.Random(seed)))


@given(scenario=scenarios(), seed=st.integers(0, 10**6))
@examples(100)
def test_short_scenarios_with_every_allocator_agree_in_every_mode(scenario: Scenario, seed: int) -> None:
    """Reserved rooms, contiguous places and bounded caches: who is admitted and preempted follows from the rules."""
    compare_all(with_memory(scenario, random.Random(seed)))


@pytest.mark.parametrize("batch", range(2))
def test_long_scenarios_with_every_allocator_agree_in_every_mode(batch: int) -> None:
    """The same for longer scenarios, held to a naive simulator that looks for holes by walking all addresses."""
    for seed in range(15000 + batch * SEEDS_PER_TEST, 15000 + (batch + 1) * SEEDS_PER_TEST):
        compare_all(with_memory(random_scenario(seed, most_requests=40), random.Random(seed)))


@pytest.mark.parametrize("eviction", ["lru", "lfu"])
@pytest.mark.parametrize("match", ["hash_block", "radix"])
def test_every_prefix_cache_agrees_in_every_mode(match: str, eviction: str) -> None:
    """Whichever way prefixes are matched and evicted, leaping over steps changes nothing."""
    for seed in range(13000, 13000 + SEEDS_PER_TEST):
        drawn = with_prefixes(random_scenario(seed, most_requests=40), random.Random(seed))
        router = ("prefix_affinity", "kv_aware", drawn.router)[seed % 3]
        compare_all(replace(drawn, match=match, eviction=eviction, router=router))


@given(scenario=scenarios())
@examples(200)
def test_short_scenarios_agree_in_every_mode(scenario: Scenario) -> None:
    """Leaping, runs of three steps, single steps and the naive simulator agree bit for bit on what hypothesis finds."""
    compare_all(scenario)


@pytest.mark.parametrize("batch", range(6))
def test_long_scenarios_agree_in_every_mode(batch: int) -> None:
    """The same for longer random scenarios, up to 120 requests and as many follow-ups."""
    for seed in range(batch * SEEDS_PER_TEST, (batch + 1) * SEEDS_PER_TEST):
        compare_all(random_scenario(seed))


@pytest.mark.parametrize("which", range(len(POLICIES)), ids=[" ".join(map(str, p)) for p in POLICIES])
def test_every_policy_queue_order_and_victim_agrees_in_every_mode(which: int) -> None:
    """Each scheduler with all its options, under any order of the queue, follows its rules to the picosecond."""
    for seed in range(17000 + which, 17000 + which + len(POLICIES) * amount(12), len(POLICIES)):
        rng, scenario = random.Random(seed), random_scenario(seed, most_requests=40)
        compare_all(with_policy(tight(scenario, rng) if rng.random() < 0.7 else scenario, rng, which))


@pytest.mark.parametrize("batch", range(2))
def test_swapping_agrees_in_every_mode(batch: int) -> None:
    """Copies delay steps, the host fills up, and who comes back waits for its turn, as the rules say."""
    for seed in range(19000 + batch * SEEDS_PER_TEST, 19000 + (batch + 1) * SEEDS_PER_TEST):
        compare_all(with_swap(random_scenario(seed, most_requests=40), random.Random(seed)))


def test_who_comes_back_rides_with_a_prompt_that_takes_the_rest_of_the_budget() -> None:
    """Its token is part of the budget already, so the step has room for it whatever the prompt leaves."""
    rows = tuple(
        (i, at, prompt, n, n) for i, at, prompt, n in [(0, 0, 3, 5), (1, 0, 3, 5), (2, 0, 3, 9), (3, 1, 11, 1)]
    )
    swap = (("capacity", 10**6), ("block_bytes", 2), ("bytes_per_s", 10**12), ("latency_ps", 0))
    policy = (("priority", "decode"), ("mixed", True))
    run = compare_all(Scenario(rows, "continuous", policy=policy, swap=swap, max_num_batched_tokens=12, block_size=2,
                               num_blocks=10))  # fmt: skip
    mixed = [row for row in rows_of(run.steps) if row["prefill_tokens"] == 11]
    assert [row["decodes"] for row in mixed] == [1]


@given(scenario=scenarios(), seed=st.integers(0, 10**6))
@examples(80)
def test_short_scenarios_of_any_kind_agree_in_every_mode(scenario: Scenario, seed: int) -> None:
    """Any scheduler over any allocator or prefix cache: what one does to the other follows from the rules of both."""
    compare_all(of_any_kind(scenario, random.Random(seed)))


@pytest.mark.parametrize("batch", range(3))
def test_long_scenarios_of_any_kind_agree_in_every_mode(batch: int) -> None:
    """The same for longer scenarios."""
    for seed in range(18000 + batch * SEEDS_PER_TEST, 18000 + (batch + 1) * SEEDS_PER_TEST):
        compare_all(of_any_kind(random_scenario(seed, most_requests=40), random.Random(seed)))


@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("scheduler", ["chunked", "continuous"])
def test_every_scheduler_agrees_with_the_naive_simulator(scheduler: str, lead: int) -> None:
    """Each policy, synchronous and asynchronous, agrees with the rules on its own share of scenarios."""
    for seed in range(5000, 5000 + SEEDS_PER_TEST):
        drawn = random_scenario(seed, most_requests=40)
        budget = max(drawn.max_num_batched_tokens, max(p + most for _, _, p, _, most in drawn.rows))
        router = KNOWN_TO_NAIVE[seed % 2]
        scenario = replace(drawn, scheduler=scheduler, lead=lead, router=router)
        if scheduler == "continuous":
            scenario = replace(scenario, max_num_batched_tokens=budget, threshold=0)
        compare_all(scenario)


@pytest.mark.parametrize("batch", range(2))
def test_attention_windows_agree_in_every_mode(batch: int) -> None:
    """With sliding windows and chunked attention the local sums bend within a run, and the modes still agree."""
    for seed in range(9000 + batch * SEEDS_PER_TEST, 9000 + (batch + 1) * SEEDS_PER_TEST):
        compare_all(with_spans(random_scenario(seed), seed))


@pytest.mark.parametrize("batch", range(2))
def test_runs_of_any_length_agree(batch: int) -> None:
    """The limit on the length of a run is a matter of speed alone, whatever it is."""
    rng = random.Random(batch)
    for seed in range(7000 + batch * SEEDS_PER_TEST, 7000 + (batch + 1) * SEEDS_PER_TEST):
        scenario = random_scenario(seed, most_requests=40)
        assert_same(play(scenario), play(scenario, max_run=rng.randint(2, 50)))


def test_the_scenarios_reach_every_corner() -> None:
    """The random scenarios hold what can go wrong: leaps, preemptions, time-outs, refusals, ties, shared steps."""
    runs = [play(random_scenario(seed)) for seed in range(100)]
    states = [state for run in runs for state in run.requests["state"].tolist()]
    for state in (State.COMPLETED, State.ABORTED, State.REJECTED):
        assert states.count(state) > 100
    assert sum(int(run.requests["preemptions"].sum()) for run in runs) > 500
    assert sum(int((run.steps["steps"] > 1).sum()) for run in runs) > 1000
    assert sum(int((run.steps["decodes"] * run.steps["prefill_tokens"] > 0).sum()) for run in runs) > 500
    ties = sum(len(set(run.requests["arrival_ps"].tolist()) & set(run.requests["finish_ps"].tolist())) for run in runs)
    assert ties > 500
    first_seen = sum(int(((run.requests["state"] == State.ABORTED) & (run.requests["output_tokens"] > 0)).sum())
                     for run in runs)  # fmt: skip
    assert first_seen > 100  # time-outs in the middle of a generation


def test_the_scenarios_with_prefixes_reach_every_corner() -> None:
    """They hold hits at first and at later admissions, whole prompts that are found, evictions and time-outs."""
    watch = Watch()
    drawn = [with_prefixes(random_scenario(seed, most_requests=40), random.Random(seed)) for seed in range(200)]
    runs = [play(scenario, wrap=watch) for scenario in drawn]
    hit = sum(int((run.requests["cached_tokens"] > 0).sum()) for run in runs)
    assert hit > 1000
    assert watch.seen["hit after a preemption"] > 20
    assert watch.seen["whole prompt found"] > 50
    assert watch.seen["prefix of prompt found"] > 500
    assert watch.seen["evicted before it was found again"] > 50


class Watch:
    """Put around a scheduler: notes what happened at the admissions of a plan."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def __call__(self, inner: Scheduler, parts: ReplicaParts) -> Scheduler:
        known: set[tuple[int, ...]] = set()
        reserve, seen = parts.kv.reserve, self.seen

        def noting(request: Request, tokens: int) -> Grant | None:
            fresh, hashes = not request.reserved_tokens, request.traits.prefix_hashes
            grant = reserve(request, tokens)
            if grant is None or not fresh or not hashes:
                return grant
            missing = request.prompt_tokens - grant.cached_tokens
            seen["hit after a preemption"] += request.preemptions > 0 and grant.cached_tokens > 0
            seen["whole prompt found"] += grant.cached_tokens > 0 and missing <= parts.kv.block_tokens
            seen["prefix of prompt found"] += grant.cached_tokens > 0 and missing > parts.kv.block_tokens
            seen["evicted before it was found again"] += hashes in known and missing > 2 * parts.kv.block_tokens
            known.add(hashes)
            return grant

        scheduler: Any = inner
        scheduler._kv = Noting(parts.kv, noting)
        return inner


class Noting:
    """An allocator with another `reserve`."""

    def __init__(self, kv: KVAllocator, reserve: Callable[[Request, int], Grant | None]) -> None:
        self._kv, self.reserve = kv, reserve

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kv, name)


def test_the_queue_in_a_row_is_that_of_its_plan() -> None:
    """`waiting` is what the plan saw: whoever arrives while the run lasts is not in it."""
    for seed in range(60):
        scenario = random_scenario(seed)
        leaping, single = play(scenario), play(scenario, max_run=1)
        waiting = {(row["replica"], row["start_ps"]): row["waiting"] for row in rows_of(single.steps)}
        seen = [(row["waiting"], waiting[row["replica"], row["start_ps"]]) for row in rows_of(leaping.steps)]
        assert all(at_plan <= at_step for at_plan, at_step in seen)
        assert sum(a == b for a, b in seen) > 0.8 * len(seen)
