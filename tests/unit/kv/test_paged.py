"""Blocks on demand, against holding ceil(tokens / block size) blocks per request."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios import examples
from sim.errors import InvariantError
from sim.kv.base import KVUsage
from sim.kv.paged import PagedKV
from sim.request import Request


def prompt(kv: PagedKV, id_: int, tokens: int) -> Request:
    """A request whose prompt has been given room and computed."""
    request = Request(id_, 0, tokens, 100)
    assert kv.reserve(request, tokens) is not None
    request.computed_tokens = tokens
    return request


@given(seed=st.integers(0, 10**6), size=st.integers(1, 17), fixed=st.sampled_from([0, 3]))
@examples(200)
def test_blocks_are_those_of_each_request(seed: int, size: int, fixed: int) -> None:
    """Whatever happens, blocks in use are the sum of ceil(tokens / size) and what each request holds besides."""
    rng = random.Random(seed)
    kv = PagedKV(rng.choice([20, 60, 10**6]), size, fixed)
    growing: list[Request] = []

    def held(tokens: int) -> int:
        return -(-tokens // size) + fixed

    for i in range(50):
        action = rng.choice(["start", "advance", "advance", "stop"])
        if action == "start":
            request = Request(i, 0, rng.randint(1, 50), 50)
            room = kv.total_blocks - sum(held(r.computed_tokens) for r in growing)
            due = sum(r.computed_tokens % size == 0 for r in growing)
            granted = kv.reserve(request, request.prompt_tokens) is not None
            assert granted == (held(request.prompt_tokens) <= room - due)
            if granted:
                request.computed_tokens = request.prompt_tokens
                kv.grow(request)
                growing.append(request)
        elif action == "advance":
            steps = kv.growth_limit(rng.randint(1, 3 * size + 2))
            kv.advance(steps)
            for request in growing:
                request.computed_tokens += steps
        elif growing:
            kv.release(growing.pop(rng.randrange(len(growing))))
        assert kv.used_after(0) == sum(held(r.computed_tokens) for r in growing)
        due = sum(r.computed_tokens % size == 0 for r in growing)
        assert kv.shortage() == max(0, due - kv.free_blocks)
        assert kv.stored_tokens == sum(r.computed_tokens for r in growing)
        for steps in (1, size, 2 * size + 1):
            assert kv.used_after(steps) == sum(held(r.computed_tokens + steps) for r in growing)


def test_a_block_is_taken_when_a_token_needs_one() -> None:
    """Ten tokens hold three blocks of four; the eleventh and twelfth fit, the thirteenth opens a block."""
    kv = PagedKV(100, 4)
    request = prompt(kv, 0, 10)
    kv.grow(request)
    assert [kv.used_after(k) for k in range(5)] == [3, 3, 3, 4, 4]


def test_chunks_fill_the_last_block_first() -> None:
    """A second chunk needs new blocks only beyond the room left by the first."""
    kv, request = PagedKV(100, 16), Request(0, 0, 40, 1)
    for tokens, blocks in ((10, 1), (6, 1), (1, 2), (23, 3)):
        assert kv.reserve(request, tokens) is not None
        request.computed_tokens += tokens
        assert kv.used_after(0) == blocks


def test_decodes_own_their_next_block() -> None:
    """A free block that a decode will open in the next step is not given to a prompt."""
    kv = PagedKV(3, 4)
    kv.grow(prompt(kv, 0, 8))
    assert not kv.can_reserve(Request(1, 0, 4, 1), 4)
    assert kv.reserve(Request(1, 0, 4, 1), 4) is None
    kv.advance(1)
    assert kv.shortage() == 0


def test_shortage_counts_missing_blocks() -> None:
    """Three decodes at the end of their blocks and one free block: two are missing."""
    kv = PagedKV(4, 4)
    for i in range(3):
        kv.grow(prompt(kv, i, 3))
    assert (kv.free_blocks, kv.shortage(), kv.growth_limit(10)) == (1, 0, 1)
    kv.advance(1)
    assert (kv.free_blocks, kv.shortage(), kv.growth_limit(10)) == (1, 2, 0)


def test_fixed_blocks_are_held_once_per_request() -> None:
    """States of linear attention take their blocks with the first chunk and give them back at the end."""
    kv, request = PagedKV(100, 16, fixed_blocks=5), Request(0, 0, 40, 8)
    assert kv.blocks_for(request) == 3 + 5
    for tokens, used in ((16, 6), (24, 8)):
        assert kv.reserve(request, tokens) is not None
        request.computed_tokens += tokens
        assert kv.used_after(0) == used
    kv.release(request)
    assert kv.free_blocks == 100


def test_a_request_preempted_while_prefilling_gives_everything_back() -> None:
    """Room that was reserved for a chunk and never used is free again too."""
    kv, request = PagedKV(100, 16), Request(0, 0, 400, 8)
    assert kv.reserve(request, 100) is not None
    request.computed_tokens = 100
    assert kv.reserve(request, 50) is not None  # the chunk is planned, not computed
    kv.release(request)
    assert kv.usage() == KVUsage(100, 0, 16, 0)


def test_growth_limit_with_nobody_growing() -> None:
    """Then any number of steps fits, even without a free block."""
    kv = PagedKV(1, 16)
    prompt(kv, 0, 16)
    assert kv.growth_limit(10**9) == 10**9


def test_waste_is_room_without_tokens() -> None:
    """Internal fragmentation: 17 tokens in blocks of 16 leave 15 places empty."""
    kv = PagedKV(10, 16)
    prompt(kv, 0, 17)
    assert kv.usage().wasted_tokens == 15


def test_check_finds_a_request_counted_twice() -> None:
    """The histogram of growth must count each growing request once, even where the blocks add up."""
    kv = PagedKV(10, 16)
    request = prompt(kv, 0, 17)
    kv.grow(request)
    kv.check([(request, 17)])
    kv.grow(request)
    with pytest.raises(InvariantError, match="2 growing in the histogram"):
        kv.check([(request, 17)])


def test_check_says_what_does_not_add_up() -> None:
    """The message has the numbers that disagree."""
    kv = PagedKV(10, 16)
    request = prompt(kv, 0, 17)
    kv.check([(request, 17)])
    with pytest.raises(InvariantError, match=r"0 held .* 8 free != 10 in all"):
        kv.check([])
