"""Skeleton-of-Thought: an outline, then its points side by side."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from sim.errors import ConfigError
from sim.request import State
from sim.results import RunResult
from sim.run import simulate
from sim.scenario import load_scenario
from sim.units import PS_PER_S
from sim.workloads.arrivals import ClosedLoop, Poisson
from sim.workloads.closed_loop import ClosedLoopClients
from sim.workloads.sizes import SharedPrefix, Sizes
from sim.workloads.skeleton import SkeletonLaw, SkeletonOfThought
from sim.workloads.synthetic import OpenLoop


def workload(**law: Any) -> SkeletonOfThought:
    sizes = Sizes(100, 300, shared_prefix=SharedPrefix(tokens=32))
    inner = OpenLoop(Poisson(rate=5), sizes, num_requests=4)
    given = {"points": 6, "tokens": 40, "template_tokens": 12, "point_template_tokens": 8} | law
    return SkeletonOfThought(inner, SkeletonLaw(**given))


def test_a_question_becomes_a_skeleton_and_points() -> None:
    """132 + 12 tokens ask for 40; then six prompts of 192 tokens ask for 50 each, in the instant of the skeleton."""
    traffic = workload()
    first, second, *_ = traffic
    assert (first.id, first.prompt_tokens, first._output_tokens, second.id) == (0, 144, 40, 256)
    first.state = State.COMPLETED
    points = list(traffic.on_finish(first, 7 * PS_PER_S))
    assert [(p.id, p.arrival_ps, p.prompt_tokens, p._output_tokens) for p in points] == [
        (i, 7 * PS_PER_S, 192, 50) for i in range(1, 7)
    ]


def test_points_find_question_and_skeleton_again() -> None:
    """All begin with the shared system prompt; those of one question with its skeleton, those of others do not."""
    traffic = workload()
    questions = list(traffic)[:2]
    for question in questions:
        question.state = State.COMPLETED
    points = [next(iter(traffic.on_finish(question, 0))) for question in questions]
    for question, point in zip(questions, points, strict=True):
        assert question.traits.hashes_output
        assert not point.traits.hashes_output
        assert point.traits.prefix_hashes == question.traits.prefix_hashes
        assert len(point.traits.prefix_hashes) == 184 // 16 + 1
    a, b = (set(point.traits.prefix_hashes) for point in points)
    assert len(a & b) == 2


def test_lengths_add_up_whatever_their_spread() -> None:
    """Points of different lengths share out the same answer; every one has a token."""
    traffic = workload(spread=0.8, points=7)
    for question in traffic:
        question.state = State.COMPLETED
        lengths = [point._output_tokens for point in traffic.on_finish(question, 0)]
        assert len(lengths) == 7
        assert min(lengths) >= 1
        assert 300 <= sum(lengths) <= 306
        assert len(set(lengths)) > 1


def test_a_failed_skeleton_has_no_points() -> None:
    """The client of a closed loop then asks its next question."""
    inner = ClosedLoopClients(ClosedLoop(concurrency=1), Sizes(10, 20), num_requests=2)
    traffic = SkeletonOfThought(inner, SkeletonLaw(points=3, tokens=5))
    (first,) = traffic
    first.state = State.REJECTED
    (second,) = traffic.on_finish(first, 0)
    assert second.id == 256
    second.state = State.COMPLETED
    points = list(traffic.on_finish(second, 0))
    for point in points:
        point.state = State.COMPLETED
    assert [list(traffic.on_finish(point, 0)) for point in points] == [[], [], []]


def run(output: int, skeleton: dict[str, Any] | None, questions: int = 1) -> RunResult:
    traffic = {"num_requests": questions, "arrival": {"kind": "all_at_once"}, "input_tokens": 100,
               "output_tokens": output}  # fmt: skip
    if skeleton is not None:
        traffic["skeleton"] = skeleton
    scenario = {"model": "meta-llama/Llama-3.1-8B", "hardware": "h100-sxm", "workload": traffic}
    return simulate(load_scenario(scenario))


def makespan(result: RunResult) -> int:
    return int(result.requests["finish_ps"].max())


def test_a_lone_question_is_answered_sooner() -> None:
    """600 tokens: a skeleton of 60 and six points of 90 are about 150 steps instead of 600."""
    plain, outlined = run(540, None), run(540, {"points": 6, "tokens": 60})
    assert len(outlined.requests) == 7
    assert int(outlined.requests["output_tokens"].sum()) == 600
    assert 2.8 < makespan(plain) / makespan(outlined) < 540 / 150


def test_a_saturated_server_answers_later() -> None:
    """With the batch full anyway, all that the skeleton does is add work."""
    plain, outlined = run(100, None, 400), run(100, {"points": 6, "tokens": 60, "point_template_tokens": 60}, 400)
    assert makespan(outlined) > 1.2 * makespan(plain)


def test_points_begin_when_the_skeleton_ends() -> None:
    """In the results, too, and every question is the requests 256 q, 256 q + 1, ..."""
    requests = run(90, {"points": 3, "tokens": 10}, 2).requests
    rows = sorted(zip(*(requests[n].tolist() for n in ("request_id", "arrival_ps", "finish_ps")), strict=True))
    assert [row[0] for row in rows] == [0, 1, 2, 3, 256, 257, 258, 259]
    for first, second in pairwise(rows):
        if second[0] % 256 == 1:
            assert second[1] == first[2]


def test_it_does_not_go_with_other_shapes_of_traffic() -> None:
    """Samples, beams and sessions are refused."""
    with pytest.raises(ConfigError, match="single questions"):
        load = {"workload.skeleton": {"points": 3, "tokens": 10}, "workload.n": 2}
        simulate(load_scenario("quickstart", load))
