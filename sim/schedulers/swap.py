"""Preemption by swapping: keys and values wait in the host's memory instead of being recomputed (vLLM V0)."""

from __future__ import annotations

from sim.kv.base import KVAllocator
from sim.kv.host_pool import HostPool
from sim.request import Request
from sim.step import IN, OUT, Transfer
from sim.units import ceil_div


class Swap:
    """What a scheduler asks when it preempts and when it admits somebody who was swapped out.

    Whole blocks are copied, `block_bytes` each over all GPUs of the replica, and `fixed_blocks` of every request. With
    `overlap`, steps go on while copies are under way: a victim keeps its blocks until its copy has ended. Without, the
    step that follows waits for the copies, and the blocks are free at once.
    """

    def __init__(
        self, kv: KVAllocator, pool: HostPool, *, block_bytes: int, fixed_blocks: int = 0, overlap: bool = False
    ) -> None:
        self.pool, self.overlap = pool, overlap
        self._kv, self._block_bytes, self._fixed = kv, block_bytes, fixed_blocks

    def out(self, victim: Request) -> Transfer | None:
        """A decoding request, whose counts are current, leaves its blocks; None: the host is full, nothing changed."""
        blocks = ceil_div(victim.computed_tokens, self._kv.block_tokens) + self._fixed
        if not self.pool.put(victim, blocks * self._block_bytes):
            return None
        if self.overlap:
            self._kv.park(victim)
        else:
            self._kv.release(victim)
        return Transfer(victim, blocks * self._block_bytes, OUT)

    def bring_in(self, request: Request) -> Transfer | None:
        """Room for a request that was swapped out; None: there is none, or it has not left yet."""
        if self._kv.restore(request) is None:
            return None
        return Transfer(request, self.pool.size(request), IN)
