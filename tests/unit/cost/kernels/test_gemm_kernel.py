"""Prices of dense products."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.cost.kernels.chip import Chip
from sim.cost.kernels.gemm import (
    GemmFormat,
    GemmKernel,
    GemmParams,
    gemm_formula,
    gemm_s,
    gemm_terms,
)
from sim.validation.arrays import ARRAY

SIZES = st.integers(1, 20_000)
BY_ROWS = ((64.0, 64, 64, 1), (128.0, 64, 128, 1), (1e9, 128, 128, 2))
FORMATS = {
    "autotuned": GemmFormat("bf16", 2.0, 2.0),
    "quantised": GemmFormat("fp8", 1.0, 1.0, True, 2048, tile_by_rows=BY_ROWS),
}
PARAMS = GemmParams(
    launch_s=2e-6, mma_efficiency=0.8, hbm_efficiency=0.9, l2_speedup=2.0, overlap_power=3.0, tile_s=1e-6,
    feed_bytes_per_s=1e11, wave_hardness=0.5, throttle=0.1, split_k_s=1e-6, quantise_efficiency=0.6,
    quantise_row_s=1e-9,
)  # fmt: skip
once = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


@pytest.fixture(params=FORMATS)
def kernel(request: pytest.FixtureRequest, chip: Chip) -> GemmKernel:
    """One kernel that tries tiles and one that picks them by rows."""
    return GemmKernel(chip, FORMATS[request.param], PARAMS)


@once
@given(m=SIZES, n=SIZES, k=SIZES, grow=st.sampled_from("mnk"))
def test_more_work_never_takes_less_time(chip: Chip, m: int, n: int, k: int, grow: str) -> None:
    """Doubling any of m, n, k cannot make a product faster."""
    kernel = GemmKernel(chip, FORMATS["autotuned"], PARAMS)
    shape = {"m": m, "n": n, "k": k}
    larger = {**shape, grow: 2 * shape[grow]}
    assert gemm_s(**larger, kernel=kernel) >= gemm_s(**shape, kernel=kernel) * (1 - 1e-12)


@once
@given(m=SIZES, n=SIZES, k=SIZES)
def test_no_product_beats_the_datasheet(chip: Chip, m: int, n: int, k: int) -> None:
    """Cold products take at least FLOPs over the peak and weight bytes over the HBM rate."""
    for fmt in FORMATS.values():
        kernel = GemmKernel(chip, fmt, PARAMS)
        seconds = gemm_s(m, n, k, kernel)
        assert seconds >= 2 * m * n * k / chip.peak(fmt.multiply)
        assert seconds >= n * k * fmt.weight_bytes / chip.hbm_bytes_per_s


@once
@given(m=SIZES, n=SIZES, k=SIZES)
def test_cold_weights_cost_at_least_as_much_as_hot_ones(chip: Chip, m: int, n: int, k: int) -> None:
    """A benchmark that finds its weights in L2 is never slower than serving, which does not."""
    kernel = GemmKernel(chip, FORMATS["autotuned"], PARAMS)
    assert gemm_s(m, n, k, kernel, cold=True) >= gemm_s(m, n, k, kernel, cold=False)


def test_small_weights_are_much_faster_hot(chip: Chip) -> None:
    """A weight matrix far below the L2 size shows the L2's bandwidth when it is read again and again."""
    kernel = GemmKernel(chip, FORMATS["autotuned"], PARAMS)
    assert (
        gemm_terms(1, 1024, 1024, kernel, cold=False).parts["memory"]
        < 0.6 * (gemm_terms(1, 1024, 1024, kernel, cold=True).parts["memory"])
    )


@once
@given(shapes=st.lists(st.tuples(SIZES, SIZES, SIZES), min_size=2, max_size=12))
def test_the_formula_for_arrays_is_the_formula_for_numbers(chip: Chip, shapes: list[tuple[int, int, int]]) -> None:
    """Fitting and pricing evaluate the same function, shortcuts of the scalar path included."""
    for fmt in FORMATS.values():
        kernel = GemmKernel(chip, fmt, PARAMS)
        m, n, k = (np.array(column, np.int64) for column in zip(*shapes, strict=True))
        together = gemm_formula(m, n, k, kernel, True, ARRAY)[0]
        alone = [gemm_s(*shape, kernel) for shape in shapes]
        np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_parts_name_what_bounds(chip: Chip) -> None:
    """One token waits for weights, a large batch for the tensor cores, a tiny product for its launch."""
    kernel = GemmKernel(chip, FORMATS["autotuned"], PARAMS)
    assert gemm_terms(1, 8192, 8192, kernel).bound == "memory"
    assert gemm_terms(8192, 8192, 8192, kernel).bound == "compute"
    assert gemm_terms(1, 64, 64, kernel).bound == "launch"


def test_one_row_more_than_a_wave_costs_a_step(chip: Chip) -> None:
    """With hard waves, the first row of a new wave of tiles costs as much as a whole wave."""
    kernel = GemmKernel(chip, FORMATS["quantised"], GemmParams(launch_s=1e-6, wave_hardness=1.0))
    full, over = (gemm_terms(m, 128 * 50, 4096, kernel).parts["compute"] for m in (256, 257))
    assert over == pytest.approx(2 * full)


def test_quantising_is_a_pass_of_its_own(chip: Chip) -> None:
    """The quantise pass adds up with the product instead of hiding behind it."""
    kernel = GemmKernel(chip, FORMATS["quantised"], PARAMS)
    found = gemm_terms(8192, 512, 8192, kernel)
    assert found.seconds > found.parts["quantise"] + max(found.parts["compute"], found.parts["memory"])


def test_odd_row_counts_pay_the_ragged_factor(chip: Chip) -> None:
    """Above 128 rows, a count that is no multiple of 16 slows the compute part down."""
    params = GemmParams(launch_s=1e-6, ragged_rows=0.2)
    even, odd = (gemm_terms(m, 8192, 8192, GemmKernel(chip, FORMATS["autotuned"], params)) for m in (256, 255))
    assert odd.parts["compute"] == pytest.approx(1.2 * even.parts["compute"])
