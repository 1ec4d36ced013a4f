"""The small engine's scheduler and loop, with a runner that computes nothing and a clock that the test turns."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.errors import ConfigError
from sim.validation.engine.dims import dims_of
from sim.validation.engine.scheduler import Live, Part, Scheduler
from sim.validation.engine.serve import ServedLog, serve
from sim.validation.engine.traffic import Asked, poisson_requests


@dataclass
class FakeRunner:
    """Each step takes 10 ms and 1 ms per token; every token is the number of the request."""

    now_s: float = 0.0
    steps: list[list[tuple[int, int, int]]] = field(default_factory=list)

    def run(self, parts: Sequence[Part]) -> dict[int, int]:
        self.steps.append([(part.live.number, part.live.computed, part.new) for part in parts])
        self.now_s += 0.010 + 0.001 * sum(part.new for part in parts)
        return {part.live.number: part.live.number for part in parts if part.emits}

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def _serve(asked: list[Asked], **limits: int) -> tuple[ServedLog, FakeRunner, Scheduler]:
    runner = FakeRunner()
    scheduler = Scheduler(**{"num_blocks": 100, "block_tokens": 4, "token_budget": 16, "max_running": 8, **limits})
    return serve(asked, scheduler, runner, 50, lambda: runner.now_s, runner.sleep), runner, scheduler


def test_a_prompt_is_cut_to_the_budget_and_decodes_come_first() -> None:
    """A long prompt is computed in chunks of what the budget leaves; who decodes is never held up."""
    _, runner, _ = _serve([Asked(0.0, 5, 4), Asked(0.0, 30, 2)])
    assert runner.steps == [
        [(0, 0, 5), (1, 0, 11)],
        [(0, 5, 1), (1, 11, 15)],
        [(0, 6, 1), (1, 26, 4)],
        [(0, 7, 1), (1, 30, 1)],
    ]


def test_tokens_are_booked_when_their_step_ends() -> None:
    """First tokens and finishes carry the end of their step, counted from the start; the loop sleeps when idle."""
    log, _, _ = _serve([Asked(0.5, 6, 1), Asked(0.5, 4, 3)])
    assert log.first_token_s == pytest.approx([0.520, 0.520])
    assert log.finish_s == pytest.approx([0.520, 0.542])
    assert [(step.decodes, step.context_tokens, step.chunks, step.sampled) for step in log.steps] == [
        (0, 0, ((0, 6), (0, 4)), 2),
        (1, 4, (), 1),
        (1, 5, (), 1),
    ]
    assert sum(step.seconds for step in log.steps) == pytest.approx(0.042)


def test_the_newest_gives_way_and_is_computed_again() -> None:
    """When blocks run out the newest request loses its cache, waits in front, and recomputes what it had emitted."""
    log, runner, _ = _serve([Asked(0.0, 7, 6), Asked(0.0, 7, 6)], num_blocks=5)
    assert log.preemptions == 1
    recomputed = [part for step in runner.steps for part in step if part[0] == 1 and part[1] == 0]
    assert recomputed == [(1, 0, 7), (1, 0, 9)]
    assert all(log.finish_s)


def test_a_request_larger_than_the_cache_is_refused() -> None:
    """It could never be served."""
    with pytest.raises(ValueError, match="does not fit"):
        _serve([Asked(0.0, 30, 11)], num_blocks=10)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 0.3), st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=12),
    st.integers(13, 40),
    st.integers(1, 24),
    st.integers(1, 5),
)
def test_every_request_is_served_whole(
    drawn: list[tuple[float, int, int]], blocks: int, budget: int, running: int
) -> None:
    """Whatever arrives: each request gets all its tokens, no block is lost, no step exceeds its limits."""
    asked = [Asked(*one) for one in sorted(drawn)]
    limits = {"num_blocks": blocks, "token_budget": budget, "max_running": running}
    log, runner, scheduler = _serve(asked, **limits)
    assert all(log.finish_s[i] >= log.first_token_s[i] > one.arrival_s for i, one in enumerate(asked))
    assert scheduler.free_blocks == blocks
    for step in runner.steps:
        assert 0 < sum(new for _, _, new in step) <= budget
        assert len(step) <= running
    assert sum(step.sampled for step in log.steps) == sum(one.output_tokens for one in asked)


def test_blocks_are_held_once() -> None:
    """At every step the tables of running requests are disjoint and long enough."""
    scheduler = Scheduler(num_blocks=30, block_tokens=4, token_budget=20, max_running=8)
    for number in range(5):
        scheduler.submit(Live(number, [0] * (5 + number), 5 + number, 6))
    while scheduler.busy:
        parts = scheduler.plan()
        held = list(itertools.chain(*(part.live.blocks for part in parts)))
        assert len(set(held)) == len(held)
        assert all(4 * len(part.live.blocks) >= part.live.computed + part.new for part in parts)
        scheduler.finish_step(parts, {part.live.number: 1 for part in parts if part.emits})


def test_a_log_survives_its_file() -> None:
    """What is written is what is read."""
    log, _, _ = _serve([Asked(0.0, 6, 2)])
    assert ServedLog.from_json(log.as_json()) == log


def test_traffic_has_its_rate_and_limits() -> None:
    """A Poisson process of the stated rate, lengths within limits, the same for the same seed; bursts come at once."""
    asked = poisson_requests(8.0, 4000, 1, (10, 20), (3, 5))
    assert 4000 / asked[-1].arrival_s == pytest.approx(8.0, rel=0.05)
    assert {one.prompt_tokens for one in asked} == set(range(10, 21))
    assert {one.output_tokens for one in asked} == {3, 4, 5}
    assert poisson_requests(8.0, 4000, 1, (10, 20), (3, 5)) == asked
    assert {one.arrival_s for one in poisson_requests(None, 5, 1, (1, 1), (1, 1))} == {0.0}


def test_sizes_come_from_the_catalogue() -> None:
    """Llama-3.1-8B is found through what it is like; models of other families are refused."""
    dims = dims_of("meta-llama/Llama-3.1-8B")
    assert (dims.layers, dims.hidden, dims.heads, dims.kv_heads, dims.head_dim) == (32, 4096, 32, 8, 128)
    assert dims.qkv_columns == 6144
    with pytest.raises(ConfigError, match="Llama-like"):
        dims_of("deepseek-ai/DeepSeek-R1")
    with pytest.raises(ConfigError, match="unknown model"):
        dims_of("meta-llama/Llama-9")
