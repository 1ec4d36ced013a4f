"""Keys and values that are elsewhere: on the host after a preemption (vLLM V0), or on the replica that prefilled."""

from __future__ import annotations

from sim.kv.base import KVAllocator
from sim.kv.host_pool import HostPool
from sim.request import Request
from sim.step import HANDOFF, IN, NO_LIMIT, OUT, Transfer
from sim.units import ceil_div


class Mover:
    """What a scheduler asks when it preempts, and when it admits somebody whose keys and values are elsewhere.

    Whole blocks are copied, `block_bytes` each over all GPUs of the replica, and `fixed_blocks` of every request; of a
    cache that keeps a window of every sequence, at most `bound_tokens`.
    Preempted requests go to the `host`, if there is one. With `overlap`, steps go on while copies are under way: a
    victim keeps its blocks until its copy has ended. Without, the step that follows waits for the copies, and the
    blocks are free at once. A prompt that another replica has computed always arrives while steps go on.
    """

    def __init__(
        self,
        kv: KVAllocator,
        host: HostPool | None = None,
        *,
        block_bytes: int,
        fixed_blocks: int = 0,
        bound_tokens: int | None = None,
        overlap: bool = False,
    ) -> None:
        self._kv, self._host, self._overlap = kv, host, overlap
        self._block_bytes, self._fixed = block_bytes, fixed_blocks
        self._bound = NO_LIMIT if bound_tokens is None else bound_tokens

    def out(self, victim: Request) -> Transfer | None:
        """A decoding request, whose counts are current, leaves its blocks; None: there is no room, nothing changed."""
        bytes_ = self._bytes(victim)
        if self._host is None or not self._host.put(victim, bytes_):
            return None
        if self._overlap:
            self._kv.park(victim)
        else:
            self._kv.release(victim)
        return Transfer(victim, bytes_, OUT)

    def bring_in(self, request: Request) -> Transfer | None:
        """Room for a request that is elsewhere, and the copy; None: there is no room, or it has not left yet."""
        if self._kv.restore(request) is None:
            return None
        swapped = self._host is not None and self._host.size(request)
        return Transfer(request, self._bytes(request), IN if swapped else HANDOFF)

    def delays_step(self, transfer: Transfer) -> bool:
        """Whether the step that a transfer comes with waits for it."""
        return transfer.kind != HANDOFF and not self._overlap

    def arrived(self, request: Request) -> None:
        """Its keys and values are back from the host, if they were there."""
        if self._host is not None:
            self._host.take(request)

    def gone(self, request: Request) -> None:
        """The request has ended; what the host has of it is of no use."""
        if self._host is not None:
            self._host.drop(request)

    def _bytes(self, request: Request) -> int:
        tokens = min(request.computed_tokens, self._bound)
        return (ceil_div(tokens, self._kv.block_tokens) + self._fixed) * self._block_bytes
