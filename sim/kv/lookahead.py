"""Paged blocks for sequences that advance by several tokens per step, with room for the guesses that are verified."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.errors import InvariantError
from sim.increments import Increments
from sim.kv.paged import GROWING, PagedKV
from sim.request import Request
from sim.units import ceil_div

Progress = Callable[[Request], list[int]]
"""Tokens a request that decodes from now on will have added after 0, 1, 2, ... steps."""


class _Growing:
    """A request that decodes: blocks and tokens it holds after 0, 1, 2, ... steps from `start` on."""

    __slots__ = ("blocks", "start", "tokens")

    def __init__(self, start: int, tokens: npt.NDArray[np.int64], blocks: npt.NDArray[np.int64]) -> None:
        self.start, self.tokens, self.blocks = start, tokens, blocks


class LookaheadKV(PagedKV):
    """As `PagedKV`, but before each step a growing request has room for `query_tokens` more than it has computed.

    Room for guesses that were wrong is filled by the next step (vLLM's lookahead slots). What each step needs is known
    when a request begins to grow, so a step costs the same whatever their number.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._requests: dict[Request, _Growing] = {}
        self._needs, self._stores = Increments(), Increments()
        self._steps = 0
        self._due, self._phase = [0], 0
        self.query_tokens = 1
        self.progress: Progress = lambda request: []

    def grow(self, request: Request) -> None:
        """From the next step on this request advances as `progress` says."""
        request.reserved_tokens = GROWING
        tokens = request.computed_tokens + np.array(self.progress(request), dtype=np.int64)
        longest = request.prompt_tokens + request.max_output_tokens
        held = np.append(tokens[0], np.minimum(tokens[:-1] + self.query_tokens, max(longest, int(tokens[-1]))))
        growing = _Growing(self._steps, tokens, -(-held // self.block_tokens))
        self._requests[request] = growing
        self._plan(growing, 0, 1)
        self._growing += 1

    def growth_limit(self, steps: int) -> int:
        """One step, if its blocks are free."""
        return min(steps, 1) if self._due[0] <= self.free_blocks else 0

    def stored_after(self, steps: int) -> int:
        """Tokens that will have been kept."""
        return self.stored_tokens + self._stores.between(self._steps, steps)

    def advance(self, steps: int) -> None:
        """Commit steps; room for the guesses of each was taken before it."""
        self.free_blocks -= self._grown(steps)
        self.stored_tokens += self._stores.between(self._steps, steps)
        self._steps += steps
        self._needs.forget(self._steps)
        self._stores.forget(self._steps)
        self._due[0] = self._needs.at(self._steps)

    def release(self, request: Request) -> None:
        """Free the blocks of a request that prefills, or decodes and has left the batch."""
        growing = self._requests.pop(request, None)
        if growing is None:
            super().release(request)
            return
        done = self._steps - growing.start
        self._plan(growing, done, -1)
        self._growing -= 1
        blocks, tokens = int(growing.blocks[done]), int(growing.tokens[done])
        self.free_blocks += blocks + self._fixed
        self.stored_tokens -= tokens
        request.unused_tokens = blocks * self.block_tokens - tokens
        request.reserved_tokens = 0

    def park(self, request: Request) -> None:
        """Copies elsewhere do not go with guesses."""
        raise InvariantError(f"{request} cannot be copied while its tokens are guessed")

    def check(self, holders: Iterable[tuple[Request, int]]) -> None:
        """Free and held blocks add up, and the next step needs what the growing requests need."""
        held, due, growing = 0, 0, 0
        for request, tokens in holders:
            found = self._requests.get(request)
            if found is None:
                held += ceil_div(max(tokens, request.reserved_tokens), self.block_tokens) + self._fixed
                continue
            done = self._steps - found.start
            growing += 1
            held += int(found.blocks[done]) + self._fixed
            due += int(found.blocks[done + 1] - found.blocks[done]) if done + 1 < len(found.blocks) else 0
            if tokens != found.tokens[done]:
                raise InvariantError(f"{request} has {tokens} tokens, but {found.tokens[done]} have room")
        if held + self.free_blocks != self.total_blocks or due != self._due[0] or growing != self._growing:
            raise InvariantError(
                f"KV blocks do not add up: {held} held + {self.free_blocks} free != {self.total_blocks} in all, "
                f"{due} due next, not {self._due[0]}, for {growing} growing requests, not {self._growing}"
            )

    def _plan(self, growing: _Growing, done: int, sign: int) -> None:
        """Count a request into (or out of) the steps it has still to take."""
        self._needs.add(self._steps, sign * np.diff(growing.blocks[done:]))
        self._stores.add(self._steps, sign * np.diff(growing.tokens[done:]))
        self._due[0] = self._needs.at(self._steps)

    def _grown(self, steps: int) -> int:
        return self._needs.between(self._steps, steps)


def with_lookahead(make: type[PagedKV]) -> type[LookaheadKV]:
    """The same allocator for sequences whose next tokens are guessed."""
    if not issubclass(LookaheadKV, make):
        return type(f"Lookahead{make.__name__}", (make, LookaheadKV), {})
    return LookaheadKV
