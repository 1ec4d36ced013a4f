"""Batches that drain together, against timetables worked out on paper and in both modes.

A step lasts 100 + 10 per decode + 1 per new prompt token, unless the scenario brings a timer of its own. In the
comments P is a chunk, D a decode.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from scenarios import Run, Scenario, examples, play, random_scenario, rows_of, scenarios
from sim.cost.shape import RunShape
from sim.cost.step_times import StepTimes
from sim.engine.replica import ReplicaParts
from sim.request import State
from sim.schedulers.base import Scheduler
from sim.schedulers.static import StaticScheduler
from sim.step import NO_LIMIT


def drained(padding: bool = False) -> Any:
    """Puts the static scheduler in the place of another one."""

    def wrap(inner: Any, parts: ReplicaParts) -> Scheduler:
        limits = {"max_num_seqs": inner._max_num_seqs, "max_num_batched_tokens": inner._max_num_batched_tokens}
        return StaticScheduler(parts.kv, parts.batch, padding=padding, **limits)

    return wrap


class Paper:
    """The timer of the timetables."""

    def run(self, shape: RunShape, max_steps: int) -> StepTimes:
        each = 100 + 10 * shape.decodes + sum(new for _, new in shape.chunks)
        steps = 1 if shape.chunks else max_steps
        return StepTimes(steps, steps * each, [(0, 0, each, 0, steps)])


def serve(*rows: tuple[int, ...], **changes: Any) -> Run:
    """Rows are (arrival, prompt, output)."""
    full = tuple((i, arrival, prompt, output, output) for i, (arrival, prompt, output) in enumerate(rows))
    scenario = Scenario(full, scheduler="continuous", **changes)
    runs = [play(scenario, max_run, timer=Paper(), wrap=drained()) for max_run in (NO_LIMIT, 1)]
    assert runs[0].outcomes() == runs[1].outcomes()
    return runs[0]


def finishes(run: Run) -> dict[int, int]:
    """When each request ended."""
    return {row["request_id"]: row["finish_ps"] for row in rows_of(run.requests)}


def test_all_leave_when_the_last_has_its_last_token() -> None:
    """A short answer waits for the long one; its tokens come when they are emitted, and its row is computed on."""
    # [0, 110] P5 P5; D of both until 230, 350, 470. Request 0 has its second and last token at 230. Then 2 starts.
    run = serve((0, 5, 2), (0, 5, 4), (50, 7, 1))
    assert finishes(run) == {0: 470, 1: 470, 2: 577}
    assert run.token_times() == {0: [110, 230], 1: [110, 230, 350, 470], 2: [577]}
    assert [row["decodes"] for row in rows_of(run.steps)] == [0, 2, 0]


def test_asynchronous_scheduling_wastes_a_step_of_the_whole_batch() -> None:
    """The end of the batch is known a step too late, like any end."""
    run = serve((0, 5, 2), (0, 5, 4), lead=1)
    assert finishes(run) == {0: 470, 1: 470}
    assert run.boundaries() == {0: [110, 230, 350, 470, 590]}


def test_a_client_who_gives_up_does_not_hold_the_batch() -> None:
    """With the last unfinished one gone, the others leave at the same boundary."""
    run = serve((0, 5, 2), (0, 5, 9), (400, 7, 1), timeout_ps=300)
    states = {
        row["request_id"]: (row["state"], row["finish_ps"], row["output_tokens"]) for row in rows_of(run.requests)
    }
    assert states[0] == (State.ABORTED, 350, 2)
    assert states[1] == (State.ABORTED, 350, 3)
    assert states[2] == (State.COMPLETED, 507, 1)


def test_a_shortage_preempts_who_is_not_finished_and_drains_the_rest() -> None:
    """The newest unfinished member gives way; if only finished ones are left, they leave in that instant."""
    # 4 blocks of 2. [0, 106] P3 P3; [106, 226] D D: request 0 is finished. Both need a block, so 1 goes, and 0 too.
    # [226, 331] P5 of 1; [331, 441] D.
    run = serve((0, 3, 2), (0, 3, 4), block_size=2, num_blocks=4)
    assert finishes(run) == {0: 226, 1: 441}
    assert run.token_times()[1] == [106, 226, 331, 441]


def assert_same(a: Run, b: Run) -> None:
    """Equal requests and segments in equal order, and equal ends of steps."""
    assert list(rows_of(a.requests)) == list(rows_of(b.requests))
    assert list(rows_of(a.segments)) == list(rows_of(b.segments))
    assert a.boundaries() == b.boundaries()


def compare(scenario: Scenario, padding: bool) -> Run:
    """Leaping and single-stepping, with the books checked at the end."""
    longest = max(p + most for _, _, p, _, most in scenario.rows)
    scenario = replace(
        scenario, scheduler="continuous", threshold=0, max_num_batched_tokens=longest * scenario.max_num_seqs
    )
    runs = [play(scenario, max_run, wrap=drained(padding)) for max_run in (NO_LIMIT, 3, 1)]
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])
    return runs[0]


@given(scenario=scenarios())
@examples(100)
def test_short_scenarios_agree_in_both_modes(scenario: Scenario) -> None:
    """Leaping to the end of a batch changes nothing, whatever preempts, gives up or arrives meanwhile."""
    compare(scenario, False)


@pytest.mark.parametrize("padding", [False, True])
def test_long_scenarios_agree_in_both_modes(padding: bool) -> None:
    """The same over longer traffic; members of a batch that ran to its end left together."""
    waited = 0
    for seed in range(60):
        scenario = random_scenario(seed, most_requests=40)
        if padding:
            scenario = replace(scenario, num_blocks=10 * scenario.num_blocks)
        run = compare(scenario, padding)
        last = {i: times[-1] for i, times in run.token_times().items() if times}
        waited += sum(end > last.get(i, end) for i, end in finishes(run).items())
    assert waited > 100


def test_padded_prompts_are_computed_and_held_whole() -> None:
    """A prompt padded to the longest of its batch costs as much as that one, in the step and in the cache."""
    rows = ((0, 0, 9, 2, 2), (1, 0, 2, 2, 2))
    run = play(Scenario(rows, scheduler="continuous", block_size=2), wrap=drained(padding=True))
    first = next(rows_of(run.steps))
    assert (first["prefill_tokens"], first["kv_blocks"]) == (18, 10)
