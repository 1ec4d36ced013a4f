"""Closed forms over many steps, against adding up one step after the other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios import examples
from sim.cost.step_times import Piece, StepTimes, one_step

series = st.lists(
    st.tuples(st.integers(1, 10**6), st.integers(0, 5000), st.integers(1, 40)), min_size=1, max_size=5
)  # first duration, slope, steps


def build(parts: list[tuple[int, int, int]]) -> tuple[StepTimes, list[int]]:
    """The closed form, and the end of every step by plain addition."""
    pieces: list[Piece] = []
    ends, now = [0], 0
    for a, b, k in parts:
        pieces.append((len(ends) - 1, now, a, b, k))
        for i in range(k):
            now += a + i * b
            ends.append(now)
    return StepTimes(len(ends) - 1, now, pieces), ends


@given(parts=series)
@examples(200)
def test_end_of_is_the_sum_of_the_durations(parts: list[tuple[int, int, int]]) -> None:
    """Any number of steps, from none to all, over any pieces."""
    times, ends = build(parts)
    assert [times.end_of(k) for k in range(times.steps + 1)] == ends


@given(parts=series, data=st.data())
@examples(300)
def test_boundaries_around_any_time(parts: list[tuple[int, int, int]], data: st.DataObject) -> None:
    """The first boundary at or after a time, and the steps that have ended by then, are those found by looking."""
    times, ends = build(parts)
    near = data.draw(st.sampled_from(ends))
    elapsed = max(1, min(times.total_ps, near + data.draw(st.integers(-2, 2))))
    k = next(k for k in range(1, len(ends)) if ends[k] >= elapsed)
    assert times.first_boundary(elapsed) == (k, ends[k])
    assert times.ended_by(elapsed) == sum(end <= elapsed for end in ends[1:])


@given(a=st.integers(1, 10**18), b=st.integers(0, 9) | st.integers(0, 10**9), k=st.integers(1, 10**6), data=st.data())
@examples(300)
def test_inverse_is_exact_at_any_size(a: int, b: int, k: int, data: st.DataObject) -> None:
    """Where floats have run out of digits the boundary is still the exact one."""
    times = StepTimes(k, k * a + b * (k * (k - 1) // 2), [(0, 0, a, b, k)])
    j = data.draw(st.integers(1, k))
    end = times.end_of(j)
    for elapsed, steps in ((end, j), (end - 1, j if a > 1 or j > 1 else 1), (end + 1, j + 1)):
        if 0 < elapsed <= times.total_ps and times.end_of(steps - 1) < elapsed <= times.end_of(steps):
            assert times.first_boundary(elapsed) == (steps, times.end_of(steps))
    assert times.ended_by(end) == j
    assert times.ended_by(end - 1) == j - 1


def test_a_float_that_overshoots_is_corrected() -> None:
    """Long steps of nearly no slope: the float inverse points one step too far, the integers bring it back."""
    a, b, k = 100_000_000_532_374_341, 10, 10**6
    times = StepTimes(k, k * a + b * (k * (k - 1) // 2), [(0, 0, a, b, k)])
    assert times.first_boundary(24_440_700_130_414_688_246_996) == (244_407, times.end_of(244_407))


def test_before_and_after_the_run() -> None:
    """Nothing has ended at or before the start, everything at or after the end."""
    times, ends = build([(10, 0, 3), (7, 2, 2)])
    assert [times.ended_by(t) for t in (-5, 0, 9, 10, ends[-1], ends[-1] + 100)] == [0, 0, 0, 1, 5, 5]


def test_asking_beyond_the_run_is_an_error() -> None:
    """A boundary after the last one and a sixth of five steps do not exist."""
    times, ends = build([(10, 0, 3), (7, 2, 2)])
    with pytest.raises(ValueError, match="before"):
        times.first_boundary(ends[-1] + 1)
    with pytest.raises(ValueError, match="5 steps, not 6"):
        times.end_of(6)


def test_one_step() -> None:
    """A run of one step ends once."""
    times = one_step(42)
    assert (times.steps, times.total_ps, times.end_of(0), times.end_of(1)) == (1, 42, 0, 42)
    assert times.first_boundary(1) == (1, 42)
