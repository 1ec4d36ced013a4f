"""Blocks that sequences share, against a table of block numbers per sequence that is copied and written to."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios import examples
from sim.errors import InvariantError
from sim.kv.forked import ForkedKV
from sim.request import Request
from sim.sequences import Sequence, with_sequences


def prompt(kv: ForkedKV, tokens: int, n: int, id_: int = 0) -> Sequence:
    """A request with n sequences whose prompt has just been computed."""
    request = with_sequences(Request(id_, 0, tokens, 50), (50,) * n)
    assert kv.reserve(request, tokens) is not None
    request.computed_tokens = tokens
    return request


def fork(kv: ForkedKV, first: Sequence) -> list[Sequence]:
    """All sequences of a request decode."""
    kv.grow(first)
    for child in first.group.fork():
        kv.fork(first, child)
        first.forks -= 1
        kv.grow(child)
    return list(first.group.members)


def test_a_fork_shares_full_blocks_and_copies_the_last_one() -> None:
    """Two samples of a prompt of seven tokens in blocks of four (the paper's Figure 8) take three, not four."""
    kv = ForkedKV(10, 4)
    first = prompt(kv, 7, 2)
    assert kv.usage().used_blocks == 3  # the room for the copy comes with the prompt
    pair = fork(kv, first)
    assert (kv.usage().used_blocks, kv.shared_blocks, kv.stored_tokens) == (3, 1, 10)
    kv.advance(2)  # tokens 8 and 9: each takes a block of its own
    assert (kv.usage().used_blocks, kv.shared_blocks) == (5, 1)
    for sequence in pair:
        sequence.computed_tokens += 2
    kv.release(pair[0])
    assert (kv.usage().used_blocks, kv.shared_blocks, kv.stored_tokens) == (3, 0, 9)
    kv.release(pair[1])
    assert (kv.free_blocks, kv.stored_tokens) == (10, 0)


def test_a_prompt_of_full_blocks_needs_no_copies() -> None:
    """Six samples of two full blocks hold two blocks until they write."""
    kv = ForkedKV(8, 4)
    fork(kv, prompt(kv, 8, 6))
    assert (kv.free_blocks, kv.shared_blocks, kv.shortage()) == (6, 10, 0)


def test_a_prompt_waits_for_the_room_of_its_forks() -> None:
    """What two chunks need fits; the copies that come with the last one must fit as well, or nothing is taken."""
    kv = ForkedKV(4, 4)
    request = with_sequences(Request(0, 0, 7, 50), (50,) * 4)
    assert not kv.can_reserve(request, 7)
    assert kv.reserve(request, 7) is None
    assert (kv.free_blocks, kv.blocks_for(request)) == (4, 15)
    assert kv.can_reserve(request, 6)
    assert kv.reserve(request, 6) is not None
    request.computed_tokens = 6
    assert kv.reserve(request, 1) is None
    kv.check([(request, 6)])
    kv.release(request)
    assert kv.free_blocks == 4


def test_room_for_copies_comes_back_when_the_prompt_is_given_up() -> None:
    """A request whose client goes while its last chunk is computed leaves nothing behind."""
    kv = ForkedKV(10, 4)
    request = with_sequences(Request(0, 0, 7, 50), (50,) * 4)
    assert kv.reserve(request, 7) is not None
    assert kv.free_blocks == 10 - 2 - 3
    kv.release(request)
    assert kv.free_blocks == 10


def test_only_sequences_fork() -> None:
    """A request with one sequence has nothing to share."""
    kv = ForkedKV(10, 4)
    with pytest.raises(InvariantError, match="no sequence"):
        kv.fork(Request(0, 0, 4, 5), Request(1, 0, 4, 5))


@given(seed=st.integers(0, 10**6), size=st.integers(1, 6), fixed=st.sampled_from([0, 0, 2]))
@examples(200)
def test_blocks_are_those_of_a_table_per_sequence(seed: int, size: int, fixed: int) -> None:
    """Forks, beams that replace each other, growth and ends: blocks in use are the distinct ones of all tables."""
    rng = random.Random(seed)
    kv = ForkedKV(10**4, size, fixed)
    tables: dict[Sequence, list[int]] = {}
    fresh = iter(range(10**9))

    def copied(table: list[int], tokens: int) -> list[int]:
        last = [next(fresh) for _ in table[tokens // size :]]
        return table[: tokens // size] + last

    for number in range(40):
        action = rng.choice(["start", "advance", "advance", "switch", "switch", "switch", "stop"])
        if action == "start":
            members = fork(kv, prompt(kv, rng.randint(1, 20), rng.randint(1, 5), number))
            first = [next(fresh) for _ in range(-(-members[0].computed_tokens // size))]
            tables |= {s: copied(first, s.computed_tokens) if s is not members[0] else first for s in members}
        elif action == "advance":
            steps = rng.randint(1, 2 * size)
            kv.advance(steps)
            for sequence, table in tables.items():
                sequence.computed_tokens += steps
                table += [next(fresh) for _ in range(-(-sequence.computed_tokens // size) - len(table))]
        elif tables and action == "switch":
            dropped = rng.choice(list(tables))
            siblings = [s for s in tables if s.group is dropped.group and s is not dropped]
            if siblings:
                other = rng.choice(siblings)
                kv.release(dropped)
                kv.fork(other, dropped)
                kv.grow(dropped)
                tables[dropped] = copied(tables[other], other.computed_tokens)
        elif tables:
            gone = rng.choice(list(tables))
            kv.release(gone)
            del tables[gone]
        distinct = {block for table in tables.values() for block in table}
        assert kv.usage().used_blocks == len(distinct) + fixed * len(tables)
        assert kv.shared_blocks == sum(map(len, tables.values())) - len(distinct)
        kv.check([(sequence, sequence.computed_tokens) for sequence in tables])
