"""Memory accesses of attention by the formulas of the FlashAttention papers."""

from __future__ import annotations

import pytest

from sim.cost.attention_io import (
    flash2_accesses,
    flash_accesses,
    flash_tiles,
    score_bytes,
    standard_accesses,
)


def test_tiles_share_the_memory_of_an_sm() -> None:
    """With M = 96K elements and d = 64, B_c = M / 4d = 384 and B_r = d (algorithm 1)."""
    assert flash_tiles(64, 98304) == (64, 384)
    assert flash_tiles(128, 98304) == (128, 192)


def test_standard_attention_moves_the_scores_four_times() -> None:
    """One head of 64 over 1024 tokens: 4 N d = 262,144 and 4 N^2 = 4,194,304 elements (algorithm 0)."""
    assert standard_accesses(1024, 64) == 262_144 + 4_194_304


def test_flash_attention_passes_over_the_queries_once_per_tile_of_keys() -> None:
    """N = 1024, d = 64, M = 96K: three passes of 3 N d + 4 N after one read of keys and values."""
    assert flash_accesses(1024, 64, 98304) == 2 * 65_536 + 3 * (3 * 65_536 + 4 * 1024)


@pytest.mark.parametrize("factor", [2, 4])
def test_accesses_fall_as_the_memory_of_an_sm_grows(factor: int) -> None:
    """Theorem 2: N^2 d^2 / M, so long sequences move half as much with twice the memory."""
    ratio = flash_accesses(1 << 20, 64, 8192 * factor) / flash_accesses(1 << 20, 64, 8192)
    assert ratio == pytest.approx(1 / factor, rel=0.01)


def test_wide_heads_in_a_small_memory_gain_nothing() -> None:
    """Flash attention loses once d^2 exceeds M by far: tiles of 4 keys move more than the scores would."""
    assert flash_accesses(4096, 1024, 16384) > standard_accesses(4096, 1024)
    assert flash_accesses(4096, 64, 98304) < standard_accesses(4096, 64) / 5


def test_the_loop_over_queries_outside_reads_keys_again() -> None:
    """FlashAttention-2, N = 1024, d = 64, tiles of 128 queries: 2 N d for queries and output, 16 N d more."""
    assert flash2_accesses(1024, 64, 128) == 18 * 65_536


def test_scores_need_memory_that_grows_with_the_square() -> None:
    """32 heads, 4096 x 4096, scores and probabilities in 16 bit: 2 GiB."""
    assert score_bytes(32, 4096, 4096) == 2 * 2**30
