"""Error bars of a step: how far kernel predictions were off, carried to the sum of a step's operators.

All kernels of a class are taken to be off by the same factor (their errors share causes: clocks, library versions), the
classes independently of each other.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Quantiles = Mapping[float, float]
"""Quantiles of log(measured / predicted), by probability."""

DATASHEET_ERRORS: Quantiles = {0.05: -0.3, 0.5: 0.0, 0.95: 0.3}
"""For classes without a calibration. A feasibility study that fitted the three fall-back constants to kernel tables of
A100, H100 and H200 was off by 8 to 20 % on average there; on a GPU nobody has measured they are worse."""

_DRAWS = 4096
_SEED = 20240229


def draw_factors(errors: Mapping[str, Quantiles], generator: np.random.Generator) -> dict[str, float]:
    """One factor per operator class for one repetition of a run: multiply that class's times by it."""
    return {name: float(np.exp(_inverse(errors[name], generator.random(1))[0])) for name in sorted(errors)}


def step_interval(
    seconds: Mapping[str, float], errors: Mapping[str, Quantiles], level: float = 0.9
) -> tuple[float, float]:
    """The interval that holds the step's true time with probability `level`.

    `seconds` is the predicted time of each operator class; classes without an error distribution count as exact.
    """
    generator = np.random.default_rng(_SEED)
    total = np.zeros(_DRAWS)
    for name in sorted(seconds):
        quantiles = errors.get(name)
        factor = np.exp(_inverse(quantiles, generator.permutation(_strata()))) if quantiles else 1.0
        total = total + seconds[name] * factor
    tail = (1 - level) / 2
    low, high = np.quantile(total, [tail, 1 - tail])
    return float(low), float(high)


def _strata() -> Floats:
    """Evenly spread probabilities: each class is sampled exactly according to its distribution."""
    return (np.arange(_DRAWS) + 0.5) / _DRAWS


def _inverse(quantiles: Quantiles, probability: Floats) -> Floats:
    """The inverse distribution function: linear between the known quantiles, flat beyond them."""
    known = sorted(quantiles)
    return np.interp(probability, known, [quantiles[q] for q in known])
