"""What a step's time depends on: the aggregates of a batch, as integers. Physics knows no request."""

from __future__ import annotations

from typing import NamedTuple


class Chunk(NamedTuple):
    """A piece of one prompt computed in one step: `new_tokens` after `cached_tokens` that are already in the cache."""

    cached_tokens: int
    new_tokens: int


class RunShape:
    """The batch of a step, or of the first of many steps in which only the contexts of `decodes` sequences grow.

    One object per replica, refilled for every plan: the hot path makes no new ones.
    """

    __slots__ = ("chunks", "context_tokens", "decodes", "local_growth", "local_tokens")

    def __init__(
        self,
        decodes: int = 0,
        context_tokens: int = 0,
        chunks: tuple[Chunk, ...] | list[Chunk] = (),
        local_tokens: tuple[int, ...] | list[int] = (),
        local_growth: tuple[int, ...] | list[int] = (),
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

    @property
    def new_tokens(self) -> int:
        """Rows of every matrix product in the step: one per decode, and the tokens of the chunks."""
        return self.decodes + sum(chunk.new_tokens for chunk in self.chunks)

    def __repr__(self) -> str:
        return f"RunShape(decodes={self.decodes}, context={self.context_tokens}, chunks={list(self.chunks)})"
