"""Prices of collectives and of element-wise passes."""

from __future__ import annotations

import numpy as np
import pytest

from sim.cost.kernels.chip import Chip
from sim.cost.kernels.collectives import (
    CollectiveFormat,
    CollectiveKernel,
    CollectiveParams,
    collective_formula,
    collective_s,
    collective_terms,
)
from sim.cost.kernels.elementwise import (
    ElementwiseFormat,
    ElementwiseKernel,
    ElementwiseParams,
    elementwise_s,
    elementwise_terms,
)
from sim.validation.arrays import ARRAY

MIB = 2**20
PARAMS = CollectiveParams(
    launch_s=3e-6, hop_s=1e-7, one_shot_efficiency=0.6, two_shot_s=4e-6, two_shot_efficiency=0.7, nccl_s=1.5e-5,
    nccl_hop_s=1e-6, nccl_efficiency=0.8, switch_efficiency=0.6,
)  # fmt: skip


@pytest.fixture
def kernel(chip: Chip) -> CollectiveKernel:
    """An all-reduce with its own kernel below 8 MiB."""
    return CollectiveKernel(chip, CollectiveFormat("all_reduce", 8.0 * MIB), PARAMS)


def test_a_single_gpu_has_nobody_to_wait_for(kernel: CollectiveKernel) -> None:
    """Without tensor parallelism there is no collective."""
    assert collective_s(MIB, 1, kernel) == 0.0


def test_small_tensors_cost_a_launch_and_large_ones_the_link(kernel: CollectiveKernel) -> None:
    """Decode-sized all-reduces are latency, prefill-sized ones bandwidth."""
    assert collective_terms(1024, 4, kernel).bound == "launch"
    assert collective_terms(64 * MIB, 4, kernel).bound == "link"


@pytest.mark.parametrize("n_gpus", [2, 4, 8])
def test_larger_tensors_never_reduce_faster(kernel: CollectiveKernel, n_gpus: int) -> None:
    """Time grows with the tensor, across the switch from one kernel to the next."""
    times = [collective_s(2**i, n_gpus, kernel) for i in range(8, 31)]
    assert times == sorted(times)


def test_no_reduction_beats_the_link(kernel: CollectiveKernel) -> None:
    """A ring sends 2 (n-1)/n of the tensor; no efficiency exceeds the link's peak."""
    tensor = 512.0 * MIB
    assert collective_s(tensor, 4, kernel) >= 2 * 3 / 4 * tensor / kernel.chip.link_bytes_per_s


def test_outside_a_graph_the_launch_floor_rules(chip: Chip) -> None:
    """Eager collectives of decode size all take about the host's launch time."""
    eager = CollectiveKernel(
        chip, CollectiveFormat("all_reduce", 8.0 * MIB), CollectiveParams(launch_s=3e-6, floor_s=4e-5)
    )
    assert collective_s(1024, 2, eager) == pytest.approx(4e-5, rel=0.01)


def test_collectives_for_arrays_are_collectives_for_numbers(kernel: CollectiveKernel) -> None:
    """Fitting and pricing evaluate the same formula on both sides of every threshold."""
    sizes = [(2.0**i, n) for i in range(8, 31, 2) for n in (2, 4, 8)]
    tensor, n_gpus = (np.array(column) for column in zip(*sizes, strict=True))
    together = collective_formula(tensor, n_gpus, kernel, ARRAY)[0]
    np.testing.assert_allclose(together, [collective_s(b, n, kernel) for b, n in sizes], rtol=1e-12)


def test_passes_over_activations_are_launch_then_bandwidth(chip: Chip) -> None:
    """One row costs the launch; a large pass its bytes over the reached HBM rate."""
    kernel = ElementwiseKernel(chip, ElementwiseFormat(), ElementwiseParams(launch_s=2e-6, hbm_efficiency=0.5))
    assert elementwise_terms(1, 8192, kernel).bound == "launch"
    assert elementwise_s(100_000, 16_384, kernel) == pytest.approx(2e-6 + 100_000 * 16_384 / 1.5e12)


def test_activations_that_fit_the_cache_pass_at_its_rate(chip: Chip) -> None:
    """Below the L2 size a pass is faster by the L2's speed-up, above it no longer."""
    kernel = ElementwiseKernel(chip, ElementwiseFormat(), ElementwiseParams(launch_s=0.0, l2_speedup=2.0))
    small, large = (elementwise_s(rows, 1e4, kernel) / (rows * 1e4) for rows in (500, 500_000))
    assert large == pytest.approx(2 * small, rel=0.01)
