"""Guesses of how long an answer will be, for policies that may not know it.

A replica asks when a request arrives and keeps the guess on the request (`Request.predicted_output_tokens`), so that
every policy sees the same one; it reports true lengths when requests complete. A guess lies between 1 and
`max_output_tokens`. With no predictor the guess is `max_output_tokens`.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from typing import Annotated, Protocol

import numpy as np
from pydantic import Field

from sim.request import Request
from sim.rng import stream

_BLOCK = 1024  # requests whose errors are drawn together, which is a hundred times cheaper than one by one


class LengthPredictor(Protocol):
    """Guesses output lengths in tokens; one object per replica."""

    def predict(self, request: Request) -> int:
        """Output tokens the request will have, from 1 to `max_output_tokens`."""
        ...

    def observe(self, request: Request) -> None:
        """A request has completed: its `emitted_tokens` are its true length."""
        ...


class OraclePredictor:
    """Knows the true length: what no server can do, and the bound on what prediction can bring."""

    def __init__(self, seed: int = 0) -> None:
        pass

    def predict(self, request: Request) -> int:
        """The true length."""
        return request._output_tokens

    def observe(self, request: Request) -> None:
        """Nothing to learn."""


class NoisyPredictor:
    """The true length times a log-normal error whose median is 1; `sigma` is the error's standard deviation in logs.

    0.5 means that two guesses in three are within a factor of 1.65. The error of a request depends on the seed and its
    id alone, not on who asks or when.
    """

    def __init__(self, seed: int = 0, *, sigma: Annotated[float, Field(ge=0, le=10)] = 0.5) -> None:
        self._seed, self._sigma = seed, sigma
        self._block, self._factors = -1, np.empty(0)

    def predict(self, request: Request) -> int:
        """The true length, wrongly."""
        block, place = divmod(request.id, _BLOCK)
        if block != self._block:
            errors = stream(self._seed, "predicted_output_tokens", block).standard_normal(_BLOCK)
            self._block, self._factors = block, np.exp(self._sigma * errors)
        return min(max(round(request._output_tokens * float(self._factors[place])), 1), request.max_output_tokens)

    def observe(self, request: Request) -> None:
        """Nothing to learn."""


class QuantilePredictor:
    """A quantile of the last `window` answers of this replica, whoever asked; before the first, the longest allowed.

    The idea of the past-future scheduler (Gong et al., ASPLOS 2025; from memory): output lengths of a service drift
    slowly, so its recent answers say how much memory the present ones will need.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        quantile: Annotated[float, Field(gt=0, le=1)] = 0.9,
        window: Annotated[int, Field(ge=1)] = 1000,
    ) -> None:
        self._quantile, self._window = quantile, window
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []

    def predict(self, request: Request) -> int:
        """The smallest recent length that at least the given share of them does not exceed."""
        if not self._sorted:
            return request.max_output_tokens
        guess = self._sorted[math.ceil(self._quantile * len(self._sorted)) - 1]
        return min(guess, request.max_output_tokens)

    def observe(self, request: Request) -> None:
        """The newest answer takes the place of the oldest."""
        if len(self._recent) == self._window:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(request.emitted_tokens)
        insort(self._sorted, request.emitted_tokens)
