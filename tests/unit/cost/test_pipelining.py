"""Software pipelining: from the sum of compute and memory to their maximum."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.cost.pipelining import pipelined_seconds

times = st.floats(0.001, 10)


def test_one_stage_computes_or_loads() -> None:
    """Ten tiles of 3 s of loads and 2 s of products in all take 5 s."""
    assert pipelined_seconds(2.0, 3.0, 10, 1) == pytest.approx(5.0)


def test_two_stages_overlap_all_but_the_first_tile() -> None:
    """Prologue 0.3 s, nine tiles of 0.3 s, epilogue 0.2 s."""
    assert pipelined_seconds(2.0, 3.0, 10, 2) == pytest.approx(3.2)


def test_latency_wants_more_stages() -> None:
    """Tiles of 1 s each way behind a latency of 4 s: 6 s per tile alone, 3 with two stages, 2, and at last 1."""
    per_tile = [(pipelined_seconds(100, 100, 100, stages, 4.0) - 6) / 99 for stages in (1, 2, 3, 6, 9)]
    assert per_tile == pytest.approx([6, 3, 2, 1, 1])


@given(times, times, st.integers(1, 1000), st.integers(1, 8), st.floats(0, 1))
def test_between_the_maximum_and_the_sum(compute: float, memory: float, tiles: int, stages: int, wait: float) -> None:
    """A kernel never beats its slower half, more stages never hurt, and one stage is the sum."""
    found = pipelined_seconds(compute, memory, tiles, stages, wait)
    assert max(compute, memory) <= found * (1 + 1e-9)
    assert found <= pipelined_seconds(compute, memory, tiles, 1, wait) * (1 + 1e-9)
    assert pipelined_seconds(compute, memory, tiles, stages + 1, wait) <= found * (1 + 1e-9)
