"""What a token sees through a sliding window or a chunk, against counting tokens one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios import examples
from sim.cost.shape import RunShape, Span


def seen_by(span: Span, position: int) -> int:
    """Tokens that the token at a position (from 0) attends to, itself included."""
    if span.chunked:
        return position % span.tokens + 1
    return min(position + 1, span.tokens)


@given(tokens=st.integers(1, 40), chunked=st.booleans(), context=st.integers(0, 200))
@examples(200)
def test_visible_counts_cached_tokens(tokens: int, chunked: bool, context: int) -> None:
    """A new token behind a context sees all but itself of what its position allows."""
    span = Span(tokens, chunked)
    assert span.visible(context) == seen_by(span, context) - 1


@given(tokens=st.integers(1, 40), cached=st.integers(0, 150), new=st.integers(1, 150))
@examples(200)
def test_pairs_of_chunked_attention(tokens: int, cached: int, new: int) -> None:
    """Query-key pairs of a prompt piece add up over its tokens, each within its own chunk."""
    span = Span(tokens, chunked=True)
    assert span.pairs(cached, new) == sum(seen_by(span, p) for p in range(cached, cached + new))


@given(tokens=st.integers(1, 40), cached=st.integers(0, 150), new=st.integers(1, 150))
@examples(200)
def test_pairs_of_a_sliding_window(tokens: int, cached: int, new: int) -> None:
    """Each token of a piece sees at most a window of tokens, itself among them."""
    pairs = Span(tokens).pairs(cached, new)
    assert pairs == sum(min(p + 1, tokens) for p in range(cached, cached + new))


def test_a_window_longer_than_the_context_changes_nothing() -> None:
    """Then a chunk has the pairs of full attention."""
    assert Span(10**6).pairs(300, 1000) == 1000 * 300 + 1000 * 1001 // 2
    assert Span(10**6).visible(1234) == 1234


@pytest.mark.parametrize("chunked", [False, True])
def test_a_span_of_one_token(chunked: bool) -> None:
    """The shortest span leaves every token one pair."""
    assert Span(1, chunked).pairs(5, 7) == 7


def test_new_tokens_of_a_shape() -> None:
    """One per decoding sequence, and those of the chunks."""
    assert RunShape(3, 100, [(0, 10), (50, 7)]).new_tokens == 20
    assert RunShape().new_tokens == 0
    assert "decodes=3" in repr(RunShape(3, 100))
