"""Preemption by swapping, against timetables worked out on paper and in both modes.

On paper a step lasts 100 + 10 per decode + 1 per new prompt token; links carry one byte per picosecond, a token's keys
and values are one byte. In the comments P is a chunk, D a decode.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import ListWorkload

from scenarios import (
    Run,
    Scenario,
    examples,
    make_parts,
    of_any_kind,
    play,
    random_scenario,
    rows_of,
    scenarios,
    with_policy,
    with_prefixes,
)
from sim.cost.shape import RunShape
from sim.cost.step_times import StepTimer, StepTimes
from sim.engine.cluster import Cluster
from sim.engine.link import LinkRate
from sim.engine.replica import ReplicaParts
from sim.engine.router import RoundRobin
from sim.engine_settings import RESTORING
from sim.errors import InvariantError
from sim.kv.host_pool import HostPool
from sim.request import Request, State
from sim.schedulers.mover import Mover
from sim.step import IN, NO_LIMIT, OUT
from sim.units import PS_PER_S


class Paper:
    """The timer of the timetables."""

    def run(self, shape: RunShape, max_steps: int) -> StepTimes:
        each = 100 + 10 * shape.decodes + sum(new for _, new in shape.chunks)
        steps = 1 if shape.chunks else max_steps
        return StepTimes(steps, steps * each, [(0, 0, each, 0, steps)])


@dataclass(frozen=True)
class Rules:
    """How victims are swapped. One byte per token."""

    overlap: bool = False
    capacity: int = 10**9
    latency_ps: int = 0
    bytes_per_s: int = PS_PER_S


def parts(scenario: Scenario, rules: Rules, max_run: int, timer: StepTimer | None) -> tuple[ReplicaParts, HostPool]:
    """A replica that swaps."""
    plain = make_parts(scenario, max_run, timer)
    pool = HostPool(rules.capacity)
    mover = Mover(plain.kv, pool, block_bytes=scenario.block_size, overlap=rules.overlap)
    scheduler: Any = plain.scheduler
    scheduler._mover = mover
    rate = LinkRate(rules.bytes_per_s, rules.latency_ps)
    return replace(plain, links={OUT: rate, IN: rate}, overlap=rules.overlap), pool


def swapping(
    scenario: Scenario, rules: Rules, max_run: int = NO_LIMIT, timer: StepTimer | None = None
) -> tuple[Run, list[HostPool]]:
    """Run to the end; books of blocks and of the host balance."""
    made = [parts(scenario, rules, max_run, timer) for _ in range(scenario.replicas)]
    pools = [pool for _, pool in made]
    workload = ListWorkload(scenario.requests())
    cluster = Cluster(
        workload, [part for part, _ in made], RoundRobin(), max_model_len=scenario.longest_request,
        client_timeout_ps=scenario.timeout_ps,
    )  # fmt: skip
    cluster.run()
    for replica, pool in zip(cluster.replicas, pools, strict=True):
        replica.check()
        assert (replica.outstanding, replica.used_blocks(), pool.used_bytes) == (0, 0, 0)
        totals = pool.totals
        assert totals.swapped_out_bytes == totals.swapped_in_bytes + totals.dropped_bytes
    run = Run(cluster, workload.ended)
    tokens = {row["request_id"]: row["output_tokens"] for row in rows_of(run.requests)}
    assert {i: len(times) for i, times in run.token_times().items()} == tokens
    return run, pools


def serve(rules: Rules, *rows: tuple[int, ...], **changes: Any) -> tuple[Run, HostPool]:
    """Rows are (arrival, prompt, output)."""
    full = tuple((i, arrival, prompt, output, output) for i, (arrival, prompt, output) in enumerate(rows))
    scenario = Scenario(full, **{"block_size": 2, "num_blocks": 4} | changes)
    runs = [swapping(scenario, rules, max_run, Paper()) for max_run in (NO_LIMIT, 1)]
    assert_same(runs[0][0], runs[1][0])
    assert [pool.totals for pool in runs[0][1]] == [pool.totals for pool in runs[1][1]]
    return runs[0][0], runs[0][1][0]


def assert_same(a: Run, b: Run) -> None:
    """Equal requests and segments in equal order, and equal ends of steps."""
    assert list(rows_of(a.requests)) == list(rows_of(b.requests))
    assert list(rows_of(a.segments)) == list(rows_of(b.segments))
    assert a.boundaries() == b.boundaries()
    assert [r.stalled_ps for r in a.cluster.replicas] == [r.stalled_ps for r in b.cluster.replicas]


def test_steps_wait_for_copies_without_overlap() -> None:
    """Out delays the step of the others, in the step that the sequence takes part in; nothing is recomputed."""
    # [0, 106] P3 P3; [106, 226] D D; at 226 both need a block: 1 goes, 2 blocks in 4 ps. [230, 340] D: 0 is done.
    # 4 ps back; [344, 454] D: the third and last token of 1.
    run, pool = serve(Rules(), (0, 3, 3), (0, 3, 3))
    assert run.token_times() == {0: [106, 226, 340], 1: [106, 226, 454]}
    row = next(row for row in rows_of(run.requests) if row["request_id"] == 1)
    assert (row["preemptions"], row["preempted_ps"]) == (1, 344 - 226)
    assert (pool.totals.swaps, pool.totals.swapped_out_bytes, pool.totals.swapped_in_bytes) == (1, 4, 4)
    assert run.cluster.replicas[0].stalled_ps == 8


def test_a_latency_is_paid_per_step_that_copies() -> None:
    """Once for all that goes the same way; ways are travelled side by side."""
    run, _ = serve(Rules(latency_ps=50), (0, 3, 3), (0, 3, 3))
    assert run.token_times() == {0: [106, 226, 390], 1: [106, 226, 554]}


def test_steps_go_on_with_overlap() -> None:
    """The victim's blocks are free once its copy has ended; a restored sequence decodes from the boundary after."""
    # As above, but 0 waits until 230 for the room of 1, which is back after [340, 344].
    run, _ = serve(Rules(overlap=True), (0, 3, 3), (0, 3, 3))
    assert run.token_times() == {0: [106, 226, 340], 1: [106, 226, 454]}
    assert run.cluster.replicas[0].stalled_ps == 8
    # 2 decodes [340, ...] while 1 comes back at 1/20 byte per ps.
    slow = Rules(overlap=True, bytes_per_s=PS_PER_S // 20)
    run, _ = serve(slow, (0, 3, 3), (0, 3, 3), (300, 1, 2), num_blocks=4)
    # out [226, 306]; D of 0 [306, 416]; at 416 1 is restored, in [416, 496]; P1 of 2 [416, 517]; then D D.
    assert run.token_times() == {0: [106, 226, 416], 1: [106, 226, 637], 2: [517, 637]}
    assert run.cluster.replicas[0].stalled_ps == 80


def test_a_full_host_recomputes() -> None:
    """A victim that finds no room there is recomputed, as without swapping."""
    run, pool = serve(Rules(capacity=3), (0, 3, 3), (0, 3, 3))
    assert run.token_times()[1] == [106, 226, 441]
    assert (pool.totals.swaps, pool.totals.host_full) == (0, 1)


def test_asynchronous_scheduling_copies_after_the_step_in_flight() -> None:
    """The victim's token in flight arrives; ends of steps are not delayed by the copies that follow them."""
    # [0, 106] P3 P3; [106, 226] D D planned at 0; at 106 the step from 226 is planned: both need a block, 1 goes.
    # 4 ps; [230, 340] D of 0; 1 is done at 340. At 226 the step after that: 0 again, for its end is not known: no room
    # for 1. [340, 450] D for nothing; at 340 0 ends: 1 comes back, 4 ps after 450. [454, 564] D of 1; one more.
    run, _ = serve(Rules(), (0, 3, 3), (0, 3, 3), lead=1)
    assert run.token_times() == {0: [106, 226, 340], 1: [106, 226, 564]}
    assert run.boundaries()[0] == [106, 226, 340, 450, 564, 674]


def test_a_client_may_give_up_wherever_its_tokens_are() -> None:
    """On the host, or on the way: what is held is free in the end, and the books balance."""
    for patience in range(100, 700, 7):
        for overlap in (False, True):
            rules = Rules(overlap=overlap, bytes_per_s=PS_PER_S // 20)
            for lead in (0, 1):
                run, _ = serve(rules, (0, 3, 5), (0, 3, 3), (1, 1, 4), timeout_ps=patience, num_blocks=5, lead=lead)
                assert set(run.requests["state"].tolist()) <= {State.COMPLETED, State.ABORTED}


@pytest.mark.parametrize(("context", "better"), [(20, "recompute"), (2000, "swap")])
def test_long_contexts_are_better_swapped(context: int, better: str) -> None:
    """Recomputing costs a step and a token each; a copy there and back a latency of 90 each way, and half a token."""
    rules = Rules(latency_ps=90, bytes_per_s=4 * PS_PER_S)
    blocks = 2 * (context // 2 + 1)
    rows = ((0, context, 4), (0, context, 4))
    ends = {}
    for name, capacity in (("swap", 10**9), ("recompute", 0)):
        run, _ = serve(replace(rules, capacity=capacity), *rows, num_blocks=blocks, max_num_batched_tokens=10**6)
        ends[name] = max(run.requests["finish_ps"].tolist())
    assert min(ends, key=lambda name: ends[name]) == better


def test_a_request_that_can_never_come_back_is_found() -> None:
    """A replica with somebody waiting for room that nothing will make is a bug, and says so."""
    scenario = Scenario(((0, 0, 3, 3, 3), (1, 0, 3, 3, 3)), block_size=2, num_blocks=4)
    part, pool = parts(scenario, Rules(), NO_LIMIT, Paper())
    object.__setattr__(part.scheduler, "_mover", Never(part.kv, pool, block_bytes=2))
    cluster = Cluster(ListWorkload(scenario.requests()), [part], RoundRobin(), max_model_len=100)
    with pytest.raises(InvariantError, match="never begins"):
        cluster.run()
    assert pool.used_bytes == 4


class Never(Mover):
    """Lets nobody back in."""

    def bring_in(self, request: Request) -> None:
        return None


def draw_rules(pick: Any, tick: int) -> Rules:
    """Coarse ticks and round rates make copies end on boundaries, and together."""
    return Rules(
        overlap=pick([False, True, True]),
        capacity=pick([10**9, 10**9, 200, 40]),
        latency_ps=pick([0, 0, tick, 30 * tick]),
        bytes_per_s=pick([PS_PER_S // tick, PS_PER_S // tick // 8, PS_PER_S * 20 // tick, PS_PER_S * 7 // tick]),
    )


def tight(scenario: Scenario, rng: random.Random) -> Scenario:
    """The same with longer answers and memory for little more than the longest request."""
    rows = tuple((i, at, p, 2 * out + 20, 2 * most + 20) for i, at, p, out, most in scenario.rows)
    longest = max(-(-(p + most) // scenario.block_size) for _, _, p, _, most in rows)
    budget = max(scenario.max_num_batched_tokens, max(p + most for _, _, p, _, most in rows))
    return replace(
        scenario,
        rows=rows,
        max_num_seqs=32,
        max_num_batched_tokens=budget if scenario.scheduler == "continuous" else scenario.max_num_batched_tokens + 32,
        max_model_len=10**9,
        num_blocks=longest * rng.choice([10, 11, 13, 16]) // 10,
        timeout_ps=rng.choice([None, None, scenario.timeout_ps]),
    )


def compare(scenario: Scenario, rules: Rules) -> tuple[Run, list[HostPool]]:
    """Leaping, runs of three and single-stepping."""
    runs = [swapping(scenario, rules, max_run) for max_run in (NO_LIMIT, 3, 1)]
    assert_same(runs[0][0], runs[1][0])
    assert_same(runs[0][0], runs[2][0])
    return runs[0]


@given(scenario=scenarios(), data=st.data())
@examples(50)
def test_short_scenarios_agree_in_both_modes(scenario: Scenario, data: st.DataObject) -> None:
    """Whatever is copied when: leaping gives the tables of single steps."""
    rules = draw_rules(lambda options: data.draw(st.sampled_from(options)), scenario.tick_ps)
    compare(scenario, rules)


@pytest.mark.parametrize("kind", ["plain", "prefixes", "any"])
def test_long_scenarios_agree_in_both_modes(kind: str) -> None:
    """The same over longer traffic, in which many requests are swapped, some twice, and some find the host full."""
    swaps = full = dropped = 0
    for seed in range(40):
        rng = random.Random(seed)
        scenario = random_scenario(seed, most_requests=40)
        if kind == "any":
            scenario = of_any_kind(scenario, rng)
            if scenario.scheduler not in RESTORING:
                scenario = with_policy(scenario, rng, rng.randrange(5))
            if scenario.prefix_tokens:
                scenario = replace(scenario, threshold=0, max_num_batched_tokens=2000)
        if kind == "prefixes":
            scenario = with_prefixes(replace(scenario, threshold=0, max_num_batched_tokens=2000), rng)
        if not scenario.memory:
            scenario = tight(scenario, rng)
        _, pools = compare(scenario, draw_rules(rng.choice, scenario.tick_ps))
        swaps += sum(pool.totals.swaps for pool in pools)
        full += sum(pool.totals.host_full for pool in pools)
        dropped += sum(pool.totals.dropped_bytes for pool in pools)
    assert swaps > (100 if kind == "any" else 300)
    assert full > 50
    assert dropped > 50 or kind != "plain"


def test_without_victims_nothing_changes() -> None:
    """With room for all, a replica that could swap does what another does."""
    for seed in range(20):
        scenario = replace(random_scenario(seed, most_requests=40), num_blocks=10**6, router="round_robin")
        scenario = replace(scenario, closed_loop=False)
        assert list(rows_of(swapping(scenario, Rules())[0].requests)) == list(rows_of(play(scenario).requests))
