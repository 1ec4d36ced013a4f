"""What a step's time depends on: the aggregates of a batch, as integers. Physics knows no request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

NOTHING_SHARED = (0, 0)
Chunk = tuple[int, int]
"""A piece of one prompt computed in one step: (tokens already in the cache, new tokens)."""


class Span(NamedTuple):
    """How far back a kind of attention layer sees: the last `tokens` tokens, or those of the current chunk.

    A token sees itself, so a window of W tokens reads W - 1 cached ones (as transformers masks it; from memory).
    """

    tokens: int
    chunked: bool = False

    @property
    def full(self) -> int:
        """Cached tokens at which a window stops growing, or at which the next chunk begins."""
        return self.tokens if self.chunked else self.tokens - 1

    def visible(self, context_tokens: int) -> int:
        """Cached tokens that a new token can see behind `context_tokens` others."""
        return context_tokens % self.tokens if self.chunked else min(context_tokens, self.tokens - 1)

    def pairs(self, cached_tokens: int, new_tokens: int) -> int:
        """Query-key pairs of a chunk: each new token with those it sees, itself included."""
        limit = self.tokens
        if self.chunked:
            return self._triangles(cached_tokens + new_tokens) - self._triangles(cached_tokens)
        growing = max(0, min(new_tokens, limit - cached_tokens))
        return growing * cached_tokens + (growing * (growing + 1) >> 1) + (new_tokens - growing) * limit

    def _triangles(self, tokens: int) -> int:
        whole, rest = divmod(tokens, self.tokens)
        return whole * (self.tokens * (self.tokens + 1) >> 1) + (rest * (rest + 1) >> 1)


class RunShape:
    """The batch of a step, or of the first of many steps in which only the contexts of `decodes` sequences grow.

    One object per replica, refilled for every plan: the hot path makes no new ones.
    """

    __slots__ = ("chunks", "context_tokens", "decodes", "images", "local_growth", "local_tokens", "shared")

    def __init__(
        self,
        decodes: int = 0,
        context_tokens: int = 0,
        chunks: Sequence[Chunk] = (),
        local_tokens: Sequence[int] = (),
        local_growth: Sequence[int] = (),
        shared: Sequence[int] = NOTHING_SHARED,
    ) -> None:
        self.decodes = decodes
        """Sequences that take part with one token each."""
        self.context_tokens = context_tokens
        """Sum of their cached tokens before the first step; grows by `decodes` per step."""
        self.chunks = chunks
        self.local_tokens = local_tokens
        """Per attention span of the model (`ModelArchitecture.spans`): the sum of the cached tokens that a sequence
        can see through it."""
        self.local_growth = local_growth
        """By how much each of these sums grows per step: the sequences that have not filled the span."""
        self.shared = shared
        """Of the context: tokens in prefixes that several sequences see, stored once and counted for each of them."""

        self.images = 0
        """Images that are encoded in a step with chunks, before them."""

    @property
    def new_tokens(self) -> int:
        """Rows of every matrix product in the step: one per decode, and the tokens of the chunks."""
        return self.decodes + sum([new for _, new in self.chunks])

    @property
    def longest_chunk(self) -> int:
        """New tokens of the longest chunk."""
        return max([new for _, new in self.chunks], default=0)

    def __repr__(self) -> str:
        return f"RunShape(decodes={self.decodes}, context={self.context_tokens}, chunks={list(self.chunks)})"
