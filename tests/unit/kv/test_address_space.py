"""Placement in a contiguous memory: textbook examples, and a memory that is a list of cells."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios import examples
from sim.kv.address_space import BestFit, Buddy, FirstFit, Scattered


def with_holes(space: FirstFit, holes: list[int]) -> dict[int, int]:
    """Open holes of these sizes, one block apart and the last one with a block behind it; size -> address."""
    pieces = [(space.allocate(size), size, space.allocate(1)) for size in holes]
    for address, _, _ in pieces:
        space.free(address or 0)
    return {size: address or 0 for address, size, _ in pieces}


def test_first_fit_takes_the_first_hole_and_best_fit_the_closest() -> None:
    """Holes of 100, 500, 200, 300 and 600; pieces of 212, 417, 112, 426 (Silberschatz et al., exercise 9.13).

    First fit leaves nothing large enough for the last one; best fit places all four.
    """
    wanted, holes = [212, 417, 112, 426], [100, 500, 200, 300, 600]
    first, best = FirstFit(1705), BestFit(1705)
    at = with_holes(first, holes)
    assert with_holes(best, holes) == at
    assert [first.allocate(size) for size in wanted] == [at[500], at[600], at[500] + 212, None]
    assert [best.allocate(size) for size in wanted] == [at[300], at[500], at[200], at[600]]


def test_holes_that_touch_become_one() -> None:
    """A piece that is freed between two holes joins both, so that a piece of the whole size fits again."""
    space = FirstFit(30)
    left, middle, right = (space.allocate(10) for _ in range(3))
    assert (left, middle, right) == (0, 10, 20)
    space.free(0)
    space.free(20)
    assert not space.fits(11)
    space.free(10)
    assert space.allocate(30) == 0


def test_of_equal_holes_best_fit_takes_the_lower() -> None:
    """Two holes of one size: the one at the lower address."""
    space = BestFit(9)
    pieces = [space.allocate(3) for _ in range(3)]
    space.free(pieces[2] or 0)
    space.free(pieces[0] or 0)
    assert space.allocate(2) == 0


def test_buddy_splits_and_merges() -> None:
    """1024 blocks, pieces of 70, 35 and 80: 128 at 0, 64 at 128, 128 at 256; freed, they are one of 1024 again."""
    space = Buddy(1024)
    assert [space.size_for(size) for size in (70, 35, 80, 64, 1)] == [128, 64, 128, 64, 1]
    assert [space.allocate(size) for size in (70, 35, 80)] == [0, 128, 256]
    space.free(0)
    assert space.allocate(60) == 192  # the smallest piece that fits, not the lowest
    space.free(128)
    assert space.allocate(128) == 0
    for address in (0, 192, 256):
        space.free(address)
    assert space.allocate(1024) == 0


def test_buddy_memory_that_is_no_power_of_two() -> None:
    """15,728 slots are 8192 + 4096 + 2048 + ...: seven times 2048, as in the paper on PagedAttention."""
    space = Buddy(15728)
    assert [space.allocate(2048) for _ in range(8)] == [12288, 8192, 10240, 0, 2048, 4096, 6144, None]
    assert space.allocate(1025) is None
    assert space.allocate(1024) == 14336
    assert not space.fits(8193)
    assert not Buddy(0).fits(1)


class Cells:
    """A memory as a list of cells: what the spaces are compared with."""

    def __init__(self, total: int) -> None:
        self.taken = [False] * total

    def holes(self) -> list[tuple[int, int]]:
        """(address, size) of every maximal run of free cells."""
        edges = [-1] + [i for i, taken in enumerate(self.taken) if taken] + [len(self.taken)]
        return [(a + 1, b - a - 1) for a, b in pairwise(edges) if b - a > 1]

    def pieces(self) -> list[tuple[int, int]]:
        """(size, address) of the maximal free aligned powers of two."""
        found = []
        for order in reversed(range(len(self.taken).bit_length())):
            size = 1 << order
            for a in range(0, len(self.taken) - size + 1, size):
                inside = any(b <= a < b + s for s, b in found)
                if not inside and not any(self.taken[a : a + size]):
                    found.append((size, a))
        return sorted(found)

    def choose(self, kind: type, size: int) -> int | None:
        """Where a piece belongs by the definition of each placement."""
        if kind is Buddy:
            return min(((s, a) for s, a in self.pieces() if s >= size), default=(0, None))[1]
        large = [(a, s) for a, s in self.holes() if s >= size]
        key = (lambda hole: hole[0]) if kind is FirstFit else (lambda hole: (hole[1], hole[0]))
        return min(large, key=key, default=(None, 0))[0]


@pytest.mark.parametrize("kind", [FirstFit, BestFit, Buddy])
@given(seed=st.integers(0, 10**6))
@examples(100)
def test_every_placement_is_the_one_by_definition(kind: type, seed: int) -> None:
    """Random pieces come and go: each lies where a search of all cells puts it, and pieces never overlap."""
    rng = random.Random(seed)
    total = rng.choice([1, 7, 16, 40, 100])
    space, cells, held = kind(total), Cells(total), {}
    for _ in range(60):
        if held and rng.random() < 0.45:
            address = rng.choice(sorted(held))
            space.free(address)
            size = held.pop(address)
            cells.taken[address : address + size] = [False] * size
            continue
        size = rng.randint(1, max(1, total // rng.choice([1, 4, 10])))
        whole = space.size_for(size)
        expected = cells.choose(kind, whole)
        assert space.fits(size) == (expected is not None)
        address = space.allocate(size)
        assert address == expected
        if address is not None:
            assert not any(cells.taken[address : address + whole])
            cells.taken[address : address + whole] = [True] * whole
            held[address] = whole
    for address in held:
        space.free(address)
    assert space.fits(1 << total.bit_length() - 1)


def test_scattered_blocks_fit_wherever_they_are() -> None:
    """Without contiguity the number of free blocks is all that counts."""
    space = Scattered(10)
    first, second, third = (space.allocate(3) for _ in range(3))
    space.free(second or 0)
    assert space.fits(4)
    assert not space.fits(5)
    assert space.allocate(5) is None
    assert len({first, second, third, space.allocate(4)}) == 4
