"""Quantities as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.units import (
    BYTES,
    BYTES_PER_S,
    FLOPS,
    HERTZ,
    SECONDS,
    WATTS,
    ceil_div,
    human_bytes,
    quantity,
    to_ps,
    to_s,
)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3.35 TB/s", BYTES_PER_S, 3.35e12),
        ("3350 GB/s", BYTES_PER_S, 3.35e12),
        ("80 GB", BYTES, 80e9),
        ("80 GiB", BYTES, 80 * 2**30),
        ("81559 MiB", BYTES, 81559 * 2**20),
        ("50MiB", BYTES, 50 * 2**20),
        ("1 KiB/s", BYTES_PER_S, 1024),
        ("989.4 TFLOP/s", FLOPS, 989.4e12),
        ("989.4 TFLOPS", FLOPS, 989.4e12),
        ("1978.9 TOPS", FLOPS, 1978.9e12),
        ("500 ms", SECONDS, 0.5),
        ("264 us", SECONDS, 0.000264),
        ("264 µs", SECONDS, 0.000264),
        ("5 min", SECONDS, 300),
        ("700 W", WATTS, 700),
        ("1830 MHz", HERTZ, 1.83e9),
        ("5_000", SECONDS, 5000),
        ("1e-3", SECONDS, 0.001),
        (7, BYTES, 7.0),
    ],
)
def test_a_quantity_is_read_in_si(text: str | float, kind: str, value: float) -> None:
    """Units are converted exactly; decimal prefixes are powers of 1000, binary ones of 1024; bare numbers are SI."""
    assert quantity(text, kind) == value


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("3350 GB", BYTES_PER_S),
        ("80 GB/s", BYTES),
        ("80 Gb", BYTES),
        ("1 TiFLOP/s", FLOPS),
        ("5 parsecs", SECONDS),
        ("5 MS", SECONDS),
        ("fast", SECONDS),
        ("", SECONDS),
        ("1e99999999999999999999 s", SECONDS),
        (True, SECONDS),
    ],
)
def test_another_unit_is_refused(text: str, kind: str) -> None:
    """A quantity of another kind, or no quantity at all, is refused with an example of a right one."""
    with pytest.raises(ValueError, match=f"expected {kind}|too large"):
        quantity(text, kind)


@given(st.integers(0, 2**62), st.integers(1, 2**31))
def test_ceil_div_is_the_smallest_number_of_groups(a: int, b: int) -> None:
    """That many groups of b hold a things, and one group fewer does not."""
    groups = ceil_div(a, b)
    assert groups * b >= a > (groups - 1) * b


@given(st.integers(0, 10**15))
def test_clock_times_survive_seconds(milliseconds: int) -> None:
    """Whole milliseconds are the same after a detour over seconds, for 30,000 years."""
    assert abs(to_ps(to_s(milliseconds * 10**9)) - milliseconds * 10**9) <= max(1, milliseconds * 10**9 >> 52)


def test_people_read_memory_in_powers_of_1024() -> None:
    """Sizes are shown in the largest unit that leaves a number of at least 1."""
    assert [human_bytes(n) for n in (0, 1023, 1536, 80 * 2**30, 2**40)] == [
        "0 B",
        "1023 B",
        "1.50 KiB",
        "80.00 GiB",
        "1.00 TiB",
    ]
