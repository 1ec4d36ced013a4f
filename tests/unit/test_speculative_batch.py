"""Batches whose members advance by numbers of their own: sums, blocks, and what each has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.acceptance import Acceptance
from sim.cost.shape import Span
from sim.increments import Increments
from sim.kv.lookahead import LookaheadKV, with_lookahead
from sim.kv.paged import PagedKV
from sim.kv.prefix_cache import PrefixCachedKV
from sim.request import Request, Traits
from sim.speculative_batch import SpeculativeBatch
from sim.units import ceil_div

SPANS = (Span(40), Span(16, chunked=True))


def test_increments_are_taken_when_they_are_due() -> None:
    """Amounts at steps 3 and 4, seen after what is over has been forgotten many times."""
    found = Increments()
    found.add(3, np.array([5, 7]))
    assert [found.at(i) for i in range(6)] == [0, 0, 0, 5, 7, 0]
    assert found.between(2, 3) == 12
    for step in range(0, 5000, 100):
        found.forget(step)
        found.add(step + 2000, np.array([step]))
    assert [found.at(step + 2000) for step in range(2900, 5000, 100)] == list(range(2900, 5000, 100))
    assert found.at(10**6) == 0


def test_increments_survive_later_ones() -> None:
    """What is far ahead needs more room, and what stands there already is kept."""
    found = Increments()
    found.add(3, np.array([5, 7]))
    found.add(10_000, np.array([9]))
    assert (found.at(3), found.at(4), found.at(10_000)) == (5, 7, 9)


def servers(
    blocks: int = 400, make: type[PagedKV] = PagedKV, rate: float = 0.7
) -> tuple[SpeculativeBatch, LookaheadKV]:
    batch = SpeculativeBatch(Acceptance(1, (rate,) * 4), 5, SPANS)
    kv = with_lookahead(make)(blocks, 4)
    kv.progress, kv.query_tokens = batch.progress_of, batch.query_tokens
    return batch, kv


@pytest.mark.parametrize("make", [PagedKV, PrefixCachedKV])
@given(moves=st.lists(st.tuples(st.integers(0, 7), st.integers(1, 90), st.integers(2, 60)), max_size=60))
def test_sums_are_those_of_the_members(make: type[PagedKV], moves: list[tuple[int, int, int]]) -> None:
    """After any joins, steps and departures, contexts, windows and blocks are those of a count from scratch."""
    batch, kv = servers(2000, make)
    inside: dict[int, Request] = {}
    for number, (slot, prompt, output) in enumerate(moves):
        if slot in inside:
            leaver = inside.pop(slot)
            batch.leave(leaver, batch.steps)
            kv.release(leaver)
        else:
            common = tuple(range(prompt // 4 * (number % 3 > 0)))  # two of three begin alike
            request = Request(number, 0, prompt, output, traits=Traits(prefix_hashes=common, prefix_block_tokens=4))
            assert kv.reserve(request, prompt) is not None
            request.computed_tokens, request.emitted_tokens = prompt, 1
            inside[slot] = request
            batch.join(request)
            kv.grow(request)
        assert kv.growth_limit(5) == 1
        batch.advance(1)
        kv.advance(1)
        for slot, request in list(inside.items()):
            if batch.steps - request.joined_step >= batch.steps_to_end(request):
                batch.leave(request, batch.steps)
                kv.release(request)
                assert request.emitted_tokens == request._output_tokens
                del inside[slot]
        contexts = [batch.context_of(request) for request in inside.values()]
        assert batch.context_tokens == sum(contexts) == kv.stored_tokens + 4 * kv.shared_blocks
        assert batch.local_tokens == [sum(span.visible(c) for c in contexts) for span in SPANS]
        kv.check([(request, batch.context_of(request)) for request in inside.values()])


def test_who_leaves_has_the_tokens_that_were_delivered() -> None:
    """With a step in flight: its tokens were computed for nothing, those of the steps before it were emitted."""
    batch, _ = servers()
    request = Request(0, 0, 4, 100)
    request.computed_tokens, request.emitted_tokens = 4, 1
    batch.join(request)
    progress = batch.progress_of(request)
    batch.advance(1)
    batch.advance(1)
    batch.leave(request, 1)
    assert (request.emitted_tokens, request.computed_tokens) == (1 + progress[1], 4 + progress[2])
    assert batch.stretch_tokens(request, 1) == 1 + progress[1]


@pytest.mark.parametrize(("rate", "tokens"), [(0.0, 5), (1.0, 9)])
def test_guesses_have_room_before_they_are_verified(rate: float, tokens: int) -> None:
    """A prompt of 4 fills one block of 4; a step verifies 5 tokens, so it needs two more blocks, right or wrong."""
    batch, kv = servers(10, rate=rate)
    request = Request(0, 0, 4, 100)
    kv.reserve(request, 4)
    request.computed_tokens, request.emitted_tokens = 4, 1
    batch.join(request)
    kv.grow(request)
    assert (kv.free_blocks, kv.used_after(0), kv.used_after(1)) == (9, 1, 3)
    batch.advance(1)
    kv.advance(1)
    kept = batch.context_of(request)
    assert kept == tokens
    assert kv.free_blocks == 7
    assert kv.shortage() == 0
    kv.release(request)
    assert kv.free_blocks == 10
    assert request.unused_tokens == 3 * 4 - kept


def test_room_ends_with_the_longest_output() -> None:
    """The last guesses of an answer of 3 behind a prompt of 8 need 11 tokens' room at most, not 13."""
    batch, kv = servers(10)
    request = Request(0, 0, 8, 3)
    kv.reserve(request, 8)
    request.computed_tokens, request.emitted_tokens = 8, 1
    batch.join(request)
    kv.grow(request)
    assert kv.used_after(1) == ceil_div(11, 4)


def test_a_shortage_is_seen_before_the_step() -> None:
    """With one block in all, the next step misses two."""
    batch, kv = servers(1)
    request = Request(0, 0, 4, 100)
    kv.reserve(request, 4)
    request.computed_tokens, request.emitted_tokens = 4, 1
    batch.join(request)
    kv.grow(request)
    assert (kv.shortage(), kv.growth_limit(1)) == (2, 0)


def test_every_paged_allocator_can_look_ahead() -> None:
    """The prefix cache keeps its own rules beside."""
    assert with_lookahead(PagedKV) is LookaheadKV
    cached = with_lookahead(PrefixCachedKV)
    assert issubclass(cached, PrefixCachedKV)
    assert cached.advance is LookaheadKV.advance
