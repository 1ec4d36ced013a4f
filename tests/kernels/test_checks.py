"""The checks that a GPU session runs first, here in the interpreter."""

from __future__ import annotations

import pytest
import torch

from sim.validation.kernels import gemm
from sim.validation.measure import checks
from sim.validation.measure.checks import Check, check_kernels

TRUNCATES = 3
"""The interpreter truncates where the GPU rounds to nearest, in conversions to e4m3 and bf16."""


def test_every_kernel_is_within_the_bound_of_its_format() -> None:
    """No kernel is further from float64 than its number format explains."""
    found = list(check_kernels("cpu", seed=1))
    failed = [check for check in found if check.problem or not check.error <= TRUNCATES * check.bound]
    assert failed == []
    assert len(found) >= 30


def test_a_kernel_that_fails_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that raises, and one that leaves an element unwritten, fail; the others are checked all the same."""

    def refuses(*_: object) -> torch.Tensor:
        raise RuntimeError("not on this device")

    every = checks._checks
    monkeypatch.setattr(checks, "_checks", lambda device: {k: v for k, v in every(device).items() if "gemm" in k})
    monkeypatch.setattr(gemm, "int8", refuses)
    monkeypatch.setattr(gemm, "dense", lambda x, weight, out: out[1:].copy_((x @ weight.t())[1:]))
    found = {check.kernel: check for check in check_kernels("cpu", seed=2)}
    assert found["gemm w8a8_int8"].problem == "RuntimeError: not on this device"
    assert not found["gemm bf16"].passed
    assert found["gemm w4a16"].passed
    assert not Check("any", float("nan"), 1.0).passed
