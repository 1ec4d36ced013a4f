"""Room for the longest a request may become, taken at admission: serving before PagedAttention, and TensorRT-LLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from sim.kv.address_space import AddressSpace, BestFit, Buddy, FirstFit, Scattered
from sim.kv.reserved import Holding, ReservedKV
from sim.request import Request

PLACEMENTS: Mapping[str, Callable[[int], AddressSpace]] = {
    "first-fit": FirstFit,
    "best-fit": BestFit,
    "buddy": Buddy,
    "paged": Scattered,
}


class MaxLengthKV(ReservedKV):
    """Prompt plus longest output, or the whole context, reserved at admission in one piece: no preemption, much waste.

    `placement` "paged" takes blocks anywhere: TensorRT-LLM's GUARANTEED_NO_EVICT. The others need one contiguous piece,
    as FasterTransformer and Orca do (Kwon et al., SOSP 2023, section 3.1); with "buddy" and `reserve` "context" it is
    the paper's "Orca (Max)". `max_model_len` is the context in tokens.
    """

    __slots__ = ("_context", "_refused", "_space")

    def __init__(
        self,
        total_blocks: int,
        block_tokens: int,
        fixed_blocks: int = 0,
        *,
        reserve: Literal["output", "context"] = "output",
        placement: Literal["first-fit", "best-fit", "buddy", "paged"] = "first-fit",
        max_model_len: int = 0,
        bound_tokens: int | None = None,
    ) -> None:
        super().__init__(total_blocks, block_tokens, fixed_blocks, bound_tokens=bound_tokens)
        self._space = PLACEMENTS[placement](total_blocks)
        self._context = max_model_len if reserve == "context" else 0
        self._refused = False

    @property
    def stranded_blocks(self) -> int:  # type: ignore[override]
        """All that is free, when the last request that asked was refused and nobody has left since."""
        return self.free_blocks if self._refused else 0

    def blocks_for(self, request: Request) -> int:
        """What it will hold, rounding of the placement included."""
        return self._space.size_for(self._blocks(self._room(request, 0)))

    def room_tokens(self, request: Request, tokens: int) -> int:
        """Every token that may still come, behind a prompt that may be padded or be recomputed with what followed."""
        output = request.max_output_tokens
        target = request.target_tokens + output - request.emitted_tokens
        return max(request.prompt_tokens + output, target, self._context)

    def release(self, request: Request) -> None:
        """The piece is free, and may join others."""
        super().release(request)
        self._refused = False

    def _fits(self, blocks: int) -> bool:
        return self._space.fits(blocks)

    def _take(self, blocks: int) -> Holding | None:
        address = self._space.allocate(blocks)
        self._refused = address is None
        if address is None:
            return None
        self.free_blocks -= self._space.size_for(blocks)
        return Holding(blocks, address)

    def _give_back(self, holding: Holding, stored: int) -> None:
        self._space.free(holding.address)
        super()._give_back(holding, stored)

    def _held(self, holding: Holding, stored: int) -> int:
        return self._space.size_for(holding.blocks)

    def _most(self, room: int) -> int:
        return room
