"""RadixAttention (Zheng et al., NeurIPS 2024) as SGLang implements it (`srt/mem_cache/radix_cache.py`, 0.5; rules from
memory of that file)."""

from __future__ import annotations

from sim.kv.base import Grant
from sim.kv.free_queue import FreeQueue, RankedQueue
from sim.kv.prefix_cache import PrefixCachedKV
from sim.kv.prefix_tree import Prompt
from sim.request import Request


class RadixCachedKV(PrefixCachedKV):
    """A radix tree of token sequences, whose leaves are evicted as a whole.

    What differs from `PrefixCachedKV`: (1) blocks are SGLang's pages, of one token unless the user says otherwise, so
    that prompts match token by token; (2) tokens can be found once they are computed: when the next chunk of their
    prompt is planned, when the prompt is complete, and when the request leaves; (3) whoever inserts what is there
    already gives its own copy back and holds the other; (4) each insertion makes a node of what it adds, a match that
    ends inside a node splits it, nodes are never joined, and a leaf nobody holds is evicted entirely, although less may
    be needed. Its parent is then a leaf. `eviction`: the leaf that was let go the longest ago (`lru`), or the one that
    the fewest requests have held (`lfu`).
    """

    __slots__ = ("_refused",)

    def can_reserve(self, request: Request, tokens: int) -> bool:
        """True also for those who find something: if a leaf of it goes, what is left of them may fit."""
        return super().can_reserve(request, tokens) or self.find_cached(request) > 0

    def growth_limit(self, steps: int) -> int:
        """Not beyond the step that evicts a leaf, while somebody is refused whose leaf that may be.

        It makes more room than the step takes, so the next plan may admit him.
        """
        limit = super().growth_limit(steps)
        if not self._refused or not limit:
            return limit
        self._take_owed()
        free, self.free_blocks = self.free_blocks, self._free.empty
        limit = min(limit, super().growth_limit(limit) + 1)
        self.free_blocks = free
        return limit

    def reserve(self, request: Request, tokens: int) -> Grant | None:
        """Blocks for a chunk."""
        computed = request.computed_tokens
        grant = super().reserve(request, tokens)
        if grant is not None and computed and request in self._prompts:
            self._insert(self._prompts[request], computed)
        return grant

    def grow(self, request: Request) -> None:
        """The prompt is complete: others may find it."""
        super().grow(request)
        if request in self._prompts:
            self._take_owed()
            self._insert(self._prompts[request], request.computed_tokens)

    def _admit(self, request: Request, tokens: int) -> Grant | None:
        grant = super()._admit(request, tokens)
        self._refused = grant is None and self.find_cached(request) > 0
        return grant

    def _fits_behind_cached(self, request: Request, tokens: int) -> bool:
        fits = super()._fits_behind_cached(request, tokens)
        self._refused = not fits
        return fits

    def _publish(self, request: Request, prompt: Prompt) -> None:
        """What is only planned cannot be found."""

    def _insert(self, prompt: Prompt, tokens: int) -> None:
        """What is in the tree already is held there, and the request's own copy of it is free."""
        end, begin = min(tokens // self.block_tokens, prompt.blocks), prompt.run.end
        if end <= begin:
            return
        path, found, held = prompt.find(end)
        if path:
            self._hold(prompt, path, found)
            self._free.add_unknown(found - begin)
            self.free_blocks += held - begin
            self.shared_blocks += held - begin
            self.stored_tokens -= (held - begin) * self.block_tokens
        if end > found:
            prompt.extend(end, self._free.joins)

    def _queue(self, by_hits: bool) -> FreeQueue:
        self._refused = False  # somebody who would find something, for want of room
        return RankedQueue(self.total_blocks, by_hits=by_hits, whole=True)
