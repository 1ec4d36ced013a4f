"""Whether to copy what a tier knows of a prompt, or to compute it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from sim.units import PS_PER_S, ceil_div

LoadPolicy = Literal["always", "never", "cheaper"]


class LoadRule:
    """`cheaper`: copy when that takes less time than computing the same tokens, both without a queue.

    Copies from different tiers run side by side. `prefill_ps(cached, new)` is the time of a step with nothing but these
    tokens; `rates` are bytes per second and latency (ps) of each tier.
    """

    def __init__(
        self,
        policy: LoadPolicy,
        rates: Sequence[tuple[int, int]],
        block_bytes: int,
        block_tokens: int,
        prefill_ps: Callable[[int, int], int],
    ) -> None:
        self._policy, self._rates, self._prefill_ps = policy, rates, prefill_ps
        self._block_bytes, self._block_tokens = block_bytes, block_tokens

    def __call__(self, cached_tokens: int, parts: Sequence[int]) -> bool:
        """Whether so many blocks of each tier are worth it, behind so many tokens in the GPU's cache."""
        if self._policy != "cheaper":
            return self._policy == "always"
        return self.load_ps(parts) < self._prefill_ps(cached_tokens, sum(parts) * self._block_tokens)

    def load_ps(self, parts: Sequence[int]) -> int:
        """The time of the copies."""
        return max(
            latency_ps + ceil_div(blocks * self._block_bytes * PS_PER_S, bytes_per_s) if blocks else 0
            for blocks, (bytes_per_s, latency_ps) in zip(parts, self._rates, strict=True)
        )
