"""Where in a contiguous memory a reservation is placed: holes by first or best fit, or the buddy system.

Knuth, The Art of Computer Programming, volume 1, section 2.5. Sizes and addresses count blocks.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Protocol


class AddressSpace(Protocol):
    """A memory from which pieces are taken and given back. Every choice is determined by the sizes asked for."""

    def size_for(self, size: int) -> int:
        """Blocks that are held for a request of `size` blocks."""
        ...

    def fits(self, size: int) -> bool:
        """Whether `allocate` would find room now."""
        ...

    def allocate(self, size: int) -> int | None:
        """The address of the new piece; None when nothing free is large enough, and then nothing has changed."""
        ...

    def free(self, address: int) -> None:
        """The piece at this address is no longer held."""
        ...


class Scattered:
    """No piece needs to be contiguous, so anything fits that is not more than what is free."""

    def __init__(self, total: int) -> None:
        self._free, self._serial = total, 0
        self._held: dict[int, int] = {}

    def size_for(self, size: int) -> int:
        """As asked."""
        return size

    def fits(self, size: int) -> bool:
        """Blocks anywhere will do."""
        return size <= self._free

    def allocate(self, size: int) -> int | None:
        """A name for the piece rather than an address."""
        if size > self._free:
            return None
        self._free -= size
        self._serial += 1
        self._held[self._serial] = size
        return self._serial

    def free(self, address: int) -> None:
        """Back to the pool."""
        self._free += self._held.pop(address)


class FirstFit:
    """The hole at the lowest address that is large enough; holes that touch are one.

    Whether anything fits is known at once. A search walks the holes, of which there is at most one more than pieces
    held.
    """

    def __init__(self, total: int) -> None:
        self._holes = {0: total} if total else {}  # address -> size
        self._addresses = sorted(self._holes)
        self._sizes = [(size, address) for address, size in self._holes.items()]  # sorted
        self._held: dict[int, int] = {}

    def size_for(self, size: int) -> int:
        """As asked."""
        return size

    def fits(self, size: int) -> bool:
        """Whether the largest hole is large enough."""
        return bool(self._sizes) and self._sizes[-1][0] >= size

    def allocate(self, size: int) -> int | None:
        """From the lower end of a hole."""
        if not self.fits(size):
            return None
        address = self._choose(size)
        left = self._fill(address) - size
        if left:
            self._open(address + size, left)
        self._held[address] = size
        return address

    def free(self, address: int) -> None:
        """A hole, joined to those it touches."""
        size = self._held.pop(address)
        after = address + size
        if after in self._holes:
            size += self._fill(after)
        i = bisect_left(self._addresses, address)
        if i:
            before = self._addresses[i - 1]
            if before + self._holes[before] == address:
                size += self._fill(before)
                address = before
        self._open(address, size)

    def _choose(self, size: int) -> int:
        return next(address for address in self._addresses if self._holes[address] >= size)

    def _open(self, address: int, size: int) -> None:
        self._holes[address] = size
        insort(self._addresses, address)
        insort(self._sizes, (size, address))

    def _fill(self, address: int) -> int:
        """The hole is a hole no longer; its size."""
        size = self._holes.pop(address)
        del self._addresses[bisect_left(self._addresses, address)]
        del self._sizes[bisect_left(self._sizes, (size, address))]
        return size


class BestFit(FirstFit):
    """The smallest hole that is large enough; of equal ones that at the lowest address."""

    def _choose(self, size: int) -> int:
        return self._sizes[bisect_left(self._sizes, (size, 0))][1]


class Buddy:
    """Powers of two only: a piece is halved until it is the size wanted, and joins its other half when both are free.

    Knowlton, Communications of the ACM 8 (1965). A memory whose size is no power of two is the sum of some: from
    address 0 the largest first, so that every piece lies at a multiple of its size.
    """

    def __init__(self, total: int) -> None:
        self._free: dict[int, list[int]] = {1 << order: [] for order in range(total.bit_length())}  # size -> addresses
        self._held: dict[int, int] = {}
        address = 0
        for size in sorted(self._free, reverse=True):
            if total & size:
                self._free[size].append(address)
                address += size

    def size_for(self, size: int) -> int:
        """The next power of two."""
        return 1 << (size - 1).bit_length() if size else 0

    def fits(self, size: int) -> bool:
        """Whether any free piece is large enough."""
        return self._smallest(self.size_for(size)) is not None

    def allocate(self, size: int) -> int | None:
        """The lower half of the lower half, and so on, of the lowest piece among the smallest that fit."""
        size = self.size_for(size)
        found = self._smallest(size)
        if found is None:
            return None
        address = self._free[found].pop(0)
        while found > size:
            found >>= 1
            insort(self._free[found], address + found)
        self._held[address] = size
        return address

    def free(self, address: int) -> None:
        """Joined to its buddy, and the whole to its own, as far as they are free."""
        size = self._held.pop(address)
        while True:
            pieces, buddy = self._free[size], address ^ size
            i = bisect_left(pieces, buddy)
            if i == len(pieces) or pieces[i] != buddy:
                insort(pieces, address)
                return
            del pieces[i]
            address, size = min(address, buddy), 2 * size

    def _smallest(self, size: int) -> int | None:
        """The smallest size of which a piece is free, from `size` up."""
        while size and not self._free.get(size, True):
            size *= 2
        return size if self._free.get(size) else None
