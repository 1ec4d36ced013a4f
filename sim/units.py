"""Units are written by people and read once, here; inside the package everything is SI (seconds, bytes, FLOP/s)."""

from __future__ import annotations

import re

PS_PER_S = 10**12
"""The engine's clock counts integer picoseconds, so sums of step times are exact in any order."""

GB, GIB = 10**9, 2**30

_SCALES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0}
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
        return float(text)
    match = _QUANTITY.match(text)
    if not match:
        raise ValueError(f"expected {kind} such as '{_EXAMPLE[kind]}', got {text!r}")
    number, unit = float(match[1].replace("_", "")), match[2] or ""
    factor = _factor(unit, kind) if unit else 1.0
    if factor is None:
        raise ValueError(f"expected {kind} such as '{_EXAMPLE[kind]}', got the unit {unit!r} in {text!r}")
    return number * factor


def _factor(unit: str, kind: str) -> float | None:
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
