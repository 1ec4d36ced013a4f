"""Where more hardware or less load is known to help everybody, it does; where it is known not to, that shows too."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios import Scenario, examples, play, rows_of
from sim.build import build
from sim.cost.shape import RunShape
from sim.cost.step_times import StepTimes
from sim.scenario import load_scenario

seeds = st.integers(0, 10**6)
UNIT_PS = 1000


def queue(seed: int, count: int = 60, **options: int) -> Scenario:
    """One seat, first come first served, synchronous: a queue with one server and services of their own."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(3000, count)).astype(int).tolist()
    prompts, outputs = rng.integers(1, 60, count).tolist(), rng.integers(1, 30, count).tolist()
    rows = tuple((i, t, p, n, n) for i, (t, p, n) in enumerate(zip(arrivals, prompts, outputs, strict=True)))
    return replace(Scenario(rows, max_num_seqs=1, max_num_batched_tokens=10**6, tick_ps=10), **options)


def stays(scenario: Scenario) -> np.ndarray:
    """Arrival to end of every request, by id."""
    rows = sorted(rows_of(play(scenario).requests), key=lambda row: row["request_id"])
    return np.array([row["finish_ps"] - row["arrival_ps"] for row in rows])


@given(seed=seeds, stretch=st.sampled_from([1.01, 1.5, 10.0]))
@examples(40)
def test_a_lower_rate_never_hurts_anybody(seed: int, stretch: float) -> None:
    """Arrivals further apart: no request of a single-server queue stays longer."""
    one = queue(seed)
    other = replace(one, rows=tuple((i, round(at * stretch), *rest) for i, at, *rest in one.rows))
    assert (stays(other) <= stays(one) + 1).all()  # rounding of arrivals


@given(seed=seeds, faster=st.sampled_from([2, 5, 10]))
@examples(40)
def test_a_faster_gpu_never_hurts_anybody(seed: int, faster: int) -> None:
    """Steps n times as fast: no request of a single-server queue stays longer."""
    one = queue(seed)
    assert (stays(replace(one, tick_ps=one.tick_ps // faster)) <= stays(one)).all()


@given(seed=seeds)
@examples(40)
def test_shorter_answers_never_hurt_anybody(seed: int) -> None:
    """Every answer cut to half: no request of a single-server queue stays longer."""
    one = queue(seed)
    halved = tuple((i, at, p, -(-n // 2), -(-n // 2)) for i, at, p, n, _ in one.rows)
    assert (stays(replace(one, rows=halved)) <= stays(one)).all()


@given(seed=seeds, gone=st.integers(0, 59))
@examples(40)
def test_a_request_less_never_hurts_the_others(seed: int, gone: int) -> None:
    """Somebody stays away: nobody of a single-server queue stays longer."""
    one = queue(seed)
    rest = replace(one, rows=tuple(row for row in one.rows if row[0] != gone))
    assert (stays(rest) <= np.delete(stays(one), gone)).all()


@given(seed=seeds, replicas=st.integers(2, 4))
@examples(30)
def test_a_replica_more_never_hurts_where_all_pass_one_after_the_other(seed: int, replicas: int) -> None:
    """From one single-server queue to several, each the next in turn: nobody stays longer."""
    one = queue(seed)
    assert (stays(replace(one, replicas=replicas, router="round_robin")) <= stays(one)).all()


class Shared:
    """A server whose step lasts as long as it has sequences: each gets an equal share of one token per unit."""

    def run(self, shape: RunShape, max_steps: int) -> StepTimes:
        """Prompts of one token are computed in no time worth mentioning."""
        if shape.chunks:
            return StepTimes(1, 1 + UNIT_PS * shape.decodes, [(0, 0, 1 + UNIT_PS * shape.decodes, 0, 1)])
        step = UNIT_PS * shape.decodes
        return StepTimes(max_steps, max_steps * step, [(0, 0, step, 0, max_steps)])


@pytest.mark.parametrize("law", ["constant", "exponential", "two lengths"])
def test_processor_sharing(law: str) -> None:
    """M/G/1-PS: the mean stay is service / (1 - load), whatever the law of lengths (Kleinrock 1967)."""
    rng, count, load, mean = np.random.default_rng(7), 12_000, 0.6, 200
    lengths = {
        "constant": np.full(count, mean),
        "exponential": rng.exponential(mean, count),
        "two lengths": rng.choice([50, 650], count, p=[0.75, 0.25]),
    }[law]
    outputs = np.maximum(2, np.round(lengths)).astype(int)
    arrivals = np.cumsum(rng.exponential(mean * UNIT_PS / load, count)).astype(np.int64).tolist()
    rows = tuple((i, t, 1, n, n) for i, (t, n) in enumerate(zip(arrivals, outputs.tolist(), strict=True)))
    scenario = Scenario(rows, max_num_seqs=10**6, max_num_batched_tokens=10**7, num_blocks=10**9)
    table = play(scenario, timer=Shared()).requests
    stay = float(np.mean(table["finish_ps"] - table["arrival_ps"])) / UNIT_PS
    assert stay == pytest.approx(float(outputs.mean()) / (1 - load * outputs.mean() / mean), rel=0.08)


def test_more_memory_may_hurt() -> None:
    """Not a theorem: with room for one request more its prompt joins earlier, and those before it wait for its step.

    The anomaly of list scheduling (Graham 1969) in serving terms: the mean stay of this batch grows with its memory.
    """
    rows = ((0, 0, 20, 40, 40), (1, 0, 20, 40, 40), (2, 10, 400, 2, 2))
    tight = Scenario(rows, max_num_seqs=3, max_num_batched_tokens=1000, block_size=20, num_blocks=24)
    ample = replace(tight, num_blocks=100)
    stay = {s.num_blocks: stays(s) for s in (tight, ample)}
    assert (stay[100][:2] > stay[24][:2]).all()


def test_more_seats_may_hurt() -> None:
    """Nor is this: a short request that shares its steps with long ones ends later than one that waits its turn."""
    rows = tuple((i, 0, 30, 200 if i % 2 else 2, 200 if i % 2 else 2) for i in range(20))
    means = [stays(Scenario(rows, max_num_seqs=seats, max_num_batched_tokens=10**5)).mean() for seats in (10, 20)]
    assert not math.isclose(*means)


SMALL = {"model": "meta-llama/Llama-3.1-8B", "hardware": "h100-sxm", "workload": "chat"}


def blocks(**settings: object) -> int:
    """KV blocks of a server."""
    dotted = {"engine." + key.replace("__", "."): value for key, value in settings.items()}
    return build(load_scenario(SMALL, dotted)).num_blocks


@given(low=st.floats(0.4, 0.9), more=st.floats(0.01, 0.09))
@examples(10)
def test_a_larger_share_of_the_gpu_never_gives_fewer_blocks(low: float, more: float) -> None:
    """`gpu_memory_utilization` goes into KV cache."""
    assert blocks(gpu_memory_utilization=low + more) >= blocks(gpu_memory_utilization=low)


@given(st.sampled_from([("bfloat16", "fp8"), ("bfloat16", "int8_per_token_head"), ("fp8", "int4_per_token_head")]))
@examples(3)
def test_fewer_bits_per_cached_element_never_give_fewer_tokens(pair: tuple[str, str]) -> None:
    """A narrower cache holds at least as many tokens."""
    wide, narrow = (blocks(quantization={"kv_cache": form}) for form in pair)
    assert narrow >= wide


@given(st.sampled_from([("none", "fp8"), ("fp8", "awq"), ("none", "nf4")]))
@examples(3)
def test_smaller_weights_never_give_fewer_blocks(pair: tuple[str, str]) -> None:
    """What weights leave is the cache's."""
    large, small = (blocks(quantization=scheme) for scheme in pair)
    assert small >= large


@given(st.sampled_from([512, 2048, 8192]), st.sampled_from([2, 4]))
@examples(6)
def test_a_larger_token_budget_never_gives_more_blocks(budget: int, times: int) -> None:
    """The profiling run of a larger step leaves less."""
    assert blocks(max_num_batched_tokens=budget * times) <= blocks(max_num_batched_tokens=budget)


@given(st.sampled_from([1, 2, 4]))
@examples(3)
def test_more_gpus_of_a_group_never_give_fewer_blocks(tp: int) -> None:
    """Weights and KV heads are shared by the group."""
    assert blocks(tensor_parallel_size=2 * tp) >= blocks(tensor_parallel_size=tp)
