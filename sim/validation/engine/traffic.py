"""What is asked of the small engine: arrivals of a Poisson process, or all at once, with lengths drawn evenly."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    """One request: when it arrives (seconds from the start), its prompt and its answer in tokens."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int


def poisson_requests(
    rate: float | None, count: int, seed: int, prompt_tokens: tuple[int, int], output_tokens: tuple[int, int]
) -> list[Asked]:
    """`count` requests at `rate` per second; all at time 0 where it is None. Lengths are even between limits."""
    draw, now, asked = random.Random(seed), 0.0, []
    for _ in range(count):
        now += draw.expovariate(rate) if rate else 0.0
        asked.append(Asked(now, draw.randint(*prompt_tokens), draw.randint(*output_tokens)))
    return asked
