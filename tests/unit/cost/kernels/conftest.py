"""A chip and plausible constants for every kernel class."""

from __future__ import annotations

import pytest

from sim.cost.kernels.chip import Chip


@pytest.fixture
def chip() -> Chip:
    """Round figures of the size of an H100's."""
    return Chip("test-gpu", {"bf16": 1e15, "fp8": 2e15, "int8": 2e15}, 3e12, 100, 50e6, 400e9, 64)
