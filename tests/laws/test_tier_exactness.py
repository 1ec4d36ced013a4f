"""Loads and writes of a prefix cache with tiers below it: the same in every mode, and nothing is lost on the way."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios import THOROUGH, Run, Scenario, examples, play, random_scenario, scenarios, with_prefixes
from sim.kv.tiered import TieredKV

SEEDS_PER_TEST = 400 if THOROUGH else 60


def with_tiers(scenario: Scenario, rng: random.Random) -> Scenario:
    """Prompts that begin alike, one or two tiers, and few blocks on the GPU."""
    drawn = with_prefixes(scenario, rng)
    longest = max(prompt + most for _, _, prompt, _, most in drawn.rows)
    return replace(
        drawn,
        num_blocks=-(-longest // drawn.block_size) + rng.choice([0, 10, 30]),
        alike=rng.choice([4, 20, 40]),
        router=rng.choice(["round_robin", "kv_aware", "prefix_affinity"]),
        match=rng.choice(["hash_block", "radix"]),
        eviction=rng.choice(["lru", "lfu"]),
        tiers=rng.choice([(1000,), (30, 1000), (10, 1000), (20, 60)]),
        prefetch=rng.random() < 0.5,
        closed_loop=True,
    )


def cache(run: Run) -> TieredKV:
    """The first replica's."""
    kv = run.cluster.replicas[0]._kv
    assert isinstance(kv, TieredKV)
    return kv


def compare(scenario: Scenario) -> Run:
    """Leaping, single steps and runs of three steps."""
    leaping = play(scenario)
    for max_run in (1, 3):
        other = play(scenario, max_run=max_run)
        for name in ("requests", "segments"):
            ours, theirs = getattr(leaping, name), getattr(other, name)
            for column in ours.columns:
                assert ours[column].tolist() == theirs[column].tolist(), f"{name}.{column}"
        assert (leaping.ended, leaping.boundaries()) == (other.ended, other.boundaries())
        assert (cache(leaping).loaded, cache(leaping).store.written) == (
            cache(other).loaded,
            cache(other).store.written,
        )
    return leaping


@given(scenario=scenarios(), seed=st.integers(0, 10**6))
@examples(100)
def test_short_scenarios_with_tiers_agree_in_every_mode(scenario: Scenario, seed: int) -> None:
    """What is loaded, from where and when, does not depend on how steps were grouped."""
    compare(with_tiers(scenario, random.Random(seed)))


@pytest.mark.parametrize("lead", [0, 1])
def test_long_scenarios_with_tiers_agree_in_every_mode(lead: int) -> None:
    """The same for longer ones, which load much, from both tiers, prefetched and at the head of the queue."""
    loaded = {(prefetch, tier): 0 for prefetch in (False, True) for tier in (0, 1)}
    for seed in range(SEEDS_PER_TEST):
        scenario = replace(with_tiers(random_scenario(seed, most_requests=40), random.Random(seed)), lead=lead)
        run = compare(scenario)
        for tier, blocks in enumerate(cache(run).loaded):
            loaded[scenario.prefetch, tier] += blocks
        if scenario.replicas == 1:
            found = int(run.requests["cached_tokens"].sum())
            assert found <= int(run.requests["prompt_tokens"].sum())
    assert min(loaded.values()) > 3
