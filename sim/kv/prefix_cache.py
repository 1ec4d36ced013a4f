"""Blocks that outlive their request: the automatic prefix caching of vLLM V1 (`v1/core/block_pool.py`, 0.11)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from sim.errors import InvariantError
from sim.kv.base import GRANTED, Grant
from sim.kv.free_queue import FreeQueue, RankedQueue, RecencyQueue
from sim.kv.paged import GROWING, PagedKV, Share
from sim.kv.prefix_tree import Keys, Prompt, Run
from sim.request import Request


class PrefixCachedKV(PagedKV):
    """Paged blocks with known content are shared, and found again until they are taken for something else.

    As in vLLM V1: a request that is admitted (also after a preemption) is given the longest chain of full blocks
    whose content is that of its prompt, but at least one token is left to compute. A block can be found as soon as a
    plan fills it. Requests give their blocks back last block first, to the end of a queue from whose front new blocks
    are taken, so the least recently used go first and the end of a chain before its beginning.

    What a prompt holds is known from `Traits.prefix_hashes`. Generated blocks can be found, where the hashes go on
    beyond the prompt, once their request has left (finished, aborted or preempted) or prefills them again; vLLM offers
    them as they fill, which nobody sees whose next turn comes after the answer. The last token of an answer is never in
    the cache, because nothing was computed from it. Where vLLM keeps two blocks of the same content, filled side by
    side, only the first can be found here, and nothing that follows the second. Blocks for the next token of the
    decodes are taken after those of the chunks in the same step.

    `eviction` is `lru`, or `lfu`: the block that the fewest requests have held since it was filled goes first, among
    equals the least recently used, and blocks that nobody can ask for before all others.

    The free queue is brought up to date when somebody looks for a prefix, or leaves if that makes a difference.
    """

    __slots__ = ("_free", "_prompts", "_roots")

    def __init__(
        self,
        total_blocks: int,
        block_tokens: int,
        fixed_blocks: int = 0,
        *,
        eviction: str = "lru",
        watermark: Share = 0.0,
    ) -> None:
        super().__init__(total_blocks, block_tokens, fixed_blocks, watermark=watermark)
        self._free = self._queue(eviction == "lfu")
        self._prompts: dict[Request, Prompt] = {}  # of those that hold blocks and may share them
        self._roots: dict[int, Run] = {}  # by tokens per hash: hashes of different lengths never match

    def find_cached(self, request: Request, after: int = 0) -> int:
        """Tokens of the longest known beginning, in whole blocks."""
        if not request.traits.prefix_hashes:
            return 0
        self._take_owed(after)
        prompt = self._prompt(request)
        return prompt.find(self._limit(request, prompt))[1] * self.block_tokens

    def can_reserve(self, request: Request, tokens: int) -> bool:
        """Exact when it denies. A prefix may need room of its own, which is only looked at where it could help."""
        if super().can_reserve(request, tokens):
            return True
        return bool(request.traits.prefix_hashes) and self._fits_behind_cached(request, tokens)

    def _fits_behind_cached(self, request: Request, tokens: int) -> bool:
        """Whether there is room for the first chunk of a prompt, behind what is found of it. Exact."""
        self._take_owed()
        prompt = self._prompt(request)
        _, found, held = prompt.find(self._limit(request, prompt))
        self.free_blocks += held
        fits = super().can_reserve(request, min(found * self.block_tokens + tokens, request.target_tokens))
        self.free_blocks -= held
        return fits

    def reserve(self, request: Request, tokens: int) -> Grant | None:
        """Blocks for a chunk, behind what others have computed already when it is the first one."""
        if not request.traits.prefix_hashes:
            return super().reserve(request, tokens)
        if not request.reserved_tokens:
            grant = self._admit(request, tokens)
            if grant is not None:
                self._publish(request, self._prompts[request])
            return grant
        grant = super().reserve(request, tokens)
        if grant is not None:
            self._take_owed()
            self._publish(request, self._prompts[request])
        return grant

    def release(self, request: Request) -> None:
        """Blocks that nobody else holds join the queue, the last one first."""
        if not self._free.lazy:
            self._take_owed()
        if not self._parked or request not in self._parked:
            self._offer(request)
        prompt = self._prompts.pop(request, None)
        before = self.free_blocks
        super().release(request)
        freed = self.free_blocks - before
        if prompt is None:
            self._free.add_unknown(freed)
        else:
            self._let_go(prompt, freed)

    def park(self, request: Request) -> None:
        """What it has computed can be found from now on."""
        self._offer(request)
        super().park(request)

    def check(self, holders: Iterable[tuple[Request, int]]) -> None:
        """As for `PagedKV`, counting shared blocks once; holders, tree and queue tell the same story."""
        holders = list(holders)
        self._demand(0 <= self.free_blocks <= self._free.blocks, "free blocks")
        self._take_owed()
        refs: Counter[Run] = Counter()
        for request in [*(request for request, _ in holders), *self._parked]:
            if request in self._prompts:
                refs.update(chain(self._prompts[request].run))
        runs = [run for root in self._roots.values() for run in root.descendants()]
        queued = list(self._free)
        self._demand(all(run.refs == refs[run] for run in runs) and set(refs) <= set(runs), "holders")
        self._demand({r for r in runs if not r.refs} == {r for r in queued if r.parent is not None}, "free runs")
        self._demand(all(run.blocks > 0 for run in runs + queued), "empty runs")
        self._demand(sum(run.blocks for run in queued) == self._free.blocks == self.free_blocks, "free blocks")
        places = {run: place for place, run in enumerate(queued)}
        later = (places[c] > places[r] for r in runs if not r.refs for c in r.children.values())
        self._demand(not any(later), "a beginning that is taken before its end")
        shared = sum((run.refs - 1) * run.blocks for run in runs if run.refs)
        self.free_blocks -= shared
        self.shared_blocks -= shared
        try:
            super().check(holders)
        finally:
            self.free_blocks += shared
            self.shared_blocks += shared

    def _admit(self, request: Request, tokens: int) -> Grant | None:
        """Look for the prompt, hold what is found, and take what is missing."""
        self._take_owed()
        prompt, target = self._prompt(request), request.target_tokens
        path, found, held = prompt.find(self._limit(request, prompt))
        cached = found * self.block_tokens
        self.free_blocks += held  # what others hold needs no room
        if super().reserve(request, cached + tokens if cached + tokens < target else target) is None:
            self.free_blocks -= held
            return None
        self.stored_tokens -= held * self.block_tokens
        self.shared_blocks += held
        self._prompts[request] = prompt
        if path:
            self._hold(prompt, path, found)
        self._free.take(self._free.blocks - self.free_blocks)
        return Grant(cached) if cached else GRANTED

    def _let_go(self, prompt: Prompt, freed: int) -> None:
        """Of `freed` blocks those of the prompt join the queue with their content, unless somebody else holds them."""
        run: Run = prompt.run
        self._free.add_unknown(freed - run.end)
        shared = 0
        while run.parent is not None:
            run.refs -= 1
            if run.refs:
                shared += run.end - run.begin
            else:
                self._free.add(run)
            run = run.parent
        self.free_blocks -= shared
        self.shared_blocks -= shared
        self.stored_tokens += shared * self.block_tokens

    def _prompt(self, request: Request) -> Prompt:
        """What is known of a request, in blocks of this cache. Only whole blocks within hashed tokens have an identity.

        A hash covers several blocks, as one of a 512-token block does, or a block is known by all hashes it touches.
        """
        traits, size = request.traits, self.block_tokens
        keys: Keys = traits.prefix_hashes
        per = traits.prefix_block_tokens
        tokens = len(keys) * per
        if tokens > request.prompt_tokens and not traits.hashes_output:
            tokens = request.prompt_tokens
        blocks = tokens // size
        root = self._roots.get(per)
        if root is None:
            root = self._roots[per] = Run(None, None, (), 0, 0)
        if per % size == 0:
            return Prompt(root, keys, per // size, blocks)
        keys = tuple(keys[i * size // per : -(-(i + 1) * size // per)] for i in range(blocks))
        return Prompt(root, keys, 1, blocks)

    def _limit(self, request: Request, prompt: Prompt) -> int:
        """At most all but one token: a step must compute something to emit the next token."""
        limit = (request.target_tokens - 1) // self.block_tokens
        return prompt.blocks if prompt.blocks < limit else limit

    def _hold(self, prompt: Prompt, path: list[Run], found: int) -> None:
        for run in path:
            if run.end > found:  # the last one: what is not needed of it keeps its place in the queue
                run = run.split(found, prompt.ratio)
                if not run.refs:
                    self._free.blocks -= run.blocks
            elif not run.refs:
                self._free.remove(run)
            run.refs += 1
            run.hits += 1
            above = prompt.run
            if (
                above.refs == run.refs
                and len(above.children) == 1
                and above.parent is not None
                and self._free.joins(above.hits, run.hits)
            ):
                run.absorb(above)
            prompt.run = run

    def _offer(self, request: Request) -> None:
        """A request that leaves lets others find what it has computed."""
        prompt = self._prompts.get(request)
        if prompt is not None and prompt.blocks > prompt.run.end:
            self._take_owed()
            decodes = request.reserved_tokens == GROWING
            known = request.prompt_tokens + request.emitted_tokens - 1 if decodes else request.computed_tokens
            self._insert(prompt, known)

    def _publish(self, request: Request, prompt: Prompt) -> None:
        """A plan has just given the request room for a chunk."""
        self._insert(prompt, request.reserved_tokens)

    def _insert(self, prompt: Prompt, tokens: int) -> None:
        """So many tokens of the request can be found from now on, in full blocks."""
        end = tokens // self.block_tokens
        if end > prompt.blocks:
            end = prompt.blocks
        if end > prompt.run.end:
            prompt.extend(end, self._free.joins)

    def _queue(self, by_hits: bool) -> FreeQueue:
        if by_hits:
            return RankedQueue(self.total_blocks, by_hits=True, whole=False)
        return RecencyQueue(self.total_blocks)

    def _take_owed(self, after: int = 0) -> None:
        """Take from the queue what has been counted as used since the last time, and what `after` steps more will."""
        owed = self._free.blocks - self.free_blocks
        if after:
            owed += self._grown(after)
        if owed > 0:
            self._free.take(owed)

    def _demand(self, holds: bool, what: str) -> None:
        if not holds:
            raise InvariantError(f"the KV blocks of the prefix cache do not add up: {what}")


def chain(run: Run) -> Iterable[Run]:
    """A run and those before it, without the root."""
    while run.parent is not None:
        yield run
        run = run.parent
