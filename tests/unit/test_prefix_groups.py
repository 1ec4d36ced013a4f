"""Sums over the beginnings that decoding sequences share."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sim.batch import DecodeBatch
from sim.prefix_groups import PrefixGroups, SystemPrompt
from sim.request import NUMBER_SHIFT, Request, Traits


def request(number: int, blocks: tuple[int, ...], rest: int = 0, size: int = 16) -> Request:
    traits = Traits(prefix_hashes=blocks, prefix_block_tokens=size)
    return Request(number, 0, size * len(blocks) + rest, 10, traits=traits)


def test_a_system_prompt_is_stored_once() -> None:
    """Three members behind two common blocks of 16 tokens: 32 stored, 96 seen; the last one shares nothing."""
    groups, members = PrefixGroups(), [request(i, (1, 2, 10 + i), 5) for i in range(3)]
    seen = []
    for member in members:
        groups.join(member)
        seen.append(tuple(groups.sums))
    for member in members:
        groups.leave(member)
        seen.append(tuple(groups.sums))
    assert seen == [(0, 0), (32, 64), (32, 96), (32, 64), (0, 0), (0, 0)]


def test_a_tree_has_levels() -> None:
    """Two documents of two blocks behind one system prompt, two questions each: 16 + 2 x 32 stored."""
    groups = PrefixGroups()
    for i, document in enumerate((20, 20, 30, 30)):
        groups.join(request(i, (1, document, document + 1)))
    assert groups.sums == [16 + 2 * 32, 4 * 16 + 4 * 32]


def test_relay_knows_one_level() -> None:
    """What all have in common: with a member of another application it is nothing, and comes back when he leaves."""
    groups, other = SystemPrompt(), request(9, (7, 8))
    for i in range(3):
        groups.join(request(i, (1, 20 + i)))
    assert groups.sums == [16, 48]
    groups.join(other)
    assert groups.sums == [0, 0]
    groups.leave(other)
    assert groups.sums == [16, 48]


def test_samples_share_their_whole_prompt() -> None:
    """Four samples of one prompt of 100 tokens, none of them hashed; only where there are samples is this looked at."""
    for siblings, sums in ((True, [100, 400]), (False, [0, 0])):
        groups = PrefixGroups(siblings=siblings)
        for number in range(4):
            groups.join(Request(5 + (number << NUMBER_SHIFT), 0, 100, 10))
        assert groups.sums == sums


def test_half_a_block_is_not_shared() -> None:
    """Only whole blocks of the prompt itself have an identity; hashes of the answer to come do not count."""
    groups = PrefixGroups()
    for i in range(2):
        traits = Traits(prefix_hashes=(1, 2, 3), prefix_block_tokens=16, hashes_output=True)
        groups.join(Request(i, 0, 33, 10, traits=traits))
    assert groups.sums == [32, 64]


@given(st.lists(st.tuples(st.integers(0, 6), st.lists(st.integers(1, 2), max_size=4)), max_size=25), st.booleans())
def test_sums_are_those_of_who_is_there(moves: list[tuple[int, list[int]]], relay: bool) -> None:
    """After any order of joins and leaves the sums are those of a count from scratch; the batch keeps them."""
    batch = DecodeBatch((), SystemPrompt() if relay else PrefixGroups())
    inside: dict[int, Request] = {}
    for slot, letters in moves:
        if slot in inside:
            batch.leave(inside.pop(slot), batch.steps)
        else:
            chain = tuple(hash(tuple(letters[: i + 1])) for i in range(len(letters)))
            inside[slot] = request(slot, chain, 1)
            batch.join(inside[slot])
        holders = Counter(key for member in inside.values() for key in member.traits.prefix_hashes)
        least = max(2, len(inside)) if relay else 2
        shared = [16 * n for n in holders.values() if n >= least]
        assert list(batch.shape().shared) == [16 * len(shared), sum(shared)]
