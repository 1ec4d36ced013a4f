"""Every policy, queue order and victim gives the same run whether steps are leapt over or made one by one."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from scenarios import THOROUGH, Run, Scenario, play, random_scenario, rows_of
from sim.build import QUEUE_ORDERS, SCHEDULERS
from sim.engine.replica import ReplicaParts
from sim.request import Request, Traits
from sim.schedulers.base import Scheduler

SEEDS = 300 if THOROUGH else 15

POLICIES: dict[str, dict[str, Any]] = {
    "chunked": {"kind": "chunked"},
    "prefill": {"kind": "continuous"},
    "prefill-mixed": {"kind": "continuous", "mixed": True},
    "decode": {"kind": "continuous", "priority": "decode"},
    "decode-mixed": {"kind": "continuous", "priority": "decode", "mixed": True},
    "static": {"kind": "static"},
    "static-packed": {"kind": "static", "padding": False},
    "dynamic": {"kind": "dynamic", "max_wait_ms": 2e-7, "max_batch_size": 4},
    "sglang": {"kind": "sglang", "schedule_conservativeness": 0.5},
    "sglang-mixed": {"kind": "sglang", "mixed": True, "schedule_conservativeness": 0.0},
}


class Tenants(Scenario):
    """The same with three tenants, four priorities and guesses of the output, all of which follow from the id."""

    def request(self, row: tuple[int, int, int, int, int]) -> Request:
        """As there, with these traits."""
        request, rng = super().request(row), random.Random(row[0])
        old = request.traits
        request.traits = Traits(
            tenant=rng.choice(["a", "a", "b", "c"]),
            priority=rng.randrange(4),
            prefix_hashes=old.prefix_hashes,
            prefix_block_tokens=old.prefix_block_tokens,
        )
        request.predicted_output_tokens = rng.randint(1, request.max_output_tokens)
        return request


def in_place(policy: str, order: str, victim: str) -> Callable[[Scheduler, ReplicaParts], Scheduler]:
    """Puts a policy in the place of the scenario's scheduler."""
    options = dict(POLICIES[policy])
    kind = options.pop("kind")

    def wrap(inner: Any, parts: ReplicaParts) -> Scheduler:
        limits = {"max_num_seqs": inner._max_num_seqs, "max_num_batched_tokens": inner._max_num_batched_tokens}
        return SCHEDULERS[kind](
            parts.kv, parts.batch, queue=QUEUE_ORDERS[order](), preemption_victim=victim, **limits, **options
        )

    return wrap


def drawn(seed: int, policy: str) -> Scenario:
    """A scenario in which the policy can serve everybody; most have too little memory for long answers."""
    scenario, rng = random_scenario(seed, most_requests=40), random.Random(seed)
    rows = scenario.rows
    if rng.random() < 0.7:
        outputs = [rng.randint(1, 60) for _ in rows]
        rows = tuple((i, at, min(p, 20), out, out) for (i, at, p, _, _), out in zip(rows, outputs, strict=True))
        scenario = replace(scenario, max_num_seqs=8, max_num_batched_tokens=rng.choice([10, 30, 100]))
    longest = max(p + most for _, _, p, _, most in rows)
    blocks = -(-longest // scenario.block_size) * rng.choice([10, 13, 20, 30, 60]) // 10
    if policy not in ("chunked", "sglang", "sglang-mixed"):
        scenario = replace(scenario, max_num_batched_tokens=max(longest, scenario.max_num_batched_tokens))
    scenario = replace(scenario, rows=rows, num_blocks=blocks, scheduler="chunked", threshold=0)
    return Tenants(**{name: getattr(scenario, name) for name in Scenario.__dataclass_fields__})


def assert_same(leaping: Run, other: Run) -> None:
    """Equal requests and segments in equal order, and equal ends of steps."""
    assert list(rows_of(leaping.requests)) == list(rows_of(other.requests))
    assert list(rows_of(leaping.segments)) == list(rows_of(other.segments))
    assert leaping.boundaries() == other.boundaries()


@pytest.mark.parametrize("order", sorted(QUEUE_ORDERS))
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_leaping_changes_nothing(policy: str, order: str) -> None:
    """Requests, token times and ends of steps agree over random traffic with preemptions, time-outs and ties."""
    preempted = 0
    for seed in range(SEEDS):
        wrap = in_place(policy, order, ("newest", "lowest_priority")[seed % 2])
        scenario = drawn(seed, policy)
        leaping = play(scenario, wrap=wrap)
        assert_same(leaping, play(scenario, max_run=1, wrap=wrap))
        preempted += int(leaping.requests["preemptions"].sum())
    assert preempted > (0 if policy.startswith("sglang") else 15)
