"""One formula for two callers: plain numbers when a step is priced, numpy arrays when a formula is fitted.

Cost formulas use operators plus the few functions below. Pricing passes SCALAR (this file needs no numpy); fitting
passes a twin of array functions. So the fitted formula and the shipped one cannot drift apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

Number = Any
"""An int or float, or an array of them: whichever the `Arithmetic` in use works on."""

_TINY_S = 1e-12
L2_STEEPNESS = 6
THROTTLE_AFTER_S = 500e-6
"""How sharply the share served from L2 falls when the data outgrow it (measured: a factor 2 in size, 33 to 67 MB)."""


class Arithmetic(NamedTuple):
    """The functions a formula may use beside operators."""

    maximum: Callable[[Number, Number], Number]
    minimum: Callable[[Number, Number], Number]
    where: Callable[[Number, Number, Number], Number]
    every: Callable[[Number], bool]
    exp: Callable[[Number], Number]


def _where(condition: bool, yes: float, no: float) -> float:
    return yes if condition else no


SCALAR = Arithmetic(max, min, _where, bool, math.exp)


class Terms(NamedTuple):
    """What a kernel's time is made of, in seconds.

    `parts` are its contributors by name; `bound` names the largest of those that overlap (or `launch`, when the fixed
    cost exceeds them all).
    """

    seconds: float
    bound: str
    parts: dict[str, float]


def terms(seconds: float, parts: dict[str, float]) -> Terms:
    """Terms whose bound is the largest part."""
    return Terms(seconds, max(parts, key=lambda name: parts[name]), parts)


def smooth_max(a: Number, b: Number, power: float, ops: Arithmetic) -> Number:
    """The time of two activities that overlap: their maximum, rounded off where they are close.

    (a^p + b^p)^(1/p): p = 1 is one after the other, large p a perfect overlap.
    """
    large = ops.maximum(ops.maximum(a, b), _TINY_S)
    small = ops.minimum(a, b)
    return large * (1.0 + (small / large) ** power) ** (1.0 / power)


def l2_resident_share(footprint_bytes: Number, capacity_bytes: float) -> Number:
    """Share of repeated traffic that the L2 serves when a benchmark touches `footprint_bytes` again and again."""
    return 1.0 / (1.0 + (footprint_bytes / capacity_bytes) ** L2_STEEPNESS)


def ceil_div(a: Number, b: Number) -> Number:
    """Groups of `b` needed to hold `a` (whole numbers; arrays allowed)."""
    return -(-a // b)
