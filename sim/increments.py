"""A sum that changes by known amounts at known steps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_LEAST = 1024


class Increments:
    """How much is added at each step to come; steps that are over are forgotten.

    Adding a member's future costs one numpy operation, and taking a step one look-up.
    """

    __slots__ = ("_amounts", "_first")

    def __init__(self) -> None:
        self._first = 0
        self._amounts: npt.NDArray[np.int64] = np.zeros(_LEAST, dtype=np.int64)

    def add(self, step: int, amounts: npt.NDArray[np.int64]) -> None:
        """`amounts[i]` more at step `step + i`."""
        begin = step - self._first
        end = begin + len(amounts)
        if end > len(self._amounts):
            longer = np.zeros(max(end, 2 * len(self._amounts)), dtype=np.int64)
            longer[: len(self._amounts)] = self._amounts
            self._amounts = longer
        self._amounts[begin:end] += amounts

    def at(self, step: int) -> int:
        """What is added at a step."""
        index = step - self._first
        return int(self._amounts[index]) if index < len(self._amounts) else 0

    def between(self, step: int, steps: int) -> int:
        """What is added at `steps` steps from `step` on."""
        begin = step - self._first
        return int(self._amounts[begin : begin + steps].sum())

    def forget(self, step: int) -> None:
        """Steps before this one are over."""
        over = step - self._first
        if over > len(self._amounts) // 2:
            kept = self._amounts[over:]
            self._amounts = np.zeros(max(_LEAST, len(kept)), dtype=np.int64)
            self._amounts[: len(kept)] = kept
            self._first = step
