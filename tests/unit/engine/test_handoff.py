"""Prompts computed by one replica and decoded by another, against timetables worked out on paper and in both modes.

On paper a step lasts 100 + 10 per decode + 1 per new prompt token; the link carries one byte per picosecond, a token's
keys and values are one byte, whole blocks are copied. In the comments P is a chunk, D a decode.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import ListWorkload

from scenarios import Run, Scenario, examples, make_parts, of_any_kind, random_scenario, rows_of, scenarios, with_policy
from sim.cost.shape import RunShape
from sim.cost.step_times import StepTimer, StepTimes
from sim.engine.cluster import Cluster, _StopSimulationError
from sim.engine.events import ARRIVAL, Alarm
from sim.engine.handoff import HandoffRules
from sim.engine.link import LinkRate
from sim.engine.replica import ReplicaParts
from sim.engine_settings import RESTORING
from sim.kv.host_pool import HostPool
from sim.policies import ROUTERS
from sim.request import Reason, State
from sim.schedulers.mover import Mover
from sim.step import IN, NO_LIMIT, OUT
from sim.units import PS_PER_S


class Paper:
    """The timer of the timetables."""

    def run(self, shape: RunShape, max_steps: int) -> StepTimes:
        each = 100 + 10 * shape.decodes + sum(new for _, new in shape.chunks)
        steps = 1 if shape.chunks else max_steps
        return StepTimes(steps, steps * each, [(0, 0, each, 0, steps)])


FAST = LinkRate(PS_PER_S)


@dataclass(frozen=True)
class Pools:
    """How many replicas prefill and decode, their memory, and the link between them."""

    prefill: int = 1
    decode: int = 1
    prefill_blocks: int = 10**6
    rate: LinkRate = FAST
    router: str = "least_outstanding_requests"
    layers: int | None = None
    swap: bool | None = None
    """Whether the decode replicas swap, and if, with overlap."""


def decode_parts(scenario: Scenario, pools: Pools, max_run: int, timer: StepTimer | None) -> ReplicaParts:
    """A replica that takes prompts over."""
    plain = make_parts(scenario, max_run, timer)
    host = None if pools.swap is None else HostPool(300)
    mover = Mover(plain.kv, host, block_bytes=scenario.block_size, overlap=bool(pools.swap))
    scheduler: Any = plain.scheduler
    scheduler._mover = mover
    links = {OUT: pools.rate, IN: pools.rate} if host else {}
    return replace(plain, links=links, overlap=bool(pools.swap), host=host)


def make(scenario: Scenario, pools: Pools, max_run: int, timer: StepTimer | None) -> tuple[Cluster, ListWorkload]:
    """A cluster of two pools that has not run yet."""
    memory = scenario.memory if scenario.allocator == "paged" else ()  # the others reserve room for the answer
    first = replace(scenario, num_blocks=pools.prefill_blocks, allocator="paged", memory=memory)
    front = [make_parts(first, max_run, timer) for _ in range(pools.prefill)]
    back = [decode_parts(scenario, pools, max_run, timer) for _ in range(pools.decode)]
    workload = ListWorkload(scenario.requests())
    rules = HandoffRules(ROUTERS[pools.router](0), pools.rate, pools.prefill, pools.layers, token_bytes=1)
    cluster = Cluster(
        workload, [*front, *back], ROUTERS[scenario.router](0), max_model_len=scenario.longest_request,
        client_timeout_ps=scenario.timeout_ps, handoff=rules,
    )  # fmt: skip
    return cluster, workload


def play(scenario: Scenario, pools: Pools, max_run: int = NO_LIMIT, timer: StepTimer | None = None) -> Run:
    """Run to the end; the books of all replicas balance, and clients have what the segments say."""
    cluster, workload = make(scenario, pools, max_run, timer)
    cluster.run()
    for replica in cluster.replicas:
        replica.check()
        assert (replica.outstanding, replica.used_blocks()) == (0, 0)
    run = Run(cluster, workload.ended)
    tokens = {row["request_id"]: row["output_tokens"] for row in rows_of(run.requests)}
    assert {i: len(times) for i, times in run.token_times().items()} == tokens
    assert len(tokens) == len(scenario.rows)
    return run


def assert_same(a: Run, b: Run) -> None:
    """Equal requests and segments in equal order, and equal ends of steps."""
    assert list(rows_of(a.requests)) == list(rows_of(b.requests))
    assert list(rows_of(a.segments)) == list(rows_of(b.segments))
    assert a.boundaries() == b.boundaries()


def serve(pools: Pools, *rows: tuple[int, ...], **changes: Any) -> Run:
    """Rows are (arrival, prompt, output)."""
    full = tuple((i, arrival, prompt, output, output) for i, (arrival, prompt, output) in enumerate(rows))
    runs = [play(Scenario(full, **{"block_size": 2} | changes), pools, max_run, Paper()) for max_run in (NO_LIMIT, 1)]
    assert_same(runs[0], runs[1])
    return runs[0]


def test_one_request() -> None:
    """The first token comes from the prefill replica; the copy of whole blocks; the rest from the decode replica."""
    # [0, 105] P5; [105, 111] copy of 3 blocks of 2; [111, 221] [221, 331] D
    run = serve(Pools(), (0, 5, 3))
    assert run.token_times() == {0: [105, 221, 331]}
    assert run.boundaries() == {0: [105], 1: [221, 331]}
    row = next(rows_of(run.requests))
    assert (row["replica"], row["scheduled_ps"], row["first_token_ps"], row["finish_ps"]) == (1, 0, 105, 331)
    assert [row["replica"] for row in rows_of(run.segments)] == [0, 1]


def test_an_answer_of_one_token_ends_where_it_began() -> None:
    """Nothing is handed over that is complete."""
    run = serve(Pools(), (0, 5, 1))
    assert run.boundaries() == {0: [105]}
    assert next(rows_of(run.requests))["replica"] == 0


def test_copies_share_the_link() -> None:
    """Two prompts of one step leave together: each has half of the bandwidth, so both arrive after 12 ps."""
    # [0, 110] P5 P5; [110, 122] both copies; [122, 242] D D
    run = serve(Pools(), (0, 5, 2), (0, 5, 2))
    assert run.token_times() == {0: [110, 242], 1: [110, 242]}


def test_layer_by_layer_only_the_last_layer_is_left() -> None:
    """With 5 layers 4 of the 5 bytes flow during the step; after it one fifth of the whole blocks is left, 2 bytes."""
    run = serve(Pools(layers=5), (0, 5, 2))
    assert run.token_times() == {0: [105, 107 + 110]}
    # At 1/40 byte per ps the four bytes take until 160: the last layer, from 105 on, shares the link until it is full.
    # From 105: 2.625 of 4 bytes have gone, 1.375 and 2 are left, each at 1/80 per ps: the first ends at 215, then
    # 0.625 bytes alone, until 240.
    slow = LinkRate(PS_PER_S // 40)
    assert serve(Pools(layers=5, rate=slow), (0, 5, 2)).token_times() == {0: [105, 240 + 110]}


def test_the_prompt_waits_on_the_replica_that_computed_it() -> None:
    """Until the decode replica has room; its blocks are not free before that, and the next prompt waits for them."""
    # The decode replica has 4 blocks, and 0 needs 4 of them for 4 + 3 tokens: 1 cannot come before it ends.
    # [0, 104] P4; [104, 108]; [108, 218] [218, 328] [328, 438] D. Prefill, 4 blocks: P4 of 1 [104, 208]; P4 of 2 waits
    # for the blocks of 1, which are free at 442. [438, 442] copy of 1; [442, 546] P4 of 2; [442, 552] D ...
    run = serve(Pools(prefill_blocks=4), (0, 4, 4), (0, 4, 4), (0, 4, 1), num_blocks=4, max_num_seqs=1)
    assert run.token_times() == {0: [104, 218, 328, 438], 1: [208, 552, 662, 772], 2: [312]}


def test_asynchronous_scheduling_hands_over_at_the_real_end() -> None:
    """The prefill replica computes a step for nothing; the copy begins when the prompt's own step has ended."""
    # [0, 105] P5; [105, 215] D for nothing; [105, 111] copy; on the decode replica [111, 221] D, and one for nothing.
    run = serve(Pools(), (0, 5, 2), lead=1)
    assert run.token_times() == {0: [105, 221]}
    assert run.boundaries() == {0: [105, 215], 1: [221, 331]}


def test_each_pool_is_asked_what_it_can_hold() -> None:
    """The prompt must fit where it is computed, prompt and answer where it is decoded."""
    run = serve(Pools(prefill_blocks=4), (0, 7, 9), (0, 9, 2), (0, 7, 10), num_blocks=8)
    reasons = {row["request_id"]: row["reason"] for row in rows_of(run.requests)}
    assert reasons == {0: Reason.NONE, 1: Reason.NEVER_FITS, 2: Reason.NEVER_FITS}


def test_clients_may_give_up_anywhere() -> None:
    """While the prompt is computed, waits for the other replica, is copied, or is decoded."""
    seen = set()
    for patience in range(50, 700, 3):
        for lead in (0, 1):
            pools = Pools(prefill_blocks=8, rate=LinkRate(PS_PER_S // 20), layers=3 if patience % 2 else None)
            changes: dict[str, Any] = {"timeout_ps": patience, "num_blocks": 6, "lead": lead}
            run = serve(pools, (0, 4, 4), (0, 4, 4), (1, 5, 3), (2, 3, 2), **changes)
            seen |= {(row["replica"], row["state"], row["output_tokens"]) for row in rows_of(run.requests)}
    assert {(0, State.ABORTED, 0), (1, State.ABORTED, 1), (1, State.ABORTED, 3), (1, State.COMPLETED, 4)} <= seen


def test_an_interrupted_run_keeps_every_request() -> None:
    """Whenever it is cut off, even between two replicas, all requests that had arrived are in the table once."""

    def stop(_: Alarm) -> None:
        raise _StopSimulationError

    rows = tuple((i, 30 * i, 5, 4, 4) for i in range(8))
    between = 0
    for now in range(900):
        cluster, _ = make(Scenario(rows, block_size=2, num_blocks=12), Pools(), NO_LIMIT, Paper())
        Alarm(cluster.env, ARRIVAL + 99, now, stop)  # after ends of steps and arrivals of its instant
        cluster.run()
        ended = list(rows_of(Run(cluster, []).requests))
        assert sorted(row["request_id"] for row in ended) == list(range(cluster.submitted))
        between += any(row["replica"] == 0 and row["output_tokens"] for row in ended)
    assert between > 2


def draw_pools(pick: Any, scenario: Scenario) -> Pools:
    """Few replicas, little memory, coarse ticks."""
    tick = scenario.tick_ps
    longest = max(-(-(p + 1) // scenario.block_size) for _, _, p, _, _ in scenario.rows)
    return Pools(
        prefill=pick([1, 2]),
        decode=pick([1, 1, 3]),
        prefill_blocks=longest * pick([10, 15, 30, 10**4]) // 10,
        rate=LinkRate(
            pick([PS_PER_S // tick, PS_PER_S // tick // 9, PS_PER_S * 30 // tick]), pick([0, 0, tick, 30 * tick])
        ),
        router=pick(sorted(ROUTERS)),
        layers=pick([None, None, 1, 4]),
        swap=pick([None, None, False, True]),
    )


def that_restores(scenario: Scenario, rng: random.Random) -> Scenario:
    """The same over any memory, with one of the schedulers that admit requests from elsewhere."""
    scenario = of_any_kind(scenario, rng)
    if scenario.scheduler not in RESTORING:
        scenario = with_policy(scenario, rng, rng.randrange(5))
    return replace(scenario, threshold=0, max_num_batched_tokens=2000) if scenario.prefix_tokens else scenario


def compare(scenario: Scenario, pools: Pools) -> Run:
    """Leaping, runs of three and single-stepping."""
    runs = [play(scenario, pools, max_run) for max_run in (NO_LIMIT, 3, 1)]
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])
    return runs[0]


@given(scenario=scenarios(), data=st.data())
@examples(60)
def test_short_scenarios_agree_in_both_modes(scenario: Scenario, data: st.DataObject) -> None:
    """Whoever waits for whom: leaping gives the tables of single steps."""
    compare(scenario, draw_pools(lambda options: data.draw(st.sampled_from(options)), scenario))


@pytest.mark.parametrize("kind", ["plain", "any"])
def test_long_scenarios_agree_in_both_modes(kind: str) -> None:
    """The same over longer traffic, with preemptions, time-outs and swapping in the decode pool, under any policy."""
    preempted = handed = 0
    for seed in range(40):
        rng = random.Random(seed)
        scenario = random_scenario(seed, most_requests=40)
        if kind == "any":
            scenario = that_restores(scenario, rng)
        run = compare(scenario, draw_pools(rng.choice, scenario))
        preempted += int(run.requests["preemptions"].sum())
        handed += len(run.segments) - len(set(run.segments["request_id"].tolist()))
    assert preempted > 50 or kind == "any"
    assert handed > 300
