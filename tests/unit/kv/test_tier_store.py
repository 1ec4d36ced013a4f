"""Memory below the GPU's: what goes where, what moves on, and what is forgotten."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios import examples
from sim.kv.load_policy import LoadRule
from sim.kv.prefix_tree import Prompt, Run
from sim.kv.tier_store import TierStore
from sim.kv.tiered import TieredKV, TieredRadixKV
from sim.request import COMPLETED, Request, Traits
from sim.units import PS_PER_S

SIZE = 4


def content(store: TierStore, *keys: int) -> Prompt:
    """A prompt of one block per key."""
    return store.prompt(Prompt(Run(None, None, (), 0, 0), keys, 1, len(keys)), SIZE)


def put(store: TierStore, *keys: int) -> list[int]:
    """All of it."""
    return store.put(content(store, *keys), len(keys))


def parts(store: TierStore, *keys: int) -> list[int]:
    """Where it is, from its beginning."""
    return store.parts(content(store, *keys), 0, len(keys))


def test_what_is_full_moves_on_and_is_forgotten_at_last() -> None:
    """The oldest run goes to the next tier as a whole, and from the last one it is gone."""
    store = TierStore([5, 4])
    assert put(store, 1, 2, 3) == [3, 0]
    assert put(store, 4, 5) == [2, 0]
    assert put(store, 6) == [1, 3]
    assert (parts(store, 1, 2, 3), parts(store, 4, 5), parts(store, 6)) == ([0, 3], [2, 0], [1, 0])
    put(store, 7, 8, 9, 10)
    assert (parts(store, 4, 5), parts(store, 1, 2, 3)) == ([0, 2], [0, 0])
    assert store.used == [5, 2]


def test_what_is_used_again_comes_back_to_the_first_tier() -> None:
    """It is written there again, and the newest; what it shares with others is there once."""
    store = TierStore([4, 100])
    put(store, 1, 2, 3)
    put(store, 5, 6, 7)
    assert parts(store, 1, 2, 3) == [0, 3]
    assert store.missing(content(store, 1, 2, 9), 3) == 3
    assert put(store, 1, 2, 9) == [3, 3]
    assert parts(store, 1, 2, 9) == [3, 0]
    assert parts(store, 1, 2, 3) == [2, 1]  # its end has stayed where it was
    assert parts(store, 5, 6, 7) == [0, 3]


@given(seed=st.integers(0, 10**6))
@examples(200)
def test_tiers_hold_what_they_can_and_beginnings_longer_than_ends(seed: int) -> None:
    """After any history tiers are no fuller than they may be, add up, and no end is faster than its beginning."""
    rng = random.Random(seed)
    store = TierStore(rng.choice([[6], [6, 10], [3, 5, 30]]))
    for _ in range(40):
        put(store, *(rng.choice([0, 0, 1, 2]) for _ in range(rng.randint(1, 7))))
        runs = [run for root in store._roots.values() for run in root.descendants()]
        for tier, capacity in enumerate(store.capacities):
            assert store.used[tier] == sum(run.blocks for run in runs if run.tier == tier) <= capacity
            assert set(store._queues[tier]) == {run for run in runs if run.tier == tier}
        assert all(run.parent is None or run.parent.parent is None or run.tier >= run.parent.tier for run in runs)


@pytest.mark.parametrize(("blocks", "worth"), [(1, False), (10, True)])
def test_a_load_is_cheaper_where_its_latency_pays(blocks: int, worth: bool) -> None:
    """One second before the first byte, a block a millisecond; a block is computed in 0.2 s. Others do not ask."""
    rates = [(1000, PS_PER_S)]
    asked = [LoadRule(policy, rates, 1, SIZE, lambda cached, new: new // SIZE * PS_PER_S // 5) for policy in
             ("cheaper", "always", "never")]  # fmt: skip
    assert [rule(0, [blocks]) for rule in asked] == [worth, True, False]
    assert asked[0].load_ps([blocks]) == PS_PER_S + blocks * PS_PER_S // 1000


def ask(kv: TieredKV, *hashes: int) -> Request:
    """A request of 17 tokens that has just arrived."""
    return Request(0, 0, 17, 1, traits=Traits(prefix_hashes=hashes, prefix_block_tokens=SIZE))


def serve(kv: TieredKV, request: Request) -> None:
    """Admit, compute and release."""
    assert kv.reserve(request, 17) is not None
    request.computed_tokens, request.state = 17, COMPLETED
    kv.release(request)


@pytest.mark.parametrize("make", [TieredKV, TieredRadixKV])
def test_what_the_gpu_forgot_is_loaded_before_admission(make: type[TieredKV]) -> None:
    """A prompt that others have pushed out comes back from the host once it has arrived there."""
    kv = make(6, SIZE, store=TierStore([100]), worth=lambda cached, parts: True, prefetch=False)
    serve(kv, ask(kv, 1, 2, 3, 4))
    (write,) = kv.writes
    assert write.end == 4
    assert not kv.is_stored(ask(kv, 1, 2, 3, 4))
    serve(kv, ask(kv))
    kv.store.put(write.prompt, write.end)
    late = ask(kv, 1, 2, 3, 4)
    assert kv.is_stored(late)
    there = kv.find_cached(late) // SIZE
    assert there < 4
    assert kv.reserve(late, 17) is None
    (load,) = kv.loads
    assert (load.request, load.parts) == (late, [4 - there])
    kv.check([])
    assert kv.reserve(late, 17) is None  # it is under way
    kv.end_load(load)
    grant = kv.reserve(late, 17)
    assert grant is not None
    assert grant.cached_tokens == 16
    assert kv.loaded == [4 - there]
    kv.check([(late, 16)])


def test_a_load_without_room_is_none() -> None:
    """Who cannot be given the blocks of a copy is computed as if there were no tiers."""
    kv = TieredKV(6, SIZE, store=TierStore([100]), worth=lambda cached, parts: True)
    kv.store.put(content(kv.store, 1, 2, 3, 4), 4)
    holder = ask(kv)
    assert kv.reserve(holder, 9) is not None
    assert kv.begin_load(ask(kv, 1, 2, 3, 4)) is None
    kv.check([(holder, 9)])
