"""Requests whose keys and values are copied elsewhere, and come back."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios import examples
from sim.kv.base import KVAllocator
from sim.kv.bounded import BoundedKV
from sim.kv.paged import PagedKV
from sim.kv.predicted import PredictedKV
from sim.policies import ALLOCATORS, PREFIX_CACHES
from sim.request import Request, Traits


def decoding(kv: PagedKV, id_: int, tokens: int, output: int = 50) -> Request:
    """A request whose prompt is computed."""
    request = Request(id_, 0, tokens, output)
    assert kv.reserve(request, tokens) is not None
    request.computed_tokens = tokens
    kv.grow(request)
    return request


def test_a_parked_request_keeps_its_blocks_and_does_not_grow() -> None:
    """Until it is released, whatever becomes of it elsewhere."""
    kv = PagedKV(10, 4)
    request = decoding(kv, 0, 8)
    assert (kv.free_blocks, kv.used_after(1)) == (8, 3)
    kv.park(request)
    assert (kv.free_blocks, kv.used_after(1), kv.parked_blocks) == (8, 2, 2)
    request.computed_tokens += 5  # on another replica
    kv.advance(3)
    kv.check([])
    kv.release(request)
    assert (kv.free_blocks, kv.parked_blocks, kv.stored_tokens) == (10, 0, 0)


def test_restore_wants_room_for_the_next_token() -> None:
    """A context that fills its blocks comes back only where there is one block more; it does not take that one yet."""
    for context, needed in ((7, 2), (8, 3)):
        request = Request(0, 0, context, 50)
        request.computed_tokens = context
        for free in range(5):
            kv = PagedKV(10, 4)
            decoding(kv, 1, 4 * (10 - free))
            room = free - 1  # the next token of the other request is served first
            assert (kv.restore(request) is not None) == (room >= needed)
            assert kv.free_blocks == free - (2 if room >= needed else 0)
            request.reserved_tokens = 0


def test_nobody_is_restored_who_is_still_parked() -> None:
    """Its blocks are being read."""
    kv = PagedKV(10, 4)
    request = decoding(kv, 0, 8)
    kv.park(request)
    assert kv.restore(request) is None
    kv.release(request)
    assert kv.restore(request) is not None
    kv.check([(request, 8)])


ALL: dict[str, Callable[..., KVAllocator]] = {
    **ALLOCATORS,
    **PREFIX_CACHES,
    "bounded": lambda *sizes: BoundedKV(*sizes, bound_tokens=15),
    "large pages": lambda *sizes: PredictedKV(*sizes, growth_blocks=3),
}


@pytest.mark.parametrize("kind", ALL)
@given(seed=st.integers(0, 10**6))
@examples(100)
def test_blocks_are_conserved(kind: str, seed: int) -> None:
    """After any history of admissions, growth, parking, release and restoration the books add up, and all is free."""
    rng = random.Random(seed)
    kv = ALL[kind](rng.choice([12, 40]), rng.choice([1, 3, 4]), rng.choice([0, 2]))
    here: list[Request] = []
    parked: list[Request] = []
    away: list[Request] = []
    for i in range(40):
        action = rng.choice(["admit", "advance", "park", "release", "restore", "finish"])
        if action == "admit":
            tokens = rng.randint(1, 20)
            hashes = tuple(rng.choice([0, 0, 0, 1]) for _ in range(tokens))
            request = Request(i, 0, tokens, 50, traits=Traits(prefix_hashes=hashes, prefix_block_tokens=1))
            if kv.reserve(request, tokens) is not None:
                request.computed_tokens = tokens
                kv.grow(request)
                here.append(request)
        elif action == "advance":
            steps = kv.growth_limit(rng.randint(1, 9))
            kv.advance(steps)
            for request in here:
                request.computed_tokens += steps
        elif action == "park" and here:
            parked.append(here.pop(rng.randrange(len(here))))
            kv.park(parked[-1])
        elif action == "release" and parked:
            away.append(parked.pop(rng.randrange(len(parked))))
            kv.release(away[-1])
        elif action == "restore" and away:
            request = away.pop()
            if kv.restore(request) is not None:
                kv.grow(request)
                here.append(request)
                assert kv.shortage() == 0
        elif action == "finish" and here:
            kv.release(here.pop())
        kv.check([(request, request.computed_tokens) for request in here])
    for request in here + parked:
        kv.release(request)
    kv.check([])
    assert (kv.free_blocks, kv.stored_tokens, kv.parked_blocks) == (kv.total_blocks, 0, 0)
