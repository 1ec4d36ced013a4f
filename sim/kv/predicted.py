"""Room for the output that is expected, and more when the guess was too short."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sim.kv.reserved import ReservedKV
from sim.request import Request


class PredictedKV(ReservedKV):
    """Prompt plus predicted output reserved at admission, in pages that need not be adjacent; grows page by page.

    Memory as in vAttention (Prabhu et al., ASPLOS 2025): contiguous addresses, behind which pages of `block_size`
    tokens are mapped. `growth_blocks` pages are taken whenever a sequence outgrows what it has. The prediction is
    `Request.predicted_output_tokens`, at most the longest output the client allows.
    """

    __slots__ = ()

    def __init__(
        self,
        total_blocks: int,
        block_tokens: int,
        fixed_blocks: int = 0,
        *,
        growth_blocks: Annotated[int, Field(gt=0, le=4096)] = 1,
        bound_tokens: int | None = None,
    ) -> None:
        super().__init__(
            total_blocks, block_tokens, fixed_blocks, bound_tokens=bound_tokens, growth_blocks=growth_blocks
        )

    def room_tokens(self, request: Request, tokens: int) -> int:
        """What is to be computed first, and what the answer is expected to add."""
        expected = min(request.predicted_output_tokens, request.max_output_tokens)
        return max(request.target_tokens, request.prompt_tokens + expected)
