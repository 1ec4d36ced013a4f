"""Attention counted in memory accesses: with its scores in memory, and tiled so that they never leave the chip.

FlashAttention (Dao et al., NeurIPS 2022): algorithm 0 is what is called standard here, algorithm 1 the tiled one,
theorem 2 says that they access Theta(N d + N^2) and Theta(N^2 d^2 / M) elements. N is the length, d the width of a
head, M the elements that an SM's shared memory holds.
"""

from __future__ import annotations

from typing import NamedTuple

from sim.units import ceil_div

SCORE_PASSES = 4
"""Scores are written, read by the softmax, written as probabilities, and read again (algorithm 0)."""
SCORE_BYTES = 2
"""Scores and probabilities in 16 bit."""


class Tiles(NamedTuple):
    """Rows of queries (B_r) and of keys (B_c) that are on the chip at once."""

    query_rows: int
    key_rows: int


def flash_tiles(head_dim: int, sram_elements: int) -> Tiles:
    """B_c = ceil(M / 4d) and B_r = min(B_c, d): queries, keys, values and output share the memory (algorithm 1)."""
    key_rows = ceil_div(sram_elements, 4 * head_dim)
    return Tiles(min(key_rows, head_dim), key_rows)


def standard_accesses(length: int, head_dim: int) -> int:
    """Elements moved for one head: queries, keys, values and output once, the N x N scores four times."""
    return 4 * length * head_dim + SCORE_PASSES * length * length


def flash_accesses(length: int, head_dim: int, sram_elements: int) -> int:
    """Elements moved for one head by algorithm 1.

    Keys and values are read once; every tile of them makes a pass over queries and output, which is read, rescaled and
    written, with the two statistics of each row.
    """
    passes = ceil_div(length, flash_tiles(head_dim, sram_elements).key_rows)
    return 2 * length * head_dim + passes * length * (3 * head_dim + 4)


def flash2_accesses(length: int, head_dim: int, query_rows: int) -> int:
    """Elements moved for one head when the loop over queries is the outer one (FlashAttention-2, Dao 2023).

    Queries and output are moved once; every tile of `query_rows` queries reads all keys and values, which mostly comes
    out of the L2 cache.
    """
    return 2 * length * head_dim + 2 * ceil_div(length, query_rows) * length * head_dim


def score_bytes(heads: int, new_tokens: int, context_tokens: int) -> int:
    """Memory for the scores and the probabilities of one layer, which both exist while the softmax runs."""
    return 2 * SCORE_BYTES * heads * new_tokens * context_tokens
