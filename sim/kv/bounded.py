"""Blocks on demand for a cache that keeps a window of each sequence only."""

from __future__ import annotations

from sim.kv.paged import Share
from sim.kv.reserved import ReservedKV


class BoundedKV(ReservedKV):
    """Paged blocks that are written over in a ring once a sequence has `bound_tokens` tokens, sinks included.

    StreamingLLM (Xiao et al., ICLR 2024); the rolling buffer of Mistral 7B (Jiang et al. 2023).
    """

    __slots__ = ()

    def __init__(
        self,
        total_blocks: int,
        block_tokens: int,
        fixed_blocks: int = 0,
        *,
        bound_tokens: int | None = None,
        watermark: Share = 0.0,
    ) -> None:
        super().__init__(total_blocks, block_tokens, fixed_blocks, bound_tokens=bound_tokens, watermark=watermark)
