"""The naive simulator against scenarios worked out on paper.

A step lasts 100 + 10 per decode + 1 per cached token of the decodes + 1 per new prompt token. Each comment below lists
the steps as [start, end] with what they hold: P(before, new) is a chunk, D(context) a decode.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from naive.fleet import simulate_naively
from naive.model import Job


def duration_ps(contexts: list[int], chunks: list[tuple[int, int]]) -> int:
    return 100 + 10 * len(contexts) + sum(contexts) + sum(n for _, n in chunks)


def job(id_: int, arrival_ps: int, prompt: int, output: int, max_output: int | None = None) -> Job:
    return Job(id_, arrival_ps, prompt, output, output if max_output is None else max_output)


def serve(*jobs: Job, **changes):
    rules = {"max_num_seqs": 8, "max_num_batched_tokens": 16, "block_size": 4, "num_blocks": 100, **changes}
    return simulate_naively(jobs, duration_ps=duration_ps, **rules)


def test_two_requests_share_chunked_steps():
    """The second request's prompt shares the budget with the rest of the first prompt, then both decode together."""
    # [0, 108] A P(0, 8); [108, 215] A P(8, 2) B P(0, 5); [215, 350] A D(10) B D(5)
    out = serve(job(0, 0, 10, 2), job(1, 50, 5, 2), max_num_batched_tokens=8)
    assert out.boundaries == [[108, 215, 350]]
    assert out.requests[0] == ("completed", "", 0, 0, 215, 350, 2, 0)
    assert out.requests[1] == ("completed", "", 0, 108, 215, 350, 2, 0)
    assert out.order == [[("admit", 0), ("admit", 1), ("finish", 0), ("finish", 1)]]


def test_long_prefill_threshold_caps_every_chunk():
    """With a threshold of 3 a prompt of 7 takes three steps although the budget would hold it at once."""
    # [0, 103] P(0, 3); [103, 206] P(3, 3); [206, 307] P(6, 1)
    out = serve(job(0, 0, 7, 1), long_prefill_token_threshold=3)
    assert out.boundaries == [[103, 206, 307]]


def test_preempted_request_recomputes_prompt_and_emitted_tokens():
    """The newest request gives its blocks up, and comes back with one chunk over its prompt and what it had emitted."""
    # 4 blocks of 2. [0, 106] A P(0, 3) B P(0, 3), all blocks held; [106, 232] A D(3) B D(3);
    # at 232 both need a block: B goes. [232, 346] A D(4), its last; [346, 451] B P(0, 5), its last
    out = serve(job(0, 0, 3, 3), job(1, 0, 3, 3), block_size=2, num_blocks=4)
    assert out.boundaries == [[106, 232, 346, 451]]
    assert out.token_times == {0: [106, 232, 346], 1: [106, 232, 451]}
    assert out.requests[1] == ("completed", "", 0, 0, 106, 451, 3, 1)
    ends = [("finish", 0), ("admit", 1), ("finish", 1)]
    assert out.order == [[("admit", 0), ("admit", 1), ("preempt", 1), *ends]]


def test_chunk_that_does_not_fit_preempts_a_newer_decode():
    """An older request still prefilling takes the blocks of a newer one that already decodes."""
    # 4 blocks of 2, budget 5, chunks of at most 3. [0, 105] A P(0, 3) B P(0, 2): 3 blocks held. At 105 B's decode needs
    # the last one, and so does A's chunk: B goes. [105, 208] A P(3, 3); [208, 309] A P(6, 1), its last, and no block
    # for B; [309, 412] B P(0, 3), its second token; [412, 525] B D(3)
    limits = {"block_size": 2, "num_blocks": 4, "max_num_batched_tokens": 5, "long_prefill_token_threshold": 3}
    out = serve(job(0, 0, 7, 1), job(1, 0, 2, 3), **limits)
    assert out.boundaries == [[105, 208, 309, 412, 525]]
    assert out.token_times == {0: [309], 1: [105, 412, 525]}
    assert out.requests[1] == ("completed", "", 0, 0, 105, 525, 3, 1)


def test_whole_prompts_stall_the_decodes():
    """Under continuous the step that takes a new prompt holds nothing else, and the running request waits for it."""
    # [0, 104] A P(0, 4); [104, 218] A D(4); [218, 322] B P(0, 4) alone; [322, 437] A D(5)
    out = serve(job(0, 0, 4, 3), job(1, 150, 4, 1), policy="continuous")
    assert out.boundaries == [[104, 218, 322, 437]]
    assert out.token_times == {0: [104, 218, 437], 1: [322]}


def test_asynchronous_planning_wastes_a_step_after_the_last_token():
    """With lead 1 a lone request decodes once more after its last token, and the client sees none of it."""
    # [0, 104] P(0, 4); [104, 218] D(4), its last token; [218, 333] D(5) planned at 104: wasted
    out = serve(job(0, 0, 4, 2), lead=1)
    assert out.boundaries == [[104, 218, 333]]
    assert out.requests[0] == ("completed", "", 0, 0, 104, 218, 2, 0)
    assert out.token_times == {0: [104, 218]}


def test_asynchronous_arrival_waits_for_two_steps():
    """With lead 1 an arrival during step 1 misses step 2, planned already, and starts with step 3."""
    # [0, 104] A P(0, 4); [104, 218] A D(4); [218, 335] A D(5) B P(0, 2); [335, 463] A D(6) B D(2): both wasted
    out = serve(job(0, 0, 4, 3), job(1, 50, 2, 1), lead=1)
    assert out.boundaries == [[104, 218, 335, 463]]
    assert out.requests[0] == ("completed", "", 0, 0, 104, 335, 3, 0)
    assert out.requests[1] == ("completed", "", 0, 218, 335, 335, 1, 0)


def test_asynchronous_arrival_during_a_wasted_step_starts_at_its_end():
    """When nothing is planned behind the running step an arrival is planned at once and starts as that step ends."""
    # [0, 104] A P(0, 4); [104, 218] A D(4) wasted; B at 150 -> [218, 320] B P(0, 2); [320, 432] B D(2) wasted
    out = serve(job(0, 0, 4, 1), job(1, 150, 2, 1), lead=1)
    assert out.boundaries == [[104, 218, 320, 432]]
    assert out.requests[1] == ("completed", "", 0, 218, 320, 320, 1, 0)


def test_asynchronous_preemption_spares_a_last_token_in_flight():
    """With lead 1 the newest request may not be preempted while its last token is in flight; the one before it is."""
    # 3 blocks of 2. [0, 104] A P(0, 2) B P(0, 2), B's only token. The plan of step 2, at 0, needs 2 blocks, has 1: B is
    # spared, A goes and keeps the token of step 1. [104, 216] B D(2) wasted; [216, 319] A P(0, 3); [319, 432] A D(3);
    # [432, 546] A D(4) wasted
    out = serve(job(0, 0, 2, 3), job(1, 0, 2, 1), lead=1, block_size=2, num_blocks=3)
    assert out.boundaries == [[104, 216, 319, 432, 546]]
    assert out.token_times == {0: [104, 319, 432], 1: [104]}
    assert out.requests[0] == ("completed", "", 0, 0, 104, 432, 3, 1)


def test_asynchronous_bubble_ends_with_the_running_step():
    """With lead 1, when no block is free and nobody may be preempted, planning waits for the end of the step."""
    # 2 blocks of 2. [0, 104] A P(0, 2) B P(0, 2), both their only token; nothing can be planned at 0, nor at 50 when C
    # comes. [104, 205] C P(0, 1); [205, 316] C D(1) wasted
    out = serve(job(0, 0, 2, 1), job(1, 0, 2, 1), job(2, 50, 1, 1), lead=1, block_size=2, num_blocks=2)
    assert out.boundaries == [[104, 205, 316]]
    assert out.requests[2] == ("completed", "", 0, 104, 205, 205, 1, 0)


def test_time_out_waits_for_the_boundary_only_while_running():
    """A running request is cut off at the end of its step with the token of that step; a waiting one at once."""
    # [0, 104] A P(0, 4); [104, 218] A D(4). A's time is up at 200, B's (never admitted) at 210
    out = serve(job(0, 0, 4, 5), job(1, 10, 4, 1), max_num_seqs=1, client_timeout_ps=200)
    assert out.boundaries == [[104, 218]]
    assert out.requests[0] == ("aborted", "client_timeout", 0, 0, 104, 218, 2, 0)
    assert out.requests[1] == ("aborted", "client_timeout", 0, -1, -1, 210, 0, 0)
    assert out.order == [[("admit", 0), ("abort", 1), ("abort", 0)]]


@pytest.mark.parametrize(("output", "state", "reason"), [(2, "completed", ""), (5, "aborted", "client_timeout")])
def test_boundary_comes_before_a_time_out_at_the_same_instant(output, state, reason):
    """A request whose last token is emitted exactly at its time-out completes; one with more to come is cut off."""
    out = serve(job(0, 0, 4, output), client_timeout_ps=218)
    assert out.requests[0] == (state, reason, 0, 0, 104, 218, 2, 0)
    assert out.boundaries == [[104, 218]]


def test_asynchronous_time_out_leaves_the_planned_step_as_it_was():
    """With lead 1 the step planned behind the boundary still runs with the aborted request in its shape."""
    # [0, 104] P(0, 4); [104, 218] D(4), aborted at 218; [218, 333] D(5) for nobody
    out = serve(job(0, 0, 4, 5), lead=1, client_timeout_ps=200)
    assert out.boundaries == [[104, 218, 333]]
    assert out.requests[0] == ("aborted", "client_timeout", 0, 0, 104, 218, 2, 0)


def test_head_that_does_not_fit_stops_the_admissions():
    """A short request does not overtake the head of the queue that lacks blocks."""
    # 3 blocks of 4. [0, 107] A P(0, 7), 2 blocks; B needs 2, so C waits as well; [107, 224] A D(7), its last;
    # [224, 330] B P(0, 5) C P(0, 1)
    out = serve(job(0, 0, 7, 2), job(1, 0, 5, 1), job(2, 0, 1, 1), num_blocks=3)
    assert out.boundaries == [[107, 224, 330]]
    assert out.requests[2] == ("completed", "", 0, 224, 330, 330, 1, 0)


@pytest.mark.parametrize("policy", ["chunked", "continuous"])
def test_admissions_leave_the_blocks_of_the_decodes(policy):
    """The last free block is not given to a newcomer when a running decode is about to need it."""
    # 3 blocks of 4. [0, 108] A P(0, 8), 2 blocks, the third needed next; [108, 226] A D(8); [226, 327] B P(0, 1)
    out = serve(job(0, 0, 8, 2), job(1, 50, 1, 1), num_blocks=3, policy=policy)
    assert out.boundaries == [[108, 226, 327]]


def test_refused_requests_count_in_the_round_robin():
    """A refusal at the door takes its turn of the round robin, names its reason, and ends when it arrives."""
    jobs = [job(0, 5, 90, 20), job(1, 6, 4, 1), job(2, 7, 40, 1, max_output=60), job(3, 8, 4, 1)]
    out = serve(*jobs, replicas=2, max_model_len=100, num_blocks=10)
    assert out.requests[0] == ("rejected", "too_long", -1, -1, -1, 5, 0, 0)
    assert out.requests[2] == ("rejected", "never_fits", -1, -1, -1, 7, 0, 0)
    assert out.boundaries == [[], [110, 214]]  # both others fall on the second replica: [6, 110] and [110, 214]


def test_fewest_outstanding_requests_decide_the_replica():
    """The second router picks the replica with fewest requests not yet ended, the lowest index on a tie."""
    # job 0 -> replica 0 until 104; job 1 -> replica 1 until 10 + 104 + 114; job 2 at 104, after the end of job 0 -> 0
    out = serve(job(0, 0, 4, 1), job(1, 10, 4, 2), job(2, 104, 4, 1), replicas=2, router="least_outstanding")
    assert [out.requests[i][2] for i in range(3)] == [0, 1, 0]


def test_follow_up_without_think_time_joins_the_next_plan():
    """A request created by the end of another arrives in that instant, before the replica plans."""
    # [0, 104] A P(0, 4); B at 104 -> [104, 206] B P(0, 2)
    follow_ups = {0: [2, 1]}
    out = serve(
        job(0, 0, 4, 1),
        on_finish=lambda id_, now_ps: job(1, now_ps, *follow_ups[id_]) if id_ in follow_ups else None,
    )
    assert out.boundaries == [[104, 206]]
    assert out.requests[1] == ("completed", "", 0, 104, 206, 206, 1, 0)


def test_a_prompt_that_begins_like_another_is_computed_from_there():
    """Full blocks of an equal beginning are found, shared, and taken again from the longest unused end."""
    # Blocks of 4. [0, 110] A P(0, 10); [110, 212] B P(8, 2): A's first two blocks are found
    first, second = Job(0, 0, 10, 1, 1, (1, 2, 3), 4), Job(1, 60, 10, 1, 1, (1, 2, 4), 4)
    out = serve(first, second, prefix_caching=True)
    assert out.boundaries == [[110, 212]]
    assert out.cached == {0: 0, 1: 8}
    # 4 blocks. C takes the never used one, A's third, and A's second; so of B only the first block is found:
    # [0, 110] A P(0, 10); [110, 222] C P(0, 12); [222, 328] B P(4, 6)
    third = Job(2, 60, 12, 1, 1)
    out = serve(first, third, Job(3, 200, 10, 1, 1, (1, 2, 4), 4), prefix_caching=True, num_blocks=4)
    assert out.boundaries == [[110, 222, 328]]
    assert out.cached == {0: 0, 2: 0, 3: 4}
