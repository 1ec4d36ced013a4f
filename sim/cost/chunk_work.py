"""Prompt chunks of one step as what an attention kernel is asked to do."""

from __future__ import annotations

from collections.abc import Sequence

from sim.cost.roofline import PrefillWork
from sim.cost.shape import Chunk, Span


def fullest_lane(chunks: Sequence[Chunk], lanes: int) -> list[Chunk]:
    """The chunks of the lane with most new tokens, when each goes to the emptiest lane, the longest first."""
    dealt: list[list[Chunk]] = [[] for _ in range(min(lanes, len(chunks)))]
    load = [0] * len(dealt)
    for chunk in sorted(chunks, key=lambda chunk: (-chunk[1], -chunk[0])):
        lane = load.index(min(load))
        dealt[lane].append(chunk)
        load[lane] += chunk[1]
    return dealt[load.index(max(load))]


def work_of(chunks: Sequence[Chunk], span: Span | None) -> PrefillWork:
    """The sums over chunks that a kernel's time depends on, in layers that see as far as `span` says."""
    new = pairs = context = longest = 0
    for cached, tokens in chunks:
        new += tokens
        longest = max(longest, tokens)
        if span is None:
            pairs += tokens * cached + (tokens * (tokens + 1) >> 1)
            context += cached + tokens
        else:
            pairs += span.pairs(cached, tokens)
            context += tokens + span.visible(cached)
    return PrefillWork(new, pairs, context, longest)
