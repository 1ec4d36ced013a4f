"""Blocks on demand: PagedAttention (Kwon et al., SOSP 2023)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar

from pydantic import Field

from sim.errors import InvariantError
from sim.kv.base import GRANTED, Grant, KVUsage
from sim.request import Request
from sim.units import ceil_div

Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
"""A share of all blocks."""
GROWING = -1
"""In `Request.reserved_tokens`: the request decodes, and what it holds follows from its context."""


class PagedKV:
    """Fixed-size blocks, taken when a token needs one, freed when its request ends.

    The growth of all decoding requests is one histogram: `_due[p]` counts those that open a new block in a step of
    phase p (steps done, modulo the block size). It is stored twice over, which saves the modulo within one round.
    `fixed_blocks` is what every admitted request holds besides: the states of linear attention, and layers that keep
    a window only. `watermark`: the share of all blocks that an admission leaves free for growth (vLLM V0: 0.01, from
    memory), unless nobody holds any.
    """

    __slots__ = (
        "_due", "_fixed", "_growing", "_parked", "_period", "_phase", "_watermark", "block_tokens", "free_blocks",
        "parked_blocks", "shared_blocks", "stored_tokens", "total_blocks",
    )  # fmt: skip
    stranded_blocks: ClassVar[int] = 0

    def __init__(self, total_blocks: int, block_tokens: int, fixed_blocks: int = 0, *, watermark: Share = 0.0) -> None:
        self.total_blocks = self.free_blocks = total_blocks
        self.block_tokens, self._fixed = block_tokens, fixed_blocks
        self._watermark = int(watermark * total_blocks)
        self._period = block_tokens  # steps after which a growing request needs blocks again
        self._due = [0] * (2 * block_tokens)
        self._phase = self._growing = self.stored_tokens = self.parked_blocks = self.shared_blocks = 0
        self._parked: dict[Request, int] = {}  # tokens of requests that are being copied elsewhere

    def blocks_for(self, request: Request) -> int:
        """Blocks of the prompt and the longest output the client allows."""
        tokens = request.prompt_tokens + request.max_output_tokens
        return (tokens + self.block_tokens - 1) // self.block_tokens + self._fixed

    def find_cached(self, request: Request, after: int = 0) -> int:
        """None: what a request leaves behind is forgotten."""
        return 0

    def can_reserve(self, request: Request, tokens: int) -> bool:
        """Whether the blocks of a new request's `tokens` are free, beside those that growth needs next."""
        need = (tokens + self.block_tokens - 1) // self.block_tokens + self._fixed
        return need <= self._admissible()

    def reserve(self, request: Request, tokens: int) -> Grant | None:
        """Blocks for the tokens that the last block of the request has no room for."""
        size, have = self.block_tokens, request.computed_tokens
        need = (have + tokens + size - 1) // size - (have + size - 1) // size
        if request.reserved_tokens:
            spare = self.free_blocks - self._due[self._phase]
        else:
            need += self._fixed
            spare = self._admissible()
        if need > spare:
            return None
        self.free_blocks -= need
        self.stored_tokens += tokens
        request.reserved_tokens = have + tokens
        return GRANTED

    def grow(self, request: Request) -> None:
        """From the next step on this request adds a token per step to those it has computed."""
        request.reserved_tokens = GROWING
        self._count(request.computed_tokens, 1)

    def shortage(self) -> int:
        """Blocks missing for one more token of every growing request."""
        missing = self._due[self._phase] - self.free_blocks
        return missing if missing > 0 else 0

    def growth_limit(self, steps: int) -> int:
        """Whole rounds of `block_tokens` steps take one block per growing request; the rest follows the histogram."""
        n, free, size = self._growing, self.free_blocks, self._period
        if n == 0 or free >= n * (steps // size + 1):
            return steps
        k, rest, p = free // n * size, free % n, self._phase
        while k < steps and rest >= self._due[p]:
            rest -= self._due[p]
            p += 1
            k += 1
        return min(k, steps)

    def used_after(self, steps: int) -> int:
        """In closed form, for readers of a run that is under way."""
        return self.total_blocks - self.free_blocks + self._grown(steps)

    def stored_after(self, steps: int) -> int:
        """Every growing request stores a token per step."""
        return self.stored_tokens + steps * self._growing

    def advance(self, steps: int) -> None:
        """Commit the growth of a run in one go."""
        phase = self._phase
        self.free_blocks -= self._due[phase] if steps == 1 else self._grown(steps)
        self.stored_tokens += steps * self._growing
        self._phase = (phase + steps) % self.block_tokens

    def release(self, request: Request) -> None:
        """Free the blocks of a request that is parked, or prefills, or decodes and has left the batch."""
        if self._parked and request in self._parked:
            self._free_parked(request)
            return
        held, reserved = request.computed_tokens, request.reserved_tokens
        if reserved == GROWING:
            self._count(held, -1)
        elif reserved > held:
            held = reserved
        if reserved:
            blocks = (held + self.block_tokens - 1) // self.block_tokens
            self.free_blocks += blocks + self._fixed
            request.unused_tokens = blocks * self.block_tokens - held
        self.stored_tokens -= held
        request.reserved_tokens = 0

    def park(self, request: Request) -> None:
        """Its blocks stay in use under the allocator's own account."""
        held = request.computed_tokens
        if request.reserved_tokens == GROWING:
            self._count(held, -1)
        self._parked[request] = held = max(held, request.reserved_tokens)
        self.parked_blocks += ceil_div(held, self.block_tokens) + self._fixed
        request.reserved_tokens = 0

    def restore(self, request: Request) -> Grant | None:
        """Blocks for what was computed, if its next token has room as well."""
        tokens, size = request.computed_tokens, self.block_tokens
        need = ceil_div(tokens, size) + self._fixed
        if request in self._parked or need + (tokens % size == 0) > self._admissible():
            return None
        self.free_blocks -= need
        self.stored_tokens += tokens
        request.reserved_tokens = tokens
        return GRANTED

    def usage(self) -> KVUsage:
        """Blocks in use, and how much of them is filled."""
        return KVUsage(self.total_blocks, self.used_after(0), self.block_tokens, self.stored_tokens)

    def check(self, holders: Iterable[tuple[Request, int]]) -> None:
        """Free and held blocks add up, and the histogram counts exactly the growing requests."""
        if self.shared_blocks:
            raise InvariantError(f"{self.shared_blocks} shared KV blocks too many are counted")
        held, growing = self.parked_blocks, 0
        for request, tokens in holders:
            growing += request.reserved_tokens == GROWING
            held += ceil_div(max(tokens, request.reserved_tokens), self.block_tokens) + self._fixed
        if held + self.free_blocks != self.total_blocks or growing != self._growing or sum(self._due) != 2 * growing:
            raise InvariantError(
                f"KV blocks do not add up: {held} held by requests ({growing} growing) + {self.free_blocks} free "
                f"!= {self.total_blocks} in all ({self._growing} growing in the histogram)"
            )

    def _admissible(self) -> int:
        """Blocks that a new request may take."""
        spare = self.free_blocks - self._due[self._phase]
        return spare - self._watermark if self._watermark and self.free_blocks < self.total_blocks else spare

    def _free_parked(self, request: Request) -> None:
        tokens = self._parked.pop(request)
        blocks = ceil_div(tokens, self.block_tokens) + self._fixed
        self.parked_blocks -= blocks
        self.free_blocks += blocks
        self.stored_tokens -= tokens

    def _grown(self, steps: int) -> int:
        p = self._phase
        if steps == 1:
            return self._due[p]
        rounds, rest = divmod(steps, self._period)
        return rounds * self._growing + sum(self._due[p : p + rest])

    def _count(self, tokens: int, sign: int) -> None:
        p = (self._phase - tokens) % self.block_tokens
        self._due[p] += sign
        self._due[p + self.block_tokens] += sign
        self._growing += sign
