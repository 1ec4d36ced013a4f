"""The seam between a scheduler and the memory that holds keys and values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from sim.request import Request


@dataclass(frozen=True, slots=True)
class Grant:
    """Room was found. Tokens that need not be computed, and bytes that must move first, widen the answer."""

    cached_tokens: int = 0
    transfer_bytes: int = 0


GRANTED = Grant()


@dataclass(frozen=True, slots=True)
class KVUsage:
    """What the cache holds: all its blocks, those in use, and the tokens stored in them."""

    total_blocks: int
    used_blocks: int
    block_tokens: int
    stored_tokens: int

    @property
    def wasted_tokens(self) -> int:
        """Room in blocks in use that holds nothing (internal fragmentation, and reservation where there is any)."""
        return self.used_blocks * self.block_tokens - self.stored_tokens


class KVAllocator(Protocol):
    """Blocks of KV memory on one replica. The scheduler asks; the replica reports steps done.

    While a request prefills, it holds what `reserve` granted. From `grow` on it decodes: every step of the replica in
    which decodes take part adds one token, committed for all of them at once by `advance`. `release` ends either.
    """

    total_blocks: int
    free_blocks: int
    """Blocks nobody holds, as of the last commit."""
    block_tokens: int
    stored_tokens: int
    """Tokens that have been given room and not released, as of the last commit."""
    parked_blocks: int
    """At most so many blocks become free once the copies under way have ended (see `park`)."""
    shared_blocks: int
    """Blocks more that would be in use if no two requests or sequences held the same one, as of the last commit."""

    @property
    def stranded_blocks(self) -> int:
        """Free blocks that are of no use to the request at the head of the queue, which was refused admission."""
        ...

    def blocks_for(self, request: Request) -> int:
        """The most blocks this request may ever hold. More than `total_blocks`: it can never be served."""
        ...

    def find_cached(self, request: Request, after: int = 0) -> int:
        """Tokens a request that holds nothing would not have to compute if it were admitted now. Changes nothing.

        `after`: steps of the growing requests that have begun and will be committed later; they take blocks first.
        """
        ...

    def can_reserve(self, request: Request, tokens: int) -> bool:
        """Whether a request that holds nothing could reserve this many new tokens now. Changes nothing.

        True may be wrong where the exact answer is dear. False is right, and stays right until memory is released.
        """
        ...

    def reserve(self, request: Request, tokens: int) -> Grant | None:
        """Room for `tokens` after what the request has computed: all of it, or None and nothing has changed.

        A request that holds nothing may find its first `Grant.cached_tokens` tokens in the cache. It is then given
        room for these and for `min(tokens, target_tokens - cached_tokens)` new ones; the scheduler counts the former
        as computed. Never takes blocks that the growing requests need for their next token.
        """
        ...

    def grow(self, request: Request) -> None:
        """All the request holds is computed; it gains one token per step from the next step on."""
        ...

    def shortage(self) -> int:
        """Blocks that the next step of the growing requests needs beyond those that are free; 0: the step fits."""
        ...

    def growth_limit(self, steps: int) -> int:
        """For how many steps, up to `steps`, all growing requests may grow in one `advance`.

        So many fit, and 0 says that the next one does not. It may be fewer than would fit: then the next call, after
        `advance`, goes on from there.
        """
        ...

    def used_after(self, steps: int) -> int:
        """Blocks in use once the growing requests have done `steps` more steps, at most `growth_limit`.

        Changes nothing.
        """
        ...

    def stored_after(self, steps: int) -> int:
        """Tokens stored once the growing requests have done `steps` more steps, as for `used_after`."""
        ...

    def advance(self, steps: int) -> None:
        """The growing requests have done `steps` steps; at most `growth_limit` of them."""
        ...

    def release(self, request: Request) -> None:
        """Everything the request holds is free. Its token counts must be current."""
        ...

    def park(self, request: Request) -> None:
        """What the request holds is being copied elsewhere: it stops growing and keeps its blocks until `release`.

        Its token counts must be current; they may change from now on, for it may live on elsewhere.
        """
        ...

    def restore(self, request: Request) -> Grant | None:
        """Room for all `computed_tokens` of a request that holds nothing here, or None and nothing has changed.

        None, too, where there would be no room for its next token, or while it is parked. Never takes blocks that the
        growing requests need for their next token.
        """
        ...

    def usage(self) -> KVUsage:
        """What is in use, as of the last commit."""
        ...

    def check(self, holders: Iterable[tuple[Request, int]]) -> None:
        """Raise InvariantError unless the books agree with what these requests hold: (request, tokens computed)."""
        ...


class ForkingKVAllocator(KVAllocator, Protocol):
    """An allocator under which sequences share what they have in common, until one of them writes to it.

    With the chunk that completes a prompt, `reserve` finds room for what the `Request.forks` sequences to come cannot
    share, so that a fork never fails. The prompt's own blocks are counted once, however many hold them.
    """

    def fork(self, parent: Request, child: Request) -> None:
        """The child, which holds nothing, holds what the parent holds: its full blocks, and a copy of the last one.

        Both have as many computed tokens, which are current; the parent grows, and so will the child from `grow` on.
        Without `forks` to come there must be room for the copy: a beam takes that of the beam it replaces.
        """
        ...
