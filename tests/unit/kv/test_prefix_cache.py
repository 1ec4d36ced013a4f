"""The prefix cache by hand: what is found, what is shared, and which blocks go first."""

from __future__ import annotations

import pytest

from sim.errors import InvariantError
from sim.kv.prefix_cache import PrefixCachedKV
from sim.request import Request, Traits

SIZE = 4


def prompt(tokens: int, *hashes: int, per: int = SIZE, id_: int = 0) -> Request:
    """A request whose prompt holds what the hashes say."""
    return Request(id_, 0, tokens, 1, traits=Traits(prefix_hashes=hashes, prefix_block_tokens=per))


def admit(kv: PrefixCachedKV, request: Request, tokens: int | None = None) -> int:
    """Reserve and compute a first chunk (the whole prompt); the tokens found."""
    grant = kv.reserve(request, request.target_tokens if tokens is None else tokens)
    assert grant is not None
    request.computed_tokens = request.reserved_tokens
    kv.check([(r, r.computed_tokens) for r in {**kv._prompts, request: None}])
    return grant.cached_tokens


def serve(kv: PrefixCachedKV, request: Request) -> int:
    """Admit and release; the tokens found."""
    found = admit(kv, request)
    kv.release(request)
    kv.check([(r, r.computed_tokens) for r in kv._prompts])
    return found


def test_a_prompt_seen_before_is_found_but_for_its_last_token() -> None:
    """A whole prompt in the cache still leaves its last block to be computed, or else its last partial one."""
    kv = PrefixCachedKV(100, SIZE)
    assert serve(kv, prompt(12, 1, 2, 3)) == 0
    assert serve(kv, prompt(12, 1, 2, 3)) == 8
    assert serve(kv, prompt(13, 1, 2, 3)) == 12
    assert serve(kv, prompt(12, 1, 2, 9)) == 8
    assert serve(kv, prompt(12, 9, 2, 3)) == 0


def test_equal_hashes_mean_nothing_after_different_beginnings() -> None:
    """A block is known by all that comes before it, as its keys and values are."""
    kv = PrefixCachedKV(100, SIZE)
    serve(kv, prompt(13, 1, 2, 3))
    assert serve(kv, prompt(13, 2, 2, 3)) == 0
    assert serve(kv, prompt(13, 1, 3, 3)) == 4


def test_shared_blocks_are_held_once() -> None:
    """Two requests with the same beginning take its blocks once, and the last of them to go gives them back."""
    kv = PrefixCachedKV(100, SIZE)
    first, second = prompt(13, 1, 2, 3), prompt(18, 1, 2, 3, 4, id_=1)
    admit(kv, first)
    assert kv.usage().used_blocks == 4
    assert admit(kv, second) == 12
    assert kv.usage().used_blocks == 6
    assert kv.stored_tokens == 13 + 18 - 12
    kv.release(first)
    assert kv.usage().used_blocks == 5
    kv.release(second)
    assert (kv.free_blocks, kv.stored_tokens) == (100, 0)


def test_a_block_can_be_found_as_soon_as_a_plan_fills_it() -> None:
    """Two equal prompts in one plan: the second finds what the first is about to compute, full blocks only."""
    kv = PrefixCachedKV(100, SIZE)
    first, second, third = (prompt(20, 1, 2, 3, 4, 5, id_=i) for i in range(3))
    assert kv.reserve(first, 10) is not None
    assert kv.find_cached(second) == 8
    first.computed_tokens = 10
    assert kv.reserve(first, 6) is not None
    assert kv.find_cached(third) == 16


def test_the_least_recently_freed_blocks_go_first_and_ends_before_beginnings() -> None:
    """Ten blocks, two prompts of four blocks: what a third one takes is the older prompt, from its end."""
    kv = PrefixCachedKV(10, SIZE)
    serve(kv, prompt(16, 1, 2, 3, 4))
    serve(kv, prompt(16, 5, 6, 7, 8))
    assert kv.find_cached(prompt(17, 1, 2, 3, 4)) == 16
    serve(kv, Request(0, 0, 16, 1))  # takes the two blocks never used, and two of the oldest prompt
    assert kv.find_cached(prompt(17, 1, 2, 3, 4)) == 8
    assert kv.find_cached(prompt(17, 5, 6, 7, 8)) == 16
    serve(kv, prompt(9, 1, 2))  # uses what is left of the oldest, which makes it the youngest
    serve(kv, Request(0, 0, 28, 1))
    assert kv.find_cached(prompt(17, 1, 2, 3, 4)) == 8
    assert kv.find_cached(prompt(17, 5, 6, 7, 8)) == 0


def test_growth_takes_blocks_from_the_cache() -> None:
    """Generated tokens evict like any others, and a run of steps evicts as much as its steps one by one."""
    found = []
    for steps in ([20], [1] * 20):
        kv = PrefixCachedKV(10, SIZE)
        serve(kv, prompt(32, 1, 2, 3, 4, 5, 6, 7, 8))
        decoding = Request(1, 0, 8, 20)
        admit(kv, decoding)
        kv.grow(decoding)
        for k in steps:
            kv.advance(k)
            decoding.computed_tokens += k
        found.append(kv.find_cached(prompt(33, 1, 2, 3, 4, 5, 6, 7, 8)))
    assert found == [12, 12]


def test_generated_blocks_stand_in_the_queue_but_are_never_found() -> None:
    """What follows the prompt goes back before the prompt does, and nobody can ask for it."""
    kv = PrefixCachedKV(8, SIZE)
    request = prompt(8, 1, 2)
    admit(kv, request)
    kv.grow(request)
    kv.advance(8)
    request.computed_tokens += 8
    kv.release(request)
    assert kv.find_cached(prompt(17, 1, 2, 3, 4)) == 8
    serve(kv, Request(0, 0, 24, 1))  # the four never used and the two generated
    assert kv.find_cached(prompt(17, 1, 2, 3, 4)) == 8


@pytest.mark.parametrize(
    ("size", "per", "tokens", "found"),
    [(16, 512, 1000, 992), (16, 512, 1024, 1008), (512, 512, 1000, 512), (32, 16, 100, 96), (24, 16, 100, 96),
     (16, 24, 40, 32), (1, 16, 20, 19), (64, 16, 63, 0)],
)  # fmt: skip
def test_hash_blocks_and_cache_blocks_may_differ(size: int, per: int, tokens: int, found: int) -> None:
    """Only full cache blocks inside hashed tokens are found, and at most all but one token."""
    kv = PrefixCachedKV(3000, size)
    hashes = tuple(range(-(-tokens // per)))
    serve(kv, prompt(tokens, *hashes, per=per))
    assert serve(kv, prompt(tokens, *hashes, per=per)) == found


def test_hashes_may_cover_a_part_of_the_prompt() -> None:
    """What lies behind the hashed tokens is the request's own."""
    kv = PrefixCachedKV(100, SIZE)
    serve(kv, prompt(50, 1, 2))
    assert serve(kv, prompt(50, 1, 2)) == 8


def test_a_block_across_two_hashes_needs_both() -> None:
    """With hashes of 4 tokens and blocks of 6, the second block is found only when hashes 1, 2 and 3 agree."""
    kv = PrefixCachedKV(100, 6)
    serve(kv, prompt(13, 1, 2, 3, per=4))
    assert kv.find_cached(prompt(13, 1, 2, 4, per=4)) == 6
    assert kv.find_cached(prompt(13, 1, 2, 3, 9, per=4)) == 12


def test_hashes_of_other_lengths_never_match() -> None:
    """A hash of 16 tokens and one of 512 say nothing about each other."""
    kv = PrefixCachedKV(1000, SIZE)
    serve(kv, prompt(64, 1, 2, 3, 4, per=16))
    assert kv.find_cached(prompt(64, 1, per=512)) == 0


def test_a_request_that_comes_back_finds_what_is_left_of_its_prompt() -> None:
    """After a preemption the prompt's blocks are found again as far as nobody has taken them."""
    kv = PrefixCachedKV(8, SIZE)
    victim = prompt(24, 1, 2, 3, 4, 5, 6)
    admit(kv, victim)
    kv.grow(victim)
    kv.release(victim)
    victim.computed_tokens, victim.target_tokens = 0, 25
    assert kv.find_cached(victim) == 24
    admit(kv, Request(1, 0, 16, 1))
    assert kv.find_cached(victim) == 16


def test_equal_blocks_filled_side_by_side_are_kept_apart() -> None:
    """The second of two equal prompts that prefill in turns keeps its own blocks, of which nobody else knows."""
    kv = PrefixCachedKV(100, SIZE)
    first, second = prompt(16, 1, 2, 3, 4), prompt(16, 1, 2, 3, 5, id_=1)
    admit(kv, first, 6)
    assert admit(kv, second, 2) == 4
    assert kv.reserve(first, 10) is not None
    first.computed_tokens = 16
    assert kv.reserve(second, 10) is not None
    second.computed_tokens = 16
    assert kv.usage().used_blocks == 1 + 3 + 3
    kv.check([(first, 16), (second, 16)])
    assert kv.find_cached(prompt(17, 1, 2, 3, 4)) == 16
    assert kv.find_cached(prompt(17, 1, 2, 3, 5)) == 12


def test_a_full_cache_admits_who_shares() -> None:
    """Blocks that others hold need no room, so a long prompt may fit where a short one does not."""
    kv = PrefixCachedKV(5, SIZE)
    admit(kv, prompt(16, 1, 2, 3, 4))
    stranger, relative = Request(1, 0, 8, 1), prompt(18, 1, 2, 3, 4, id_=2)
    assert not kv.can_reserve(stranger, 8)
    assert kv.can_reserve(relative, 18)
    assert admit(kv, relative) == 16


def test_a_prefix_that_nobody_holds_needs_room() -> None:
    """Blocks that are found in the queue leave it: they count like new ones."""
    kv = PrefixCachedKV(5, SIZE)
    serve(kv, prompt(16, 1, 2, 3, 4))
    holder = Request(1, 0, 4, 1)
    admit(kv, holder)
    before = kv.find_cached(prompt(21, 1, 2, 3, 4))
    assert kv.reserve(prompt(21, 1, 2, 3, 4), 5) is None  # four found, two new, and four free
    assert kv.find_cached(prompt(21, 1, 2, 3, 4)) == before == 16


def test_the_decodes_next_blocks_are_not_given_to_a_prompt_that_is_found() -> None:
    """As for any reservation: the growing requests can take their next token afterwards."""
    kv = PrefixCachedKV(5, SIZE)
    serve(kv, prompt(16, 1, 2, 3, 4))
    decoding = Request(1, 0, 4, 9)
    admit(kv, decoding)
    kv.grow(decoding)
    assert kv.reserve(prompt(16, 1, 2, 3, 4), 4) is None
    assert kv.reserve(prompt(12, 1, 2, 3), 4) is not None


def test_fixed_blocks_are_nobodys_prefix() -> None:
    """What a request holds besides its tokens is its own, and comes back to the queue."""
    kv = PrefixCachedKV(20, SIZE, 3)
    request = prompt(9, 1, 2)
    admit(kv, request)
    assert kv.usage().used_blocks == 3 + 3
    assert admit(kv, prompt(9, 1, 2, id_=1)) == 8
    assert kv.usage().used_blocks == 3 + 3 + 4


def test_the_tree_stays_as_small_as_its_prompts_are_few() -> None:
    """A long beginning that short prompts cut into pieces is one run again when a long prompt comes by."""
    kv = PrefixCachedKV(10_000, SIZE)
    everything = tuple(range(100))
    for length in range(100, 0, -7):
        serve(kv, prompt(4 * length + 1, *everything[:length]))
    admit(kv, prompt(401, *everything))
    assert len([run for root in kv._roots.values() for run in root.descendants()]) == 1


def test_cooked_books_are_found() -> None:
    """`check` sees a wrong count of holders, a run that is free but not in the queue, and a queue that is too long."""
    kv = PrefixCachedKV(100, SIZE)
    serve(kv, prompt(40, 5, 6))
    request = prompt(16, 1, 2, 3, 4)
    admit(kv, request)
    held = [(request, 16)]
    run = kv._prompts[request].run
    run.refs += 1
    with pytest.raises(InvariantError, match="holders"):
        kv.check(held)
    run.refs -= 1
    kv.check(held)
    free = next(r for r in kv._free if r.parent is not None)
    kv._free.remove(free)
    kv.free_blocks -= free.blocks
    with pytest.raises(InvariantError, match="free runs"):
        kv.check(held)
    kv._free.add(free)
    kv.free_blocks += free.blocks
    kv.check(held)
    next(iter(kv._free)).end += 1
    with pytest.raises(InvariantError, match="free blocks"):
        kv.check(held)


def test_blocks_that_were_kept_apart_stay_so() -> None:
    """Also when the blocks they equal are gone: what follows them is nobody's to find."""
    kv = PrefixCachedKV(12, SIZE)
    first, second = prompt(16, 1, 2, 3, 4), prompt(20, 1, 2, 3, 4, 5, id_=1)
    admit(kv, first, 6)
    assert admit(kv, second, 2) == 4
    for request, tokens in ((first, 10), (second, 4)):
        assert kv.reserve(request, tokens) is not None
        request.computed_tokens += tokens
    kv.release(first)
    serve(kv, Request(2, 0, 36, 1))  # everything but the second prompt's three blocks is taken
    assert kv.reserve(second, 10) is not None
    second.computed_tokens += 10
    kv.check([(second, 20)])
    assert kv.find_cached(prompt(21, 1, 2, 3, 4, 5)) == 4


def test_a_beginning_that_somebody_holds_alone_stays_a_run_of_its_own() -> None:
    """A short prompt in use gives its blocks back by itself, though a longer one goes on behind them."""
    kv = PrefixCachedKV(100, SIZE)
    short, long = prompt(9, 1, 2), prompt(17, 1, 2, 3, 4, id_=1)
    admit(kv, short)
    serve(kv, prompt(17, 1, 2, 3, 4, id_=2))
    assert admit(kv, long) == 16
    kv.release(long)
    kv.check([(short, 9)])
    assert kv.usage().used_blocks == 3
