"""A prefix cache with memory below the GPU's: what was computed once is copied instead of being computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sim.kv.base import Grant
from sim.kv.paged import Share
from sim.kv.prefix_cache import PrefixCachedKV
from sim.kv.prefix_tree import Prompt
from sim.kv.radix_cache import RadixCachedKV
from sim.kv.tier_store import TierStore
from sim.request import WAITING, Request

Worth = Callable[[int, list[int]], bool]
"""Whether to load blocks, so many from each tier, behind so many cached tokens; else they are computed again."""


class Load(NamedTuple):
    """Blocks on their way to the GPU for a request that waits; so many from each tier."""

    request: Request
    parts: list[int]


class Write(NamedTuple):
    """The first `end` blocks of a prompt, on their way to the first tier."""

    request: Request
    prompt: Prompt
    end: int


class TieredKV(PrefixCachedKV):
    """What a request leaves behind is written to the first tier, and looked for there when the GPU has forgotten it.

    A load takes blocks of its own while its copy is under way. When that has ended they are in the GPU's cache, newest
    of all and held by nobody, and the request finds them when it is admitted; it is not admitted before. With
    `prefetch` loads begin when requests arrive, else when one could be admitted. `loads` and `writes` are what the
    replica has to copy.
    """

    def __init__(
        self,
        total_blocks: int,
        block_tokens: int,
        fixed_blocks: int = 0,
        *,
        store: TierStore,
        worth: Worth,
        prefetch: bool = True,
        eviction: str = "lru",
        watermark: Share = 0.0,
    ) -> None:
        super().__init__(total_blocks, block_tokens, fixed_blocks, eviction=eviction, watermark=watermark)
        self.store, self.prefetch, self._worth = store, prefetch, worth
        self.loads: list[Load] = []
        self.writes: list[Write] = []
        self.loaded = [0] * len(store.capacities)
        """Blocks that have been loaded from each tier."""
        self._loaders: dict[Request, Request] = {}  # who waits for a load, and who holds its blocks meanwhile
        self._served: set[int] = set()  # waiting requests that have had their load

    def is_stored(self, request: Request) -> bool:
        """Whether a tier knows how the prompt begins."""
        if not request.traits.prefix_hashes:
            return False
        stored, limit = self._stored(request)
        return any(self.store.parts(stored, 0, limit))

    def reserve(self, request: Request, tokens: int) -> Grant | None:
        """As everywhere. Without `prefetch`, an admission that is worth a load begins it and is refused until then."""
        if not self.prefetch and request.traits.prefix_hashes and not request.reserved_tokens:
            if request in self._loaders or not self._fits_behind_cached(request, tokens):
                return None
            parts = None if request.id in self._served else self.begin_load(request)
            if parts is not None:
                self.loads.append(Load(request, parts))
                return None
            self._served.discard(request.id)
        return super().reserve(request, tokens)

    def release(self, request: Request) -> None:
        """What can be found of it is written to the first tier."""
        prompt = self._prompts.get(request)
        super().release(request)
        if prompt is not None and prompt.run.end:
            stored = self.store.prompt(prompt, request.traits.prefix_block_tokens)
            self.writes.append(Write(request, stored, prompt.run.end))

    def begin_load(self, request: Request) -> list[int] | None:
        """Blocks for what the tiers have beyond the GPU's cache; None: nothing, or not worth it, or no room."""
        self._take_owed()
        prompt = self._prompt(request)
        stored, limit = self._stored(request)
        found = prompt.find(limit)[1]
        parts, size = self.store.parts(stored, found, limit), self.block_tokens
        if not any(parts) or not self._worth(found * size, parts):
            return None
        end = (found + sum(parts)) * size
        loader = Request(request.id, request.arrival_ps, end + 1, 1, traits=request.traits)
        if self._admit(loader, end - found * size) is None:
            return None
        self._loaders[request] = loader
        return parts

    def end_load(self, load: Load) -> None:
        """The copy has ended: its blocks can be found, like those of a request that has just left."""
        loader = self._loaders.pop(load.request)
        loader.computed_tokens = loader.prompt_tokens - 1
        super().release(loader)
        self.loaded = [a + b for a, b in zip(self.loaded, load.parts, strict=True)]
        if load.request.state is WAITING:
            self._served.add(load.request.id)

    def check(self, holders: Iterable[tuple[Request, int]]) -> None:
        """Those who hold the blocks of loads hold blocks as well."""
        super().check([*holders, *((loader, 0) for loader in self._loaders.values())])

    def _stored(self, request: Request) -> tuple[Prompt, int]:
        prompt = self._prompt(request)
        return self.store.prompt(prompt, request.traits.prefix_block_tokens), self._limit(request, prompt)


class TieredRadixKV(TieredKV, RadixCachedKV):
    """The same over SGLang's tree."""


def tier_totals(caches: Sequence[TieredKV], tiers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each tier gave and received over a run on all replicas, in tokens, and what it holds at the end."""
    return [
        {
            "name": tier["name"],
            "loaded_tokens": sum(kv.loaded[i] * kv.block_tokens for kv in caches),
            "written_tokens": sum(kv.store.written[i] * kv.block_tokens for kv in caches),
            "held_tokens": sum(kv.store.used[i] * kv.block_tokens for kv in caches),
        }
        for i, tier in enumerate(tiers)
    ]
