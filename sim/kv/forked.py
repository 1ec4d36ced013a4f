"""Sequences that share blocks: reference counts and copy-on-write (PagedAttention, SOSP 2023, sections 4.3 and 4.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from sim.errors import InvariantError
from sim.kv.base import Grant
from sim.kv.paged import PagedKV
from sim.kv.prefix_cache import PrefixCachedKV, chain
from sim.kv.prefix_tree import Prompt
from sim.kv.radix_cache import RadixCachedKV
from sim.request import Request
from sim.sequences import Sequence, SharedBlocks


class ForkedKV(PagedKV):
    """Paged blocks that the sequences of one request share.

    Full blocks are never written again, so a fork shares them all; the last one, unless it is full, is copied at once
    (the paper copies when the first of its holders writes to it, which is the next step). What is shared since one fork
    is one entry with a count, so a fork and a release take constant time, whatever the length of the prompt.
    """

    __slots__ = ()

    def blocks_for(self, request: Request) -> int:
        """The longest sequence alone, as the others can be preempted; or the prompt with room for all forks."""
        prompt, size = request.prompt_tokens, self.block_tokens
        return max(super().blocks_for(request), -(-prompt // size) + self._fixed + self._copies(request, prompt))

    def can_reserve(self, request: Request, tokens: int) -> bool:
        """With room for the copies, if these tokens complete the prompt."""
        aside = self._set_aside(request, tokens)
        can = super().can_reserve(request, tokens)
        self._due[self._phase] -= aside
        return can

    def reserve(self, request: Request, tokens: int) -> Grant | None:
        """Blocks for a chunk, and for the copies if it completes the prompt."""
        aside = self._set_aside(request, tokens)
        grant = super().reserve(request, tokens)
        self._due[self._phase] -= aside
        if grant is not None:
            self.free_blocks -= aside
        return grant

    def fork(self, parent: Request, child: Request) -> None:
        """The parent's own full blocks become shared ones, and the child is one more who holds them."""
        if not (isinstance(parent, Sequence) and isinstance(child, Sequence)):
            raise InvariantError(f"{parent} is no sequence that could fork")
        tokens, size = parent.computed_tokens, self.block_tokens
        full = tokens // size - self._cached_blocks(parent)
        shared = parent.shared
        if full > (shared.blocks if shared is not None else 0):
            parent.shared = shared = SharedBlocks(shared, full)
        if shared is not None:
            shared.refs += 1
        if not parent.forks:
            self.free_blocks -= self._own_blocks(tokens)
        child.shared, child.reserved_tokens = shared, tokens
        self.shared_blocks += tokens // size
        self.stored_tokens += tokens % size

    def release(self, request: Request) -> None:
        """Blocks that other sequences hold as well stay in use; room for copies that were never made does not."""
        copies = self._copies(request, request.reserved_tokens)
        kept = self._kept_by_others(request) if isinstance(request, Sequence) else 0
        super().release(request)
        self.free_blocks += copies - kept
        self.shared_blocks -= kept
        self.stored_tokens += kept * self.block_tokens

    def check(self, holders: Iterable[tuple[Request, int]]) -> None:
        """As for `PagedKV`, counting what is shared once; and every count of references is right."""
        holders = list(holders)
        last = [r.shared for r, _ in holders if isinstance(r, Sequence) and r.shared is not None]
        entries, todo, refs = set[SharedBlocks](), list(last), Counter(last)
        while todo:
            entry = todo.pop()
            if entry not in entries:
                entries.add(entry)
                if entry.parent is not None:
                    refs[entry.parent] += 1
                    todo.append(entry.parent)
        if any(entry.refs != refs[entry] for entry in entries):
            raise InvariantError("shared KV blocks have other holders than are counted")
        distinct = sum(e.blocks - (e.parent.blocks if e.parent is not None else 0) for e in entries)
        shared = sum(entry.blocks for entry in last) - distinct
        copies = sum(self._copies(request, request.reserved_tokens) for request, _ in holders)
        self.free_blocks += copies - shared
        self.shared_blocks -= shared
        try:
            super().check(holders)
        finally:
            self.free_blocks -= copies - shared
            self.shared_blocks += shared

    def _kept_by_others(self, request: Sequence) -> int:
        """Count the sequence out of what it shares; returns how many of these blocks are still held."""
        shared, request.shared = request.shared, None
        while shared is not None:
            shared.refs -= 1
            if shared.refs:
                return shared.blocks
            shared = shared.parent
        return 0

    def _copies(self, request: Request, tokens: int) -> int:
        """Room that the forks to come need beside the prompt, once `tokens` of it have room."""
        if not request.forks or tokens < request.target_tokens:
            return 0
        return request.forks * self._own_blocks(request.target_tokens)

    def _own_blocks(self, tokens: int) -> int:
        """Blocks of so many tokens that two sequences cannot share."""
        return (tokens % self.block_tokens > 0) + self._fixed

    def _set_aside(self, request: Request, tokens: int) -> int:
        """Keep the room for copies out of a reservation's reach, as if growth needed it in the next step."""
        aside = self._copies(request, request.computed_tokens + tokens)
        self._due[self._phase] += aside
        return aside

    def _cached_blocks(self, request: Request) -> int:
        """Blocks at the beginning of a prompt that the prefix cache shares out."""
        return 0


class _ForkedPrompts(ForkedKV):
    """What the prefix cache knows of a prompt is shared there, the rest of it since the fork."""

    __slots__ = ()
    _prompts: dict[Request, Prompt]

    def fork(self, parent: Request, child: Request) -> None:
        """The child holds the parent's part of the tree as well. What they generate has no identity."""
        super().fork(parent, child)
        prompt = self._prompts.get(parent)
        if prompt is not None:
            prompt.blocks = prompt.run.end
            self._prompts[child] = prompt
            for run in chain(prompt.run):
                run.refs += 1

    def _cached_blocks(self, request: Request) -> int:
        prompt = self._prompts.get(request)
        return prompt.run.end if prompt is not None else 0


class ForkedPrefixCachedKV(PrefixCachedKV, _ForkedPrompts):
    """vLLM's prefix cache with forks."""

    __slots__ = ()


class ForkedRadixCachedKV(RadixCachedKV, _ForkedPrompts):
    """SGLang's radix cache with forks."""

    __slots__ = ()
