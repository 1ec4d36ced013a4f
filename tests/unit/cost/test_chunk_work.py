"""Prompt chunks as the sums that a kernel's time depends on."""

from __future__ import annotations

from sim.cost.chunk_work import work_of
from sim.cost.roofline import PrefillWork
from sim.cost.shape import Span

CHUNKS = [(1000, 50), (0, 7)]


def test_chunks_read_what_was_cached_and_themselves() -> None:
    """Keys of 1050 and of 7 tokens are read once; a new token meets what was cached, those before it, and itself."""
    pairs = 50 * 1000 + 50 * 51 // 2 + 7 * 8 // 2
    assert work_of(CHUNKS, None) == PrefillWork(57, pairs, 1057, 50)


def test_windowed_layers_read_what_they_see() -> None:
    """Under a window of 128 each of 50 tokens meets 128 keys, and 127 cached ones are read beside the new."""
    assert work_of(CHUNKS, Span(128)) == PrefillWork(57, 50 * 128 + 7 * 8 // 2, 127 + 57, 50)
