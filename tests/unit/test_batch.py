"""The aggregates of a decode batch, against counting every member."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios import SPANS, examples
from sim.batch import DecodeBatch
from sim.cost.shape import Span
from sim.request import Request


def member(id_: int, context: int, emitted: int = 1) -> Request:
    """A request whose prompt is computed."""
    request = Request(id_, 0, context, 100)
    request.computed_tokens, request.emitted_tokens = context, emitted
    return request


@given(seed=st.integers(0, 10**6), spans=st.sampled_from([(), *SPANS]))
@examples(200)
def test_sums_are_those_of_the_members(seed: int, spans: tuple[Span, ...]) -> None:
    """After any joins, leaves and advances: count, context and what is seen through every span, and its growth."""
    rng = random.Random(seed)
    batch, contexts = DecodeBatch(spans), dict[Request, int]()
    for i in range(60):
        action = rng.choice(["join", "leave", "advance", "advance"])
        if action == "join":
            request = member(i, rng.randint(1, 60))
            batch.join(request)
            contexts[request] = request.computed_tokens
        elif action == "leave" and contexts:
            request = rng.choice(list(contexts))
            batch.leave(request, batch.steps)
            assert request.computed_tokens == contexts.pop(request)
        elif action == "advance" and contexts:
            steps = batch.steps_to_crossing(rng.randint(1, 30))
            assert steps >= 1
            batch.advance(steps)
            contexts = {r: c + steps for r, c in contexts.items()}
        assert batch.count == len(contexts)
        assert batch.context_tokens == sum(contexts.values())
        assert {r: batch.context_of(r) for r in contexts} == contexts
        for span, seen, growth in zip(spans, batch.local_tokens, batch.local_growth, strict=True):
            assert seen == sum(span.visible(c) for c in contexts.values())
            growing = [c for c in contexts.values() if span.chunked or c < span.tokens - 1]
            assert growth == len(growing)


@given(seed=st.integers(0, 10**6), spans=st.sampled_from(SPANS))
@examples(100)
def test_crossings_are_as_far_away_as_they_can_be(seed: int, spans: tuple[Span, ...]) -> None:
    """Up to the crossing every local sum grows linearly, and right behind it one of them does not."""
    rng = random.Random(seed)
    batch, contexts = DecodeBatch(spans), [rng.randint(1, 60) for _ in range(rng.randint(1, 5))]
    for i, context in enumerate(contexts):
        batch.join(member(i, context))
    limit = batch.steps_to_crossing(1000)

    def seen(span: Span, steps: int) -> int:
        return sum(span.visible(c + steps) for c in contexts)

    for span, tokens, growth in zip(spans, batch.local_tokens, batch.local_growth, strict=True):
        for steps in range(limit):
            assert seen(span, steps) == tokens + steps * growth
    if limit < 1000:
        bent = [seen(s, limit + 1) - seen(s, limit) != g or seen(s, limit) != t + limit * g
                for s, t, g in zip(spans, batch.local_tokens, batch.local_growth, strict=True)]  # fmt: skip
        assert any(bent)


def test_leaving_brings_the_counts_up_to_date() -> None:
    """Five steps after it joined, a member has five more tokens computed and five more emitted."""
    batch, request = DecodeBatch(), member(0, 10)
    batch.advance(3)
    batch.join(request)
    batch.advance(5)
    batch.leave(request, batch.steps)
    assert (request.computed_tokens, request.emitted_tokens, request.joined_step) == (15, 6, -1)


def test_tokens_of_steps_in_flight_are_not_emitted() -> None:
    """A member that leaves before its last planned step was delivered has computed one token more than it emitted."""
    batch, request = DecodeBatch(), member(0, 10)
    batch.join(request)
    batch.advance(5)
    batch.leave(request, delivered_step=4)
    assert (request.computed_tokens, request.emitted_tokens) == (15, 5)


def test_last_token_in_flight() -> None:
    """True exactly once the cursor has reached the step that emits the last token, and only for members."""
    batch, request = DecodeBatch(), member(0, 10)
    assert not batch.last_token_in_flight(request)
    batch.join(request)
    request._finish_step = 2
    assert not batch.last_token_in_flight(request)
    batch.advance(1)
    assert not batch.last_token_in_flight(request)
    batch.advance(1)
    assert batch.last_token_in_flight(request)


@pytest.mark.parametrize("limit", [1, 7, 10**9])
def test_without_spans_nothing_is_crossed(limit: int) -> None:
    """Full attention never bends."""
    batch = DecodeBatch()
    batch.join(member(0, 10))
    assert batch.steps_to_crossing(limit) == limit
