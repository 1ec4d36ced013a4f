"""What request number i of a synthetic workload looks like: its lengths and what its prompt shares with others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count, repeat
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sim.request import NO_TRAITS, Traits
from sim.rng import stream
from sim.workloads.arrivals import CHUNK
from sim.workloads.lengths import LengthLaw, TokenCount, Tokens, law

HASH_BLOCK_TOKENS = 16
Row = tuple[int, int, int | None, Traits]
Columns = tuple[Iterator[int], Iterator[int], Iterator[int | None], Iterator[Traits]]


class RequestRows(Protocol):
    """Where the lengths of request 0, 1, 2, ... come from, whenever they are sent: laws, or the rows of a trace."""

    @property
    def has_prefixes(self) -> bool:
        """Whether a prompt may say what it shares with others."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user."""
        ...

    def rows(self, seed: int) -> Iterator[Row]:
        """The last four arguments of `Request`: prompt tokens, output tokens, max_output_tokens, traits."""
        ...

    def columns(self, seed: int) -> Columns:
        """The same as four iterators, so that requests can be made without a Python loop."""
        ...

    def describe(self) -> dict[str, Any]:
        """What these requests are, ready for JSON."""
        ...


class SharedPrefix(BaseModel):
    """A system prompt in front of every prompt (`--random-prefix-len` of `vllm bench serve`, with groups).

    Each request belongs to one of `groups` equally likely applications, and all requests of one begin with the same
    `tokens` tokens. They come on top of `input_tokens`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    tokens: TokenCount = Field(description="length of the shared beginning, added to input_tokens")
    groups: int = Field(default=1, ge=1, le=1_000_000, description="number of different beginnings")

    @property
    def blocks(self) -> int:
        """Whole blocks of 16 tokens: only they have an identity."""
        return self.tokens // HASH_BLOCK_TOKENS

    def traits(self, seed: int) -> Iterator[Traits]:
        """The traits of request 0, 1, 2, ..."""
        blocks = self.blocks
        kinds = [
            Traits(
                prefix_hashes=tuple(range(group * blocks, (group + 1) * blocks)), prefix_block_tokens=HASH_BLOCK_TOKENS
            )
            for group in range(self.groups)
        ]
        for chunk in count():
            yield from map(kinds.__getitem__, stream(seed, "prefix_group", chunk).integers(self.groups, size=CHUNK))


@dataclass(frozen=True)
class Sizes:
    """Lengths and traits of request 0, 1, 2, ...: each a function of (seed, request number) alone.

    `max_output_tokens` is what every client asks for (`max_tokens` of the API) and where its answer is cut; None means
    that each asks for exactly what it will get.
    """

    input_tokens: int | LengthLaw
    output_tokens: int | LengthLaw
    max_output_tokens: int | None = None
    shared_prefix: SharedPrefix | None = None

    @property
    def has_prefixes(self) -> bool:
        """Only with a shared beginning of at least one hash block."""
        return self.shared_prefix is not None and self.shared_prefix.tokens >= HASH_BLOCK_TOKENS

    @property
    def notes(self) -> tuple[str, ...]:
        """Nothing is dropped or assumed."""
        return ()

    def rows(self, seed: int) -> Iterator[Row]:
        """The last four arguments of `Request`, without end."""
        return zip(*self.columns(seed), strict=False)

    def columns(self, seed: int) -> Columns:
        """The same as four iterators."""
        prefix = self.shared_prefix
        prompts, outputs = self._lengths(seed)
        if prefix is not None:
            prompts = (chunk + prefix.tokens for chunk in prompts)
        traits = repeat(NO_TRAITS) if prefix is None else prefix.traits(seed)
        return _flat(prompts), _flat(outputs), repeat(self.max_output_tokens), traits

    def turns(self, seed: int) -> Iterator[tuple[int, int]]:
        """What each turn of a conversation adds, and the answer to it, without end."""
        prompts, outputs = self._lengths(seed)
        return zip(_flat(prompts), _flat(outputs), strict=False)

    def _lengths(self, seed: int) -> tuple[Iterator[Tokens], Iterator[Tokens]]:
        prompts = _draws(law(self.input_tokens), seed, "input_tokens")
        outputs = _draws(law(self.output_tokens), seed, "output_tokens")
        if self.max_output_tokens is not None:
            outputs = (np.minimum(chunk, self.max_output_tokens) for chunk in outputs)
        return prompts, outputs

    def describe(self) -> dict[str, Any]:
        """Mean lengths in tokens: prompts with their shared beginning, answers before they are cut."""
        prefix = self.shared_prefix
        return {
            "kind": "synthetic",
            "mean_input_tokens": law(self.input_tokens).mean_tokens + (prefix.tokens if prefix else 0),
            "mean_output_tokens": law(self.output_tokens).mean_tokens,
            "max_output_tokens": self.max_output_tokens,
            "shared_prefix": prefix.model_dump() if prefix else None,
        }


def _draws(lengths: LengthLaw, seed: int, name: str) -> Iterator[Tokens]:
    return (lengths.draw(stream(seed, name, chunk), CHUNK) for chunk in count())


def _flat(chunks: Iterator[Tokens]) -> Iterator[int]:
    return chain.from_iterable(chunk.tolist() for chunk in chunks)
