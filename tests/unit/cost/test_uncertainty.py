"""Error bars of steps, and constants carried over."""

from __future__ import annotations

import numpy as np
import pytest

from sim.cost.calibration import Calibration, Entry, Key
from sim.cost.kernels.chip import Chip
from sim.cost.kernels.gemm import GemmFormat, GemmKernel, GemmParams, gemm_s
from sim.cost.transfer import transferred
from sim.cost.uncertainty import draw_factors, step_interval

WIDE = {0.05: -0.2, 0.5: 0.0, 0.95: 0.2}
SMALL = Chip("small", {"bf16": 5e14}, 2e12, 50, 40e6, 2e11, 64)
LARGE = Chip("large", {"bf16": 1e15}, 4e12, 100, 50e6, 4e11, 64)


def test_one_class_has_the_interval_of_its_kernels() -> None:
    """Errors within a class move together, so a step of one class is as uncertain as one kernel."""
    low, high = step_interval({"gemm": 1.0}, {"gemm": WIDE})
    assert low == pytest.approx(np.exp(-0.2), rel=0.01)
    assert high == pytest.approx(np.exp(0.2), rel=0.01)


def test_independent_classes_average_out() -> None:
    """Two equal classes give a narrower interval, relative to the step, than one."""
    one = step_interval({"gemm": 1.0}, {"gemm": WIDE})
    two = step_interval({"gemm": 0.5, "moe": 0.5}, {"gemm": WIDE, "moe": WIDE})
    assert one[0] < two[0] < 1 < two[1] < one[1]


def test_a_class_without_errors_counts_as_exact() -> None:
    """Host time, for instance, shifts the interval without widening it."""
    low, high = step_interval({"gemm": 1.0}, {"gemm": WIDE})
    assert step_interval({"gemm": 1.0, "host": 5.0}, {"gemm": WIDE}) == pytest.approx((low + 5, high + 5))


def test_draws_repeat_with_their_seed() -> None:
    """The same generator state gives the same factors, one per class."""
    errors = {"gemm": WIDE, "moe": WIDE}
    first, second = (draw_factors(errors, np.random.default_rng(7)) for _ in range(2))
    assert first == second and set(first) == {"gemm", "moe"}
    assert first["gemm"] != first["moe"]


def carried() -> Entry:
    """A kernel fitted on the small chip, carried to one with twice of everything."""
    kernel = GemmKernel(SMALL, GemmFormat("bf16", 2.0, 2.0), GemmParams(1e-6, 0.8, 0.9))
    key = Key("gemm", "bf16", "vllm")
    return transferred(Calibration(SMALL, {key: Entry(kernel, "tables", {"train": {"mape": 5}}, WIDE)}), LARGE).entries[
        key
    ]


def test_carried_constants_follow_the_roofs() -> None:
    """On a chip with twice the bandwidth a memory-bound product takes half the time, launch aside."""
    kernel = GemmKernel(SMALL, GemmFormat("bf16", 2.0, 2.0), GemmParams(1e-6, 0.8, 0.9))
    before, after = (gemm_s(1, 16384, 16384, k) - 1e-6 for k in (kernel, carried().kernel))
    assert after == pytest.approx(before / 2, rel=0.02)


def test_carried_constants_claim_no_accuracy_of_their_own() -> None:
    """Statistics are left behind, the source says so, and the error distribution is wider."""
    entry = carried()
    assert entry.source == "extrapolated from small: tables" and not entry.errors
    assert entry.log_error_quantiles[0.05] < -0.2 and entry.log_error_quantiles[0.95] > 0.2
