"""Nothing is lost and nothing is made up: requests, tokens, blocks and time in system add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given

from scenarios import Run, Scenario, examples, make_cluster, play, random_scenario, rows_of, scenarios
from sim.audit import audit
from sim.engine.replica import Replica, ReplicaParts
from sim.request import Reason, Request, State
from sim.schedulers.base import Scheduler
from sim.step import Idle, StepPlan


class Watched:
    """A scheduler that looks at the memory's books before and after every plan."""

    def __init__(self, scheduler: Scheduler, parts: ReplicaParts) -> None:
        self._inner, self._kv, self._batch = scheduler, parts.kv, parts.batch
        self.looks = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def plan(self, now_ps: int) -> StepPlan | Idle:
        self._look(set())
        plan = self._inner.plan(now_ps)
        self._look(set() if isinstance(plan, Idle) else {request.id for request, _ in plan.chunks})
        return plan

    def _look(self, planned: set[int]) -> None:
        """Blocks by the allocator's own check; tokens by adding up every running request."""
        self.looks += 1
        context = self._batch.context_of
        running = self._inner.running()
        holders = [(r, context(r) if r.joined_step >= 0 else r.computed_tokens) for r in running]
        self._kv.check(holders)
        if not planned:  # room reserved for a chunk counts as stored before it is computed
            assert self._kv.stored_tokens == sum(tokens for _, tokens in holders)
        assert all(r.reserved_tokens == 0 and r.computed_tokens == 0 for r in self._inner.waiting())
        decoding = [r for r in running if r.joined_step >= 0]
        assert self._batch.count == len(decoding)
        assert self._batch.context_tokens == sum(context(r) for r in decoding)


@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("scheduler", ["chunked", "continuous"])
def test_blocks_and_tokens_add_up_at_every_boundary(scheduler: str, lead: int) -> None:
    """Before and after every plan, the blocks and tokens the allocator counts are those the running requests hold."""
    watchers: list[Watched] = []

    def watch(inner: Scheduler, parts: ReplicaParts) -> Scheduler:
        watchers.append(Watched(inner, parts))
        return watchers[-1]  # type: ignore[return-value]

    for seed in range(30):
        drawn = random_scenario(seed, most_requests=40)
        longest = max(p + most for _, _, p, _, most in drawn.rows)
        budget = max(drawn.max_num_batched_tokens, longest)
        scenario = replace(drawn, scheduler=scheduler, lead=lead, threshold=0, max_num_batched_tokens=budget)
        play(scenario, max_run=1, wrap=watch)
    assert sum(w.looks for w in watchers) > 5000


@given(scenario=scenarios())
@examples(60)
def test_every_request_ends_exactly_once(scenario: Scenario) -> None:
    """Every request that arrives ends once, in one of the final states, with the reason that belongs to it."""
    run = play(scenario)
    ids = run.requests["request_id"].tolist()
    assert sorted(ids) == sorted(set(ids))
    assert {row[0] for row in scenario.rows} <= set(ids)
    assert len(ids) == run.cluster.submitted == run.cluster.ended
    assert ids == run.ended
    for row in rows_of(run.requests):
        state, reason = State(row["state"]), Reason(row["reason"])
        assert (state, reason) in {
            (State.COMPLETED, Reason.NONE),
            (State.ABORTED, Reason.CLIENT_TIMEOUT),
            (State.REJECTED, Reason.TOO_LONG),
            (State.REJECTED, Reason.NEVER_FITS),
        }
        assert (row["replica"] == -1) == (state is State.REJECTED)
    audit(run.result(), run.cluster.submitted)


@given(scenario=scenarios())
@examples(60)
def test_completed_requests_have_all_their_tokens(scenario: Scenario) -> None:
    """A completed request received exactly its output, no other request more than that, and its segments say when."""
    run = play(scenario)
    outputs = {row[0]: row[3] for row in scenario.rows}
    times = run.token_times()
    for row in rows_of(run.requests):
        received = times[row["request_id"]]
        assert len(received) == row["output_tokens"]
        assert received == sorted(received)
        if row["state"] == State.COMPLETED:
            assert received[-1] == row["finish_ps"]
            assert row["output_tokens"] == outputs.get(row["request_id"], row["output_tokens"])
        if received:
            assert received[0] == row["first_token_ps"]
            assert received[-1] <= row["finish_ps"]
        else:
            assert row["first_token_ps"] == -1


@pytest.mark.parametrize("scheduler", ["chunked", "continuous"])
def test_no_token_is_computed_twice_without_preemption(scheduler: str) -> None:
    """With memory for all, prompts are prefilled once and every other token takes one decode."""
    for seed in range(40):
        run = _calm(seed, scheduler, lead=0)
        prefilled = int(run.steps["prefill_tokens"].sum())
        assert prefilled == int(run.requests["prompt_tokens"].sum())
        assert _decoded(run) == int((run.requests["output_tokens"] - 1).sum())


@pytest.mark.parametrize("scheduler", ["chunked", "continuous"])
def test_asynchronous_scheduling_wastes_at_most_one_decode_per_request(scheduler: str) -> None:
    """A plan made before a request's end is known computes one token too many for it, and never more."""
    wasted = 0
    for seed in range(40):
        run = _calm(seed, scheduler, lead=1)
        assert int(run.steps["prefill_tokens"].sum()) == int(run.requests["prompt_tokens"].sum())
        extra = _decoded(run) - int((run.requests["output_tokens"] - 1).sum())
        assert 0 <= extra <= len(run.requests)
        wasted += extra
    assert wasted > 0


def _calm(seed: int, scheduler: str, lead: int) -> Run:
    drawn = random_scenario(seed, most_requests=40)
    longest = max(p + most for _, _, p, _, most in drawn.rows)
    return play(
        replace(
            drawn, scheduler=scheduler, lead=lead, num_blocks=10**6, timeout_ps=None, max_model_len=10**9,
            max_num_batched_tokens=max(longest, drawn.max_num_batched_tokens), threshold=0,
        )
    )  # fmt: skip


def _decoded(run: Run) -> int:
    return int((run.steps["decodes"].astype("int64") * run.steps["steps"]).sum())


@given(scenario=scenarios())
@examples(60)
def test_preempted_requests_are_recomputed_in_full(scenario: Scenario) -> None:
    """Each preemption sends prompt and emitted tokens through prefill again, so chunks never add up to less."""
    run = play(replace(scenario, timeout_ps=None))
    done = run.requests.where(run.requests["state"] == State.COMPLETED)
    prefilled, prompts = int(run.steps["prefill_tokens"].sum()), int(done["prompt_tokens"].sum())
    if int(done["preemptions"].sum()) == 0:
        assert prefilled == prompts
    else:
        assert prefilled > prompts
    for row in rows_of(done):
        assert (row["preempted_ps"] > 0) == (row["preemptions"] > 0)


@pytest.mark.parametrize("lead", [0, 1])
def test_outstanding_requests_obey_littles_law_exactly(lead: int) -> None:
    """The integral over time of a replica's counter of open requests is the sum of the times requests spent in it."""
    for seed in range(40):
        area = _outstanding_area(replace(random_scenario(seed), replicas=1, lead=lead))
        assert area[0] == area[1] > 0


def _outstanding_area(scenario: Scenario) -> tuple[int, int]:
    """(integral of the counter, sum of the times in system), looking at the counter at every arrival and end."""
    area = last = 0

    def elapse(count: int, now: int) -> None:
        nonlocal area, last
        area, last = area + count * (now - last), now

    def router(request: Request, replicas: Sequence[Replica]) -> Replica:
        elapse(replicas[0].outstanding, request.arrival_ps)  # it has not been counted yet
        return replicas[0]

    def follow_up(request: Request, now: int) -> Request | None:
        refused = request.state is State.REJECTED
        elapse(cluster.replicas[0].outstanding + (0 if refused else 1), now)  # it is no longer counted
        return client(request, now)

    cluster, workload = make_cluster(scenario, router=router)
    client, workload.follow_up = workload.follow_up, follow_up
    cluster.run()
    table = cluster.recorder.requests.table()
    return area, int((table["finish_ps"] - table["arrival_ps"]).sum())


def test_ids_of_all_tables_agree() -> None:
    """Segments belong to requests that received tokens, and to nobody else."""
    for seed in range(40):
        run = play(random_scenario(seed))
        tokens = Counter[int]()
        for row in rows_of(run.segments):
            tokens[row["request_id"]] += row["last_step"] - row["first_step"] + 1
        received = {r["request_id"]: r["output_tokens"] for r in rows_of(run.requests) if r["output_tokens"]}
        assert {i: n for i, n in tokens.items() if n} == received
