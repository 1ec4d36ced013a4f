"""Robust fits of physical parameters to measured times, in log space, and honest scores on what was left out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

Floats = npt.NDArray[np.float64]
Params = TypeVar("Params")

OUTLIER_LOG_RATIO = 0.08
"""Beyond about 8 % a deviation counts linearly, not squared: isolated slow points (autotuning, clocks) remain."""
_AT_BOUND = 0.01
_JITTER = 0.4
_MOST_ROUNDS = 4
_SEARCH: dict[str, Any] = {"loss": "soft_l1", "f_scale": OUTLIER_LOG_RATIO, "diff_step": 5e-3, "max_nfev": 60}
_DIGITS = 4


@dataclass(frozen=True)
class Range:
    """Where the search for one parameter starts and the physical limits it stays within (all positive).

    `if_low` and `if_high` are the values that take the term out when the search ends at a limit; None keeps the limit.
    """

    start: float
    low: float
    high: float
    if_low: float | None = None
    if_high: float | None = None

    def settled(self, value: float) -> float | None:
        """What replaces `value` when it lies at a limit; None when it does not."""
        width = _AT_BOUND * math.log(self.high / self.low)
        if value <= self.low * math.exp(width):
            return self.low if self.if_low is None else self.if_low
        if value >= self.high * math.exp(-width):
            return self.high if self.if_high is None else self.if_high
        return None


def round_to(value: float, digits: int = _DIGITS) -> float:
    """`value` to so many significant digits: what the shipped files hold, and therefore what is scored."""
    return float(f"{value:.{digits}g}")


def fit_params(
    first_guess: Params,
    ranges: Mapping[str, Range],
    times_s: Callable[[Params], Floats],
    measured_s: Floats,
    *,
    restart: bool = True,
) -> Params:
    """`first_guess` with the fields in `ranges` fitted so that `times_s` comes closest to `measured_s`.

    `restart` searches a second time from a shaken guess, against local minima.

    A parameter that ends at a limit is one the data cannot tell: it takes its settled value and the others are fitted
    again. Values are rounded as they will be shipped.
    """
    free, params = dict(ranges), first_guess
    for _ in range(_MOST_ROUNDS):
        params = _search(params, free, times_s, np.log(measured_s), (0.0, _JITTER) if restart else (0.0,))
        settled = {n: limits.settled(getattr(params, n)) for n, limits in free.items()}
        stuck = {name: value for name, value in settled.items() if value is not None}
        params = replace(params, **stuck)  # type: ignore[type-var]
        free = {name: limits for name, limits in free.items() if name not in stuck}
        if not stuck:
            break
    return replace(params, **{n: round_to(getattr(params, n)) for n in ranges})  # type: ignore[type-var]


def _search(
    params: Params,
    free: Mapping[str, Range],
    times_s: Callable[[Params], Floats],
    log_measured: Floats,
    shakes: Sequence[float],
) -> Params:
    low, high = (np.log([getattr(limits, side) for limits in free.values()]) for side in ("low", "high"))

    def trial(logs: Floats) -> Params:
        return replace(params, **dict(zip(free, map(float, np.exp(logs)), strict=True)))  # type: ignore[type-var]

    def search(start: Floats) -> Any:
        inside = np.clip(start, low + 1e-6, high - 1e-6)
        return least_squares(lambda z: np.log(times_s(trial(z))) - log_measured, inside, bounds=(low, high), **_SEARCH)

    centre = np.log([np.clip(getattr(params, n), limits.low, limits.high) for n, limits in free.items()])
    noise = np.random.default_rng(1).standard_normal(len(free))
    return trial(min((search(centre + shake * noise) for shake in shakes), key=lambda found: found.cost).x)


def starting_point(neutral: Params, ranges: Mapping[str, Range]) -> Params:
    """`neutral` with every fitted field where its search starts."""
    return replace(neutral, **{name: limits.start for name, limits in ranges.items()})  # type: ignore[type-var]


@dataclass(frozen=True)
class Score:
    """How far predictions are from measurements, in per cent. `bias_pct` is that of the geometric mean."""

    n: int
    mape_pct: float
    median_pct: float
    p90_pct: float
    bias_pct: float


def score(predicted_s: Floats, measured_s: Floats) -> Score:
    """Score of predictions; all zero for none."""
    if len(measured_s) == 0:
        return Score(0, 0.0, 0.0, 0.0, 0.0)
    off = 100 * np.abs(predicted_s / measured_s - 1)
    bias = 100 * (np.exp(np.mean(np.log(predicted_s / measured_s))) - 1)
    return Score(len(off), *(float(v) for v in (off.mean(), np.median(off), np.quantile(off, 0.9), bias)))


def folds(keys: Sequence[tuple[Any, ...]], count: int) -> Iterator[tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]]:
    """(train, left out) masks; rows with the same key always fall on the same side.

    The side is a hash of the key, so that it depends neither on the order of rows nor on the GPU.
    """
    fold = np.array([int(hashlib.sha256(repr(key).encode()).hexdigest()[:8], 16) % count for key in keys])
    for i in range(count):
        if 0 < (fold == i).sum() < len(fold):
            yield fold != i, fold == i
