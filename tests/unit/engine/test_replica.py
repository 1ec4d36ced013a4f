"""One replica against timetables worked out on paper.

Unless said otherwise a step lasts 100 + 10 per decode + 1 per new prompt token, whatever the contexts. In the comments
P is a chunk, D a decode.
"""

from __future__ import annotations

from typing import Any

import pytest

from scenarios import Run, Scenario, make_cluster, make_parts, play, rows_of
from sim.cost.shape import RunShape
from sim.cost.step_times import StepTimes
from sim.engine.events import PLAN, Alarm
from sim.engine.replica import Replica, ReplicaParts
from sim.errors import InvariantError
from sim.request import Reason, Request, State
from sim.schedulers.base import Scheduler
from sim.step import NO_LIMIT, Idle, StepPlan


class Paper:
    """The timer of the timetables."""

    def run(self, shape: RunShape, max_steps: int) -> StepTimes:
        each = 100 + 10 * shape.decodes + sum(new for _, new in shape.chunks)
        steps = 1 if shape.chunks else max_steps
        return StepTimes(steps, steps * each, [(0, 0, each, 0, steps)])


def serve(*rows: tuple[int, ...], **changes: Any) -> Run:
    """Rows are (arrival, prompt, output)."""
    full = tuple((i, arrival, prompt, output, output) for i, (arrival, prompt, output) in enumerate(rows))
    runs = [play(Scenario(full, **changes), max_run, timer=Paper()) for max_run in (NO_LIMIT, 1)]
    assert runs[0].outcomes() == runs[1].outcomes()
    return runs[0]


def times(run: Run, id_: int) -> tuple[int, int, int]:
    """(scheduled, first token, finish) of a request."""
    row = next(row for row in rows_of(run.requests) if row["request_id"] == id_)
    return row["scheduled_ps"], row["first_token_ps"], row["finish_ps"]


def test_one_request() -> None:
    """Prefill emits the first token, each decode one more."""
    # [50, 160] P10; [160, 270] [270, 380] D
    run = serve((50, 10, 3))
    assert times(run, 0) == (50, 160, 380)
    assert run.boundaries() == {0: [160, 270, 380]}
    assert [row["steps"] for row in rows_of(run.steps)] == [1, 2]


def test_an_arrival_waits_for_the_next_boundary() -> None:
    """A request that arrives during a step joins at its end, and leaping stops there too."""
    # [0, 105] P5; D: 215, 325, 435, ...; arrival at 300: joins at 325. [325, 442] P7 + D; then both decode, 120 each
    run = serve((0, 5, 100), (300, 7, 2))
    assert times(run, 1) == (325, 442, 562)
    assert [row["steps"] for row in rows_of(run.steps)][:4] == [1, 2, 1, 1]


def test_an_arrival_exactly_at_a_boundary_joins_at_once() -> None:
    """Ends of steps come first, then arrivals, then plans: who arrives at 215 is in the step from 215."""
    assert times(serve((0, 5, 100), (215, 7, 2)), 1)[0] == 215
    assert times(serve((0, 5, 100), (216, 7, 2)), 1)[0] == 325


def test_a_finish_admits_who_waits() -> None:
    """The seat of a request that ends is taken in the same instant."""
    run = serve((0, 5, 3), (1, 5, 1), max_num_seqs=1)
    assert times(run, 0) == (0, 105, 325)
    assert times(run, 1) == (325, 430, 430)


def test_asynchronous_plans_are_made_a_step_ahead() -> None:
    """An arrival joins one step later, for the next step is already planned; a request's end wastes one decode."""
    # [0, 105] P5; then decodes. The step [105, 215] is planned at 0, [215, 325] at 105, [325, 435] at 215.
    run = serve((0, 5, 100), (300, 7, 2), lead=1)
    assert times(run, 1)[0] == 435  # at 300 the steps up to 435 are fixed
    alone = serve((0, 5, 2), lead=1)
    assert times(alone, 0) == (0, 105, 215)
    assert alone.boundaries() == {0: [105, 215, 325]}  # the last step computes for nobody


def test_asynchronous_arrival_at_an_idle_replica_starts_at_once() -> None:
    """With nothing planned there is nothing to wait for."""
    run = serve((0, 5, 1), (1000, 5, 1), lead=1)
    assert times(run, 1)[0] == 1000


def test_prefill_first_lets_decodes_stand_still() -> None:
    """While a prompt is computed alone, nobody else gets a token, and the segment says so by decode steps."""
    run = serve((0, 5, 4), (150, 7, 1), scheduler="continuous")
    # [0, 105] P5; [105, 215] D; [215, 322] P7 alone; [322, 432] [432, 542] D
    assert times(run, 0) == (0, 105, 542)
    assert times(run, 1) == (215, 322, 322)
    assert run.token_times()[0] == [105, 215, 432, 542]


def test_preemption_recomputes() -> None:
    """The newest gives way, waits for room, prefills prompt and emitted tokens, and its pause is recorded."""
    # 4 blocks of 2. [0, 106] P3 P3; [106, 226] D D; at 226 both need a block: 1 goes. [226, 336] D: 0 is done.
    # [336, 441] P5 of 1, its third token.
    run = serve((0, 3, 3), (0, 3, 3), block_size=2, num_blocks=4)
    assert times(run, 1) == (0, 106, 441)
    row = next(row for row in rows_of(run.requests) if row["request_id"] == 1)
    assert (row["preemptions"], row["preempted_ps"]) == (1, 336 - 226)
    assert run.token_times()[1] == [106, 226, 441]


def test_a_waiting_client_gives_up_at_once_a_running_one_at_the_boundary() -> None:
    """Patience of 150: who waits is gone at arrival + 150, who runs keeps the tokens of the step that is under way."""
    run = serve((0, 5, 100), (10, 5, 100), max_num_seqs=1, timeout_ps=150)
    assert times(run, 0) == (0, 105, 215)  # asked at 150, gone at 215, with the token of 215
    rows = {row["request_id"]: row for row in rows_of(run.requests)}
    assert (rows[0]["state"], rows[0]["output_tokens"]) == (State.ABORTED, 2)
    assert (rows[1]["state"], rows[1]["finish_ps"], rows[1]["scheduled_ps"]) == (State.ABORTED, 160, -1)


def test_a_request_that_ends_when_its_client_gives_up_is_complete() -> None:
    """A boundary at the very instant of the time-out comes first."""
    assert times(serve((0, 5, 2), timeout_ps=215), 0)[2] == 215
    assert serve((0, 5, 2), timeout_ps=215).requests["state"].tolist() == [State.COMPLETED]
    assert serve((0, 5, 2), timeout_ps=214).requests["state"].tolist() == [State.ABORTED]


def test_a_client_gives_up_while_its_token_is_in_flight() -> None:
    """Preempted ahead of the clock, a request still receives the token of the step in flight, and ends with it."""
    # 3 blocks of 2. [0, 104] P2 P2, the only token of 1. Planned at 0: room for one more token of 0, so 0 goes.
    run = serve((0, 2, 3), (0, 2, 1), lead=1, block_size=2, num_blocks=3, timeout_ps=50)
    rows = {row["request_id"]: row for row in rows_of(run.requests)}
    assert [rows[i]["finish_ps"] for i in (0, 1)] == [104, 104]
    assert [rows[i]["output_tokens"] for i in (0, 1)] == [1, 1]
    assert rows[0]["preemptions"] == 1


def test_a_client_gives_up_in_a_bubble() -> None:
    """When nothing is planned behind the step in flight, who runs in it stays until it ends."""
    # 2 blocks of 2. [0, 104] P2 P2, both their only token: nothing can be planned at 0, and nobody may be preempted.
    run = serve((0, 2, 1), (0, 2, 1), lead=1, block_size=2, num_blocks=2, timeout_ps=50)
    for row in rows_of(run.requests):
        assert (row["state"], row["finish_ps"], row["output_tokens"]) == (State.ABORTED, 104, 1)


def test_used_blocks_in_the_middle_of_a_leap() -> None:
    """Blocks grow with the steps that have ended, the one that ends now included; looking commits nothing."""
    # [0, 104] P4: one block of 4. Decodes of 110: the fifth token opens a block with the step from 104.
    for max_run in (NO_LIMIT, 1):
        cluster, _ = make_cluster(Scenario(((0, 0, 4, 100, 100),), block_size=4), max_run, timer=Paper())
        seen: dict[int, int] = {}
        for now in (50, 103, 213, 214, 104 + 4 * 110, 104 + 5 * 110, 104 + 9 * 110 - 1, 104 + 9 * 110):
            look = lambda _, now=now: seen.setdefault(now, cluster.replicas[0].used_blocks())  # noqa: B023, E731
            Alarm(cluster.env, PLAN + 7, now, look)
        cluster.run()
        # After k decode steps 4 + k tokens are stored.
        assert seen == {50: 1, 103: 1, 213: 1, 214: 2, 544: 2, 654: 3, 1093: 3, 1094: 4}


def test_refusal_names_a_request_that_never_fits() -> None:
    """The prompt and the longest output must fit the whole cache; outstanding requests do not matter."""
    cluster, _ = make_cluster(Scenario(((0, 0, 4, 4, 4),), block_size=4, num_blocks=10))
    replica = cluster.replicas[0]
    assert replica.refusal(Request(1, 0, 20, 5, 20)) is Reason.NONE
    assert replica.refusal(Request(1, 0, 20, 5, 21)) is Reason.NEVER_FITS


class Stubborn:
    """A scheduler with one request and no idea what to do with it."""

    drains_together = False

    def __init__(self, plan: StepPlan | Idle, running: int = 0, waiting: int = 0) -> None:
        self._plan, self.num_running, self.num_waiting = plan, running, waiting

    def submit(self, request: Request) -> bool:
        return True

    def plan(self, now_ps: int) -> StepPlan | Idle:
        return self._plan

    def running(self) -> list[Request]:
        return [Request(5, 0, 4, 4)] * self.num_running

    def waiting(self) -> list[Request]:
        return [Request(6, 0, 4, 4)] * self.num_waiting


@pytest.mark.parametrize(
    ("plan", "running", "waiting", "problem"),
    [
        (Idle(), 1, 0, "plans no step for <Request 5 "),
        (Idle(), 0, 1, "never begins <Request 6 "),
        (StepPlan((), False), 1, 0, "no step"),
    ],
)
def test_a_scheduler_that_gets_stuck_is_found(plan: StepPlan | Idle, running: int, waiting: int, problem: str) -> None:
    """A replica with work, nothing planned and nothing to wait for is a bug, and says so instead of hanging."""

    def stuck(inner: Scheduler, parts: ReplicaParts) -> Scheduler:
        return Stubborn(plan, running, waiting)  # type: ignore[return-value]

    cluster, _ = make_cluster(Scenario(((0, 0, 4, 4, 4),)), wrap=stuck)
    with pytest.raises(InvariantError, match=problem):
        cluster.run()


class Shy:
    """Says of every arrival that the plan in force may go on."""

    def __init__(self, inner: Scheduler) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def submit(self, request: Request) -> bool:
        self._inner.submit(request)
        return False


def test_an_idle_replica_plans_whatever_the_scheduler_says_of_an_arrival() -> None:
    """There is no plan in force that could go on: who comes to an empty replica is served at once."""
    run = play(Scenario(((0, 50, 5, 2, 2),)), timer=Paper(), wrap=lambda inner, _: Shy(inner))  # type: ignore[arg-type, return-value]
    assert times(run, 0) == (50, 155, 265)


class Impatient:
    """Wants to plan anew every 250 ps, though nothing will be different."""

    def __init__(self, inner: Scheduler) -> None:
        self._inner, self.asked = inner, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def plan(self, now_ps: int) -> StepPlan | Idle:
        self.asked.append(now_ps)
        plan = self._inner.plan(now_ps)
        if isinstance(plan, Idle):
            return plan
        return StepPlan(plan.chunks, plan.decodes, plan.preempted, valid_until_ps=now_ps + 250)


def test_a_plan_ends_at_the_first_boundary_at_or_after_its_deadline() -> None:
    """`valid_until_ps` cuts a leap, and cutting changes nothing else."""
    watchers: list[Impatient] = []

    def watch(inner: Scheduler, parts: ReplicaParts) -> Scheduler:
        watchers.append(Impatient(inner))
        return watchers[-1]  # type: ignore[return-value]

    scenario = Scenario(((0, 0, 5, 10, 10),))
    hurried, calm = play(scenario, timer=Paper(), wrap=watch), play(scenario, timer=Paper())
    # [0, 105] P5, then decodes of 110: 105 + 250 = 355 lies in the third of them, which ends at 435
    assert watchers[0].asked[:4] == [0, 105, 435, 765]
    assert hurried.outcomes() == calm.outcomes()
    assert hurried.boundaries() == calm.boundaries()


def test_a_batcher_may_wait_for_a_deadline() -> None:
    """`Idle(until)` wakes the replica at that time even if nothing arrives."""

    class Waiting(Impatient):
        def plan(self, now_ps: int) -> StepPlan | Idle:
            self.asked.append(now_ps)
            return Idle(500) if now_ps < 500 else self._inner.plan(now_ps)

    run = play(Scenario(((100, 100, 5, 1, 1), (101, 200, 5, 1, 1))), timer=Paper(),
               wrap=lambda inner, parts: Waiting(inner))  # type: ignore[arg-type, return-value]  # fmt: skip
    assert times(run, 100)[0] == times(run, 101)[0] == 500


def test_check_finds_lost_blocks() -> None:
    """A replica whose allocator has lost a block says so."""
    parts = make_parts(Scenario(((0, 0, 4, 4, 4),), num_blocks=10))
    cluster, _ = make_cluster(Scenario(((0, 0, 4, 4, 4),)))
    replica = Replica(cluster.env, 0, parts, cluster.recorder, lambda request, now: None)
    replica.check()
    parts.kv.free_blocks -= 1
    with pytest.raises(InvariantError, match="KV blocks"):
        replica.check()
