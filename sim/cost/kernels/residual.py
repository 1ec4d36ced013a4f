"""What a physical formula leaves over: a small table of log ratios, interpolated linearly in the logarithm of sizes."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Sheet:
    """log(measured / formula) over one or two sizes, at knots; beyond the outer knots the edge value holds."""

    axes: tuple[tuple[str, tuple[float, ...]], ...]
    values: tuple[float, ...]

    @cached_property
    def _log_knots(self) -> list[tuple[str, list[float]]]:
        return [(name, [math.log(knot) for knot in knots]) for name, knots in self.axes]

    def log_ratio(self, log_sizes: Mapping[str, float]) -> float:
        """The interpolated value at sizes given by their logarithms."""
        values, axes = self.values, self._log_knots
        name, knots = axes[0]
        i, across = _locate(log_sizes[name], knots)
        if len(axes) == 1:
            return values[i] + across * (values[i + 1] - values[i])
        name, knots = axes[1]
        j, along = _locate(log_sizes[name], knots)
        at, width = i * len(knots) + j, len(knots)
        near = values[at] + along * (values[at + 1] - values[at])
        far = values[at + width] + along * (values[at + width + 1] - values[at + width])
        return near + across * (far - near)


def _locate(x: float, knots: list[float]) -> tuple[int, float]:
    """The cell of `x` and how far into it, at most 1."""
    if x <= knots[0]:
        return 0, 0.0
    if x >= knots[-1]:
        return len(knots) - 2, 1.0
    low = bisect_right(knots, x) - 1
    return low, (x - knots[low]) / (knots[low + 1] - knots[low])


@dataclass(frozen=True)
class ResidualTable:
    """A sum of sheets; the empty table corrects nothing."""

    sheets: tuple[Sheet, ...] = ()

    @cached_property
    def axis_names(self) -> tuple[str, ...]:
        """The sizes this table needs."""
        return tuple(sorted({name for sheet in self.sheets for name, _ in sheet.axes}))

    def factor(self, sizes: Mapping[str, float]) -> float:
        """What to multiply the formula's time by."""
        if not self.sheets:
            return 1.0
        logs = {name: math.log(sizes[name]) for name in self.axis_names}
        return math.exp(sum(sheet.log_ratio(logs) for sheet in self.sheets))


NO_RESIDUAL = ResidualTable()
