"""Requests with several sequences: leaping gives what single-stepping gives, and the books balance."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_exactness import assert_same, assert_same_rows

from scenarios import (
    POLICIES,
    THOROUGH,
    Run,
    Scenario,
    examples,
    play,
    random_scenario,
    rows_of,
    scenarios,
    with_forks,
    with_policy,
    with_prefixes,
    with_spans,
)
from sim.audit import audit
from sim.engine.replica import ReplicaParts
from sim.policies import FORKING_SCHEDULERS
from sim.request import State
from sim.schedulers.base import Scheduler
from sim.step import Idle, StepPlan

SEEDS_PER_TEST = 400 if THOROUGH else 40
FORKING_POLICIES = [i for i, (kind, _) in enumerate(POLICIES) if kind in FORKING_SCHEDULERS]


def compare(scenario: Scenario) -> Run:
    """All ways to group the steps of a scenario; returns the leaping run."""
    leaping, single = play(scenario), play(scenario, max_run=1)
    assert_same(leaping, single)
    assert_same_rows(leaping, single)
    assert_same(leaping, play(scenario, max_run=3))
    audit(leaping.result(), leaping.cluster.submitted)
    return leaping


@given(scenario=scenarios(), seed=st.integers(0, 10**6))
@examples(150)
def test_short_scenarios_with_forks_agree_in_every_mode(scenario: Scenario, seed: int) -> None:
    """Samples and beams, synchronous and asynchronous: the number of steps per plan changes no result."""
    compare(with_forks(scenario, random.Random(seed)))


def drawn(seed: int) -> Scenario:
    """A scenario with forks under any scheduler, queue order, victim and prefix cache that takes them."""
    rng = random.Random(seed)
    scenario = with_policy(random_scenario(seed), rng, rng.choice(FORKING_POLICIES))
    if rng.random() < 0.5:
        caches = {"match": rng.choice(["hash_block", "radix"]), "eviction": rng.choice(["lru", "lfu"])}
        scenario = replace(with_prefixes(scenario, rng), **caches)
    if rng.random() < 0.7:  # memory for a few sequences
        fixed, longest = rng.choice([0, 0, 2]), max(prompt + most for _, _, prompt, _, most in scenario.rows)
        blocks = -(-longest // scenario.block_size) * rng.choice([11, 15, 25, 40]) // 10 + 3 * fixed
        memory = rng.choice([(), (), (("watermark", 0.1),)])
        scenario = replace(scenario, fixed_blocks=fixed, num_blocks=blocks, memory=memory, max_num_seqs=32)
        scenario = replace(scenario, max_num_batched_tokens=max(scenario.max_num_batched_tokens, 32))
    if rng.random() < 0.2:
        scenario = with_spans(scenario, seed)
    return with_forks(scenario, rng)


@pytest.mark.parametrize("batch", range(3))
def test_forks_agree_in_every_mode_under_every_policy(batch: int) -> None:
    """Who is next, who gives way and what prompts share has no part in it."""
    for seed in range(20000 + batch * SEEDS_PER_TEST, 20000 + (batch + 1) * SEEDS_PER_TEST):
        compare(drawn(seed))


def test_books_balance_at_every_plan() -> None:
    """Blocks, references and counts are right whenever a scheduler is asked, not only at the end."""

    class Checked:
        """A scheduler that has the books checked first."""

        def __init__(self, inner: Scheduler, parts: ReplicaParts) -> None:
            self._inner, self._parts = inner, parts

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def plan(self, now_ps: int) -> StepPlan | Idle:
            batch = self._parts.batch
            held = [(r, batch.context_of(r) if r.joined_step >= 0 else r.computed_tokens) for r in self.running()]
            self._parts.kv.check(held)
            return self._inner.plan(now_ps)

    for seed in range(SEEDS_PER_TEST):
        play(drawn(seed), wrap=Checked)


def test_the_scenarios_reach_every_corner() -> None:
    """They hold forks, beams that replace others, preempted sequences and requests, and time-outs after a fork."""
    runs = [play(drawn(seed)) for seed in range(150)]
    rows = [row for run in runs for row in rows_of(run.requests)]
    forked = [row for run in runs for row in rows_of(run.segments) if row["sequence"]]
    assert len(forked) > 500
    assert sum(row["preemptions"] > 0 and row["sibling_tokens"] > 0 for row in rows) > 40
    assert sum(row["state"] == State.ABORTED and row["sibling_tokens"] > 0 for row in rows) > 50
    seen_late = [row for row in rows if row["first_token_ps"] == row["finish_ps"] and row["sibling_tokens"] > 0]
    assert len(seen_late) > 50  # beam searches
    changes = [np.diff(run.steps["kv_shared_blocks"]) for run in runs]
    assert sum(map(np.count_nonzero, changes)) > 2000


def test_samples_of_one_length_end_together_when_nothing_is_short() -> None:
    """With seats and memory to spare, n equal samples take as many steps as one."""
    row = (0, 0, 50, 30, 30)
    alone = play(Scenario((row,)))
    several = play(Scenario((row,), sequences=6, switch_probability=0.5))
    assert int(several.segments["sequence"].max()) > 0
    assert len(alone.boundaries()[0]) == len(several.boundaries()[0])
