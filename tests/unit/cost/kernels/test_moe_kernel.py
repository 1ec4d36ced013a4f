"""Prices of fused experts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.cost.kernels.chip import Chip
from sim.cost.kernels.moe import Experts, MoeFormat, MoeKernel, MoeParams, moe_formula, moe_s, moe_terms, moe_work
from sim.validation.arrays import ARRAY

MIXTRAL = Experts(4096, 14336, 2, 8)
MANY = Experts(2048, 768, 8, 128, 1, 4)
RULE = ((32.0, 16), (96.0, 32), (512.0, 64), (1e9, 128))
PARAMS = MoeParams(
    launch_s=2e-5, mma_efficiency=0.7, hbm_efficiency=0.9, overlap_power=2.5, tile_s=1e-6, feed_bytes_per_s=1e11,
    wave_hardness=0.5, reread=0.2, pair_s=1e-9, pair_s_per_byte=3e-13, expert_s=1e-8, skew_load=2.0,
)  # fmt: skip
once = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


@pytest.fixture
def kernel(chip: Chip) -> MoeKernel:
    """A kernel with every term present."""
    return MoeKernel(chip, MoeFormat("bf16", 2.0, RULE), PARAMS)


def test_balanced_routing_reads_every_expert_once_enough_pairs_exist(kernel: MoeKernel) -> None:
    """Memory time grows with tokens until all experts are active, then no more."""
    memory = [moe_terms(tokens, MIXTRAL, kernel).parts["memory"] for tokens in (1, 2, 4, 16)]
    assert memory[0] < memory[1] < memory[2]
    assert memory[3] == pytest.approx(memory[2], rel=0.01)


def test_the_caller_may_know_the_active_experts(kernel: MoeKernel) -> None:
    """Fewer distinct experts mean fewer weights to read."""
    assert moe_s(16, MIXTRAL, kernel, active_experts=3.0) < moe_s(16, MIXTRAL, kernel)


@once
@given(tokens=st.integers(1, 16_384))
def test_experts_never_beat_the_datasheet(kernel: MoeKernel, tokens: int) -> None:
    """Pairs cost at least 6 hidden x inter FLOPs each at the dense peak."""
    flops = 6 * 4096 * 14336 * 2 * tokens
    assert moe_s(tokens, MIXTRAL, kernel) >= flops / kernel.chip.peak("bf16")


def test_skew_leaves_experts_idle_and_overloads_ranks(kernel: MoeKernel) -> None:
    """Under power-law routing small batches touch fewer experts, and large ones wait for the busiest rank."""
    assert moe_s(16, MANY, kernel, skewed=True) < moe_s(16, MANY, kernel)
    assert moe_s(8192, MANY, kernel, skewed=True) > moe_s(8192, MANY, kernel)


@once
@given(cases=st.lists(st.tuples(st.integers(1, 20_000), st.booleans()), min_size=2, max_size=8))
def test_experts_for_arrays_are_experts_for_numbers(kernel: MoeKernel, cases: list[tuple[int, bool]]) -> None:
    """Fitting and pricing evaluate the same formula, balanced and skewed."""
    tokens, skewed = np.array([t for t, _ in cases]), np.array([s for _, s in cases])
    together = moe_formula(moe_work(tokens, MANY, kernel, skewed, ARRAY), MANY, kernel, ARRAY)[0]
    alone = [moe_s(t, MANY, kernel, skewed=s) for t, s in cases]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
