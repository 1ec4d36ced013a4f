"""Host memory for swapped-out requests."""

from __future__ import annotations

from sim.kv.host_pool import HostPool, swap_totals
from sim.request import Request


def test_requests_come_and_go_whole() -> None:
    """What does not fit is refused and counted; what came in again or was dropped makes room."""
    pool, (a, b, c) = HostPool(100), [Request(i, 0, 1, 1) for i in range(3)]
    assert pool.put(a, 60)
    assert not pool.put(b, 41)
    assert pool.put(b, 40)
    assert (pool.used_bytes, pool.size(a), pool.size(c)) == (100, 60, 0)
    pool.take(a)
    pool.drop(b)
    pool.drop(c)  # it never was there
    assert pool.used_bytes == 0
    assert swap_totals([pool, HostPool(1)]) == {
        "swaps": 2, "swapped_out_bytes": 100, "swapped_in_bytes": 60, "dropped_bytes": 40, "host_full": 1,
        "held_bytes": 0,
    }  # fmt: skip
