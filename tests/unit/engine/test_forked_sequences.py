"""Requests with several sequences on one replica, against timetables worked out on paper.

As in `test_replica`: a step lasts 100 + 10 per decode + 1 per new prompt token. P is a chunk, D a decode.
"""

from __future__ import annotations

from typing import Any

from toy import ListWorkload

from scenarios import Scenario, make_parts, rows_of
from sim.cost.shape import RunShape
from sim.cost.step_times import StepTimes
from sim.engine.cluster import Cluster
from sim.engine.router import RoundRobin
from sim.request import Reason, Request, State
from sim.sequences import BeamSearch, with_sequences


class Paper:
    """The timer of the timetables."""

    def run(self, shape: RunShape, max_steps: int) -> StepTimes:
        each = 100 + 10 * shape.decodes + sum(new for _, new in shape.chunks)
        steps = 1 if shape.chunks else max_steps
        return StepTimes(steps, steps * each, [(0, 0, each, 0, steps)])


def serve(*requests: tuple[int, int, tuple[int, ...]], beams: BeamSearch | None = None, **changes: Any) -> Cluster:
    """Requests are (arrival, prompt, output of each sequence)."""
    plain = [Request(i, at, prompt, lengths[0]) for i, (at, prompt, lengths) in enumerate(requests)]
    traffic = [
        with_sequences(r, lengths, beams) if len(lengths) > 1 else r
        for r, (_, _, lengths) in zip(plain, requests, strict=True)
    ]
    scenario = Scenario((), sequences=8, scheduler="continuous", **changes)
    parts = [make_parts(scenario, timer=Paper())]
    cluster = Cluster(
        ListWorkload(traffic), parts, RoundRobin(), max_model_len=10**9, client_timeout_ps=scenario.timeout_ps
    )
    cluster.run()
    cluster.replicas[0].check()
    assert cluster.replicas[0].used_blocks() == 0
    return cluster


def row(cluster: Cluster, id_: int) -> dict[str, int]:
    """The row of a request."""
    return next(row for row in rows_of(cluster.recorder.requests.table()) if row["request_id"] == id_)


def segments(cluster: Cluster) -> list[tuple[int, int, int, int, int]]:
    """(request, sequence, start, first step, last step) of each stretch of decoding."""
    names = ("request_id", "sequence", "start_ps", "first_step", "last_step")
    return sorted(tuple(row[n] for n in names) for row in rows_of(cluster.recorder.segments.table()))


def test_samples_decode_side_by_side_and_the_last_one_ends_the_request() -> None:
    """One prompt, three answers of 3, 1 and 4 tokens: all first tokens come with the prompt."""
    # [0, 110] P10; [110, 230] D2 [230, 350] D2; [350, 460] D1
    run = serve((0, 10, (3, 1, 4)))
    seen = row(run, 0)
    assert (seen["first_token_ps"], seen["finish_ps"]) == (110, 460)
    assert (seen["output_tokens"], seen["sibling_tokens"]) == (8, 4)
    assert segments(run) == [(0, 0, 110, 0, 2), (0, 1, 110, 0, 0), (0, 2, 110, 0, 3)]
    assert [s["kv_shared_blocks"] for s in rows_of(run.recorder.steps.table())] == [0, 0, 0]  # no full block


def test_full_blocks_of_the_prompt_are_shared_until_one_holder_is_left() -> None:
    """Blocks of four: two are full after ten tokens; three samples save four, then two, then none."""
    run = serve((0, 10, (3, 2, 4)), block_size=4)
    steps = list(rows_of(run.recorder.steps.table()))
    assert [s["kv_shared_blocks"] for s in steps] == [0, 4, 2, 0]
    # 3 and two copies; the same; after the end of one; token 12 fills the block, so that 13 opens one
    assert [s["kv_blocks"] for s in steps] == [5, 5, 4, 4 - 1]


def test_a_request_is_admitted_with_a_seat_for_each_sequence() -> None:
    """Three seats: a request with two sequences waits until two are free, and nobody passes it."""
    run = serve((0, 10, (3, 3)), (0, 5, (2, 2)), (0, 5, (1,)), max_num_seqs=3)
    # [0, 110] P10; D2: 230, 350; then P5 P5 together in [350, 460]
    assert [row(run, i)["scheduled_ps"] for i in (0, 1, 2)] == [0, 350, 350]


def test_sequences_are_preempted_one_by_one() -> None:
    """When blocks run out, the sequence that began last goes back to the queue and is recomputed without sharing."""
    run = serve((0, 8, (6, 6)), block_size=4, num_blocks=4)
    seen = row(run, 0)
    assert (seen["state"], seen["preemptions"], seen["output_tokens"]) == (State.COMPLETED, 1, 12)
    stretches = [(number, last - first + 1) for _, number, _, first, last in segments(run)]
    assert stretches == [(0, 6), (1, 5), (1, 1)]
    assert seen["preempted_ps"] > 0


def test_a_time_out_ends_all_sequences_together() -> None:
    """One sample is done, two are cut: the client has the tokens of all three."""
    run = serve((0, 10, (2, 9, 9)), timeout_ps=400)
    # [0, 110] P10; [110, 240] D3; [240, 360] D2; [360, 480] D2
    seen = row(run, 0)
    assert (seen["state"], seen["reason"], seen["finish_ps"]) == (State.ABORTED, Reason.CLIENT_TIMEOUT, 480)
    assert (seen["output_tokens"], seen["sibling_tokens"]) == (2 + 4 + 4, 6)


def test_a_sample_does_not_change_when_others_are_added() -> None:
    """A request with one sequence among others that fork is served as ever."""
    run = serve((0, 10, (3,)), (5000, 10, (3, 3)))
    assert (row(run, 0)["finish_ps"], row(run, 0)["output_tokens"], row(run, 0)["sibling_tokens"]) == (330, 3, 0)


def test_a_beam_that_is_dropped_continues_another_one() -> None:
    """With drops at every token everything but the last block is shared; no beam is seen before the end."""
    run = serve((0, 8, (9, 9)), beams=BeamSearch(2, 1.0), block_size=4)
    steps = list(rows_of(run.recorder.steps.table()))
    # Contexts 8 to 16: what is full is shared, and each beam has its last block for itself.
    full = [s["context_tokens"] // 2 // 4 for s in steps if s["decodes"]]
    assert [s["kv_shared_blocks"] for s in steps if s["decodes"]] == full
    seen = row(run, 0)
    assert seen["first_token_ps"] == seen["finish_ps"] == segments(run)[0][2] + 8 * 120
    assert seen["output_tokens"] == 18


def test_a_request_too_large_for_its_forks_is_refused() -> None:
    """The prompt with a copy for each sequence must fit, and the longest sequence alone."""
    run = serve((0, 5, (2, 2, 2, 2)), (0, 5, (2, 2)), block_size=4, num_blocks=4)
    assert (row(run, 0)["state"], row(run, 0)["reason"]) == (State.REJECTED, Reason.NEVER_FITS)
    assert row(run, 1)["state"] == State.COMPLETED
