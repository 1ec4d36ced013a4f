"""Prices of prefill and decode attention."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.cost.kernels.attention_decode import (
    DecodeFormat,
    DecodeKernel,
    DecodeParams,
    Heads,
    decode_formula,
    decode_s,
    decode_terms,
    decode_work,
)
from sim.cost.kernels.attention_prefill import (
    PrefillFormat,
    PrefillKernel,
    PrefillParams,
    chunk_work,
    prefill_formula,
    prefill_s,
    prefill_sums_terms,
)
from sim.cost.kernels.chip import Chip
from sim.validation.arrays import ARRAY

GQA = Heads(32, 8, 128)
DECODE = DecodeParams(
    launch_s=9e-6, hbm_efficiency=0.9, l2_speedup=2.0, overlap_power=3.0, block_s=2e-6, stream_bytes_per_s=4e10,
    merge_s=2e-6, regroup_s=1e-6, io_s_per_byte=1e-12, mma_efficiency=0.5, wave_hardness=0.5, window_s=3e-6,
    most_splits=32.0,
)  # fmt: skip
PREFILL = PrefillParams(
    launch_s=9e-6, mma_efficiency=0.8, half_head_dim=40.0, hbm_efficiency=0.7, overlap_power=2.0, block_s=2e-6,
    key_tile_s=3e-7, write_s_per_byte=4e-13, throttle=0.05, window_tile_s=1e-7, longest_power=3.0,
)  # fmt: skip
LAYOUTS = st.sampled_from([Heads(32, 8, 128), Heads(8, 8, 64), Heads(16, 1, 128), Heads(64, 8, 64, 128)])
once = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


@pytest.fixture
def decode(chip: Chip) -> DecodeKernel:
    """A decode kernel with every term present."""
    return DecodeKernel(chip, DecodeFormat(), DECODE)


@pytest.fixture
def prefill(chip: Chip) -> PrefillKernel:
    """A prefill kernel with every term present."""
    return PrefillKernel(chip, PrefillFormat(), PREFILL)


@once
@given(sequences=st.integers(1, 256), context=st.integers(1, 60_000))
def test_longer_contexts_never_decode_faster(decode: DecodeKernel, sequences: int, context: int) -> None:
    """Doubling every context cannot shorten decode attention by more than the split rule's rounding."""
    short, long = (decode_s(sequences, sequences * c, GQA, decode) for c in (context, 2 * context))
    assert long >= 0.98 * short


@once
@given(sequences=st.integers(1, 512), context=st.integers(1, 60_000))
def test_decode_reads_its_cache_at_most_at_the_hbm_rate(decode: DecodeKernel, sequences: int, context: int) -> None:
    """Cold decode attention takes at least KV bytes over the HBM rate."""
    kv_bytes = sequences * context * 8 * 128 * 2 * 2
    assert decode_s(sequences, sequences * context, GQA, decode) >= kv_bytes / decode.chip.hbm_bytes_per_s


@once
@given(sequences=st.integers(1, 512), context=st.integers(1, 60_000))
def test_a_cold_cache_is_never_faster(decode: DecodeKernel, sequences: int, context: int) -> None:
    """Reading KV from HBM, as serving does, costs at least as much as reading it from L2."""
    total = sequences * context
    cold, hot = (decode_s(sequences, total, GQA, decode, cold=cold) for cold in (True, False))
    assert cold >= hot * (1 - 1e-12)  # equal but for rounding, where nothing stays in L2


@once
@given(cases=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 50_000), LAYOUTS), min_size=1, max_size=8))
def test_decode_for_arrays_is_decode_for_numbers(decode: DecodeKernel, cases: list[tuple[int, int, Heads]]) -> None:
    """Fitting and pricing evaluate the same decode formula."""
    sequences, context = (np.array([case[i] for case in cases], np.int64) for i in (0, 1))
    heads = Heads(*(np.array([case[2][i] for case in cases], np.int64) for i in range(4)))
    together = decode_formula(decode_work(sequences, context, heads, decode, ARRAY), heads, decode, True, ARRAY)[0]
    alone = [decode_s(n, n * c, layout, decode) for n, c, layout in cases]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_a_window_limits_what_is_read(decode: DecodeKernel) -> None:
    """Beyond its window a context costs no more, whatever its length."""
    windowed = GQA._replace(window_tokens=1024)
    long, longer = (decode_s(16, 16 * context, windowed, decode) for context in (5_000, 50_000))
    assert long == longer < decode_s(16, 16 * 5_000, GQA, decode)


def test_one_long_context_is_split_over_the_gpu(decode: DecodeKernel) -> None:
    """A single sequence pays the merge, and is far faster than one block streaming its whole cache."""
    found = decode_terms(1, 100_000, GQA, decode)
    one_block_s = 100_000 * 128 * 2 * 2 / DECODE.stream_bytes_per_s
    assert found.parts["launch"] >= DECODE.launch_s + DECODE.merge_s
    assert found.parts["blocks"] < 0.2 * one_block_s


def test_some_libraries_do_not_split_ungrouped_heads(chip: Chip) -> None:
    """Without a split, one sequence with as many KV heads as query heads streams at the rate of one block."""
    heads = Heads(8, 8, 128)
    whole, split = (
        decode_s(1, 50_000, heads, DecodeKernel(chip, DecodeFormat(splits_ungrouped=rule), DECODE))
        for rule in (False, True)
    )
    assert whole > 50_000 * 128 * 2 * 2 / DECODE.stream_bytes_per_s > 2 * split


@once
@given(new=st.integers(1, 8192), cached=st.integers(0, 20_000), layout=LAYOUTS)
def test_more_prompt_or_more_prefix_never_prefills_faster(
    prefill: PrefillKernel, new: int, cached: int, layout: Heads
) -> None:
    """Doubling the new tokens or the cached ones cannot shorten prefill attention beyond tile rounding."""
    seconds = prefill_s([(new, cached)], layout, prefill)
    assert prefill_s([(2 * new, cached)], layout, prefill) >= 0.97 * seconds
    assert prefill_s([(new, 2 * cached)], layout, prefill) >= 0.97 * seconds


@once
@given(new=st.integers(1, 16_384), cached=st.integers(0, 20_000))
def test_prefill_never_beats_the_tensor_peak(prefill: PrefillKernel, new: int, cached: int) -> None:
    """Visible query-key pairs cost at least 4 FLOPs per element at the dense peak."""
    pairs = new * cached + new * (new + 1) / 2
    assert prefill_s([(new, cached)], GQA, prefill) >= 4 * 32 * 128 * pairs / prefill.chip.peak("bf16")


@once
@given(cases=st.lists(st.tuples(st.integers(1, 8192), st.integers(0, 9000), LAYOUTS), min_size=1, max_size=8))
def test_prefill_for_arrays_is_prefill_for_numbers(prefill: PrefillKernel, cases: list[tuple[int, int, Heads]]) -> None:
    """Fitting and pricing evaluate the same prefill formula."""
    new, cached = (np.array([case[i] for case in cases], np.int64) for i in (0, 1))
    heads = Heads(*(np.array([case[2][i] for case in cases], np.int64) for i in range(4)))
    ones = np.ones(len(cases), np.int64)
    together = prefill_formula(chunk_work(ones, new, cached, heads, prefill, ARRAY), heads, prefill, ARRAY)[0]
    alone = [prefill_s([(n, c)], layout, prefill) for n, c, layout in cases]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_two_chunks_share_one_launch(prefill: PrefillKernel) -> None:
    """Chunks of one step run in one kernel: cheaper than two calls, dearer than the first alone."""
    one = prefill_s([(512, 0)], GQA, prefill)
    two = prefill_s([(512, 0), (512, 0)], GQA, prefill)
    assert one < two < 2 * one


def test_sums_describe_equal_chunks_exactly(prefill: PrefillKernel) -> None:
    """Chunks known only by new tokens, pairs and longest cost what the chunks themselves cost when they are equal."""
    pairs = 4 * (512 * 1000 + 512 * 513 / 2)
    by_sums = prefill_sums_terms(4 * 512, pairs, 512, GQA, prefill).seconds
    assert by_sums == pytest.approx(prefill_s([(512, 1000)] * 4, GQA, prefill), rel=1e-6)
