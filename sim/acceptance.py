"""How many guessed tokens a verification accepts, drawn for every place of every answer."""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from sim.request import Request
from sim.rng import stream


class Acceptance:
    """Which guesses are right: a function of the seed, the sequence, and the place of the token in its answer.

    The guess at depth d behind an accepted one is right with probability `rates[d - 1]`, independently (Leviathan et
    al. 2023); with a tree, one of the guesses at that depth is. A verification emits
    the accepted guesses and one token of its own. `spread` is the standard deviation of one rate over sequences (a beta
    law), as easy and hard texts differ.
    """

    def __init__(self, seed: int, rates: tuple[float, ...], spread: float = 0.0) -> None:
        self._seed, self._rates, self._spread = seed, rates, spread

    def progress(self, request: Request) -> list[int]:
        """Tokens emitted after 0, 1, 2, ... verifications from what is emitted now to the end of the answer."""
        emitted, output = request.emitted_tokens, request._output_tokens
        draws = stream(self._seed, "acceptance", request.id).random(output)
        right = np.ones(output, dtype=np.int64)
        accepted = np.zeros(output, dtype=np.int64)
        for depth, rate in enumerate(self._rates_of(request.id)):
            inside = max(0, output - depth)  # places whose guess at this depth is still part of the answer
            right[:inside] &= draws[output - inside :] < rate
            right[inside:] = 0
            accepted += right
        steps, lengths = [0], accepted.tolist()
        at = emitted
        while at < output:
            step = lengths[at] + 1
            steps.append(step if at + step < output else output - at)
            at += step
        return list(accumulate(steps))

    def _rates_of(self, sequence: int) -> tuple[float, ...]:
        if not self._spread:
            return self._rates
        mean = self._rates[0]
        strength = mean * (1.0 - mean) / self._spread**2 - 1.0
        rng = stream(self._seed, "acceptance_rate", sequence)
        return (float(rng.beta(mean * strength, (1.0 - mean) * strength)),) * len(self._rates)


def expected_tokens(rates: tuple[float, ...]) -> float:
    """Mean tokens per verification: 1 + r1 + r1 r2 + ..., for one rate (1 - a^(k+1)) / (1 - a) (Leviathan)."""
    return 1.0 + sum(accumulate(rates, lambda a, b: a * b))
