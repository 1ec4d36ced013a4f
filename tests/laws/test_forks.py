"""Requests with several sequences: leaping gives what single-stepping gives, and the books balance."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_exactness import assert_same, assert_same_rows

from scenarios import THOROUGH, Run, Scenario, examples, play, random_scenario, scenarios, with_forks, with_prefixes
from sim.audit import audit

SEEDS_PER_TEST = 400 if THOROUGH else 40


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


@pytest.mark.parametrize("batch", range(3))
def test_long_scenarios_with_forks_agree_in_every_mode(batch: int) -> None:
    """The same for longer scenarios; in one of three the prompts begin alike and are cached as well."""
    for seed in range(20000 + batch * SEEDS_PER_TEST, 20000 + (batch + 1) * SEEDS_PER_TEST):
        rng = random.Random(seed)
        scenario = random_scenario(seed)
        compare(with_forks(with_prefixes(scenario, rng) if batch == 0 else scenario, rng))
