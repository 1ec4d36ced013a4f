"""What more memory does for a prefix cache."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios import examples
from sim.policies import PREFIX_CACHES
from sim.request import Request, Traits

SIZE = 4


def prompts(seed: int, count: int = 60) -> list[tuple[int, ...]]:
    """The content of prompts, block by block; many begin alike."""
    rng = random.Random(seed)
    return [tuple(rng.choice([0, 0, 1, 2]) for _ in range(rng.randint(1, 12))) for _ in range(count)]


def found(match: str, eviction: str, blocks: int, contents: list[tuple[int, ...]]) -> list[int]:
    """Tokens found by each prompt, served one after the other; behind its full blocks each has a token of its own."""
    kv = PREFIX_CACHES[match](blocks, SIZE, eviction=eviction)
    tokens = []
    for number, hashes in enumerate(contents):
        prompt = SIZE * len(hashes) + 1
        request = Request(number, 0, prompt, 1, traits=Traits(prefix_hashes=hashes, prefix_block_tokens=SIZE))
        grant = kv.reserve(request, prompt)
        assert grant is not None
        request.computed_tokens = prompt
        kv.release(request)
        tokens.append(grant.cached_tokens)
    return tokens


@given(seed=st.integers(0, 10**6), blocks=st.integers(13, 60))
@examples(150)
def test_more_blocks_never_lose_a_hit_when_the_least_recently_used_go_first(seed: int, blocks: int) -> None:
    """LRU over blocks is a stack algorithm (Mattson et al. 1970): a larger cache holds all that a smaller one does."""
    contents = prompts(seed)
    smaller, larger = found("hash_block", "lru", blocks, contents), found("hash_block", "lru", blocks + 1, contents)
    assert all(a <= b for a, b in zip(smaller, larger, strict=True))


@pytest.mark.parametrize("eviction", ["lru", "lfu"])
@pytest.mark.parametrize("match", PREFIX_CACHES)
@given(seed=st.integers(0, 10**6), blocks=st.integers(13, 60))
@examples(60)
def test_no_bounded_cache_finds_more_than_an_unbounded_one(match: str, eviction: str, seed: int, blocks: int) -> None:
    """Request by request; and all unbounded caches find the same."""
    contents = prompts(seed)
    unbounded = found(match, eviction, 10**6, contents)
    assert unbounded == found("hash_block", "lru", 10**6, contents)
    assert all(a <= b for a, b in zip(found(match, eviction, blocks, contents), unbounded, strict=True))
