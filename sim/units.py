"""Units are written by people and read once, here; inside the package everything is SI (seconds, bytes, FLOP/s)."""

from __future__ import annotations

import re
from decimal import Decimal

PS_PER_S = 10**12
"""The engine's clock counts integer picoseconds, so sums of step times are exact in any order."""

GB, GIB = 10**9, 2**30

# Decimals, so that 264 us is the float nearest to 0.000264 and not a product of two rounded ones.
_SCALES = {p: Decimal(10) ** n for p, n in {"": 0, "k": 3, "K": 3, "M": 6, "G": 9, "T": 12, "P": 15}.items()}
_BINARY = {p: Decimal(2) ** n for p, n in {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}.items()}
_TIMES = {p: Decimal(10) ** n for p, n in {"s": 0, "ms": -3, "us": -6, "µs": -6, "ns": -9}.items()}
_TIMES |= {"min": Decimal(60), "h": Decimal(3600)}
_QUANTITY = re.compile(r"^\s*([-+]?[\d_]*\.?\d+(?:[eE][-+]?\d+)?)\s*([^\d\s].*?)?\s*$")

BYTES, BYTES_PER_S, FLOPS, SECONDS, WATTS, HERTZ = "bytes", "bytes/s", "FLOP/s", "seconds", "watts", "hertz"

_EXAMPLE = {
    BYTES: "80 GiB",
    BYTES_PER_S: "3350 GB/s",
    FLOPS: "989.4 TFLOP/s",
    SECONDS: "500 ms",
    WATTS: "700 W",
    HERTZ: "1830 MHz",
}


def quantity(text: str | int | float, kind: str) -> float:
    """Read "3.35 TB/s" as 3.35e12 when `kind` is BYTES_PER_S; a bare number is taken as already SI.

    GB is 10**9 bytes and GiB 2**30: datasheets quote the first, drivers report the second.
    TFLOPS, TFLOP/s and TOPS mean the same rate. Raises ValueError naming the unit expected.
    """
    if isinstance(text, bool):
        raise ValueError(f"expected {kind}, got {text!r}")
    if isinstance(text, (int, float)):
        try:
            return float(text)
        except OverflowError:
            raise ValueError(f"expected {kind}, got a number that is too large") from None
    match = _QUANTITY.match(text) if isinstance(text, str) else None
    if not match:
        raise ValueError(f"expected {kind} such as '{_EXAMPLE[kind]}', got {text!r}")
    unit = match[2] or ""
    factor = _factor(unit, kind) if unit else Decimal(1)
    if factor is None:
        raise ValueError(f"expected {kind} such as '{_EXAMPLE[kind]}', got the unit {unit!r} in {text!r}")
    try:
        return float(Decimal(match[1].replace("_", "")) * factor)
    except ArithmeticError:
        raise ValueError(f"the number in {text!r} is too large or too small") from None


def _factor(unit: str, kind: str) -> Decimal | None:
    if kind == SECONDS:
        return _TIMES.get(unit)
    for suffix in {
        BYTES: ("B", "bytes"),
        BYTES_PER_S: ("B/s",),
        FLOPS: ("FLOP/s", "FLOPS", "OPS", "OP/s"),
        WATTS: ("W",),
        HERTZ: ("Hz",),
    }[kind]:
        if unit.endswith(suffix):
            prefix = unit[: -len(suffix)]
            return _SCALES.get(prefix, _BINARY.get(prefix) if kind in (BYTES, BYTES_PER_S) else None)
    return None


def ceil_div(a: int, b: int) -> int:
    """The number of groups of `b` needed to hold `a` things."""
    return -(-a // b)


def to_ps(seconds: float) -> int:
    """Seconds on the engine's integer clock."""
    return round(seconds * PS_PER_S)


def to_s(picoseconds: int) -> float:
    """A time of the engine's clock, in seconds."""
    return picoseconds / PS_PER_S


def human_bytes(count: float) -> str:
    """Bytes as people read memory: GiB down to KiB."""
    for size, name in ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB")):
        if abs(count) >= size:
            return f"{count / size:.2f} {name}"
    return f"{count:.0f} B"
