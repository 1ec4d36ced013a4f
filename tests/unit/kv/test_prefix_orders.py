"""Every way to match and to evict prefixes, held to models that keep each block or node in a list."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_caches import Guest, PlainBlocks, PlainRadix

from scenarios import examples
from sim.kv.prefix_cache import PrefixCachedKV
from sim.kv.radix_cache import RadixCachedKV
from sim.request import Request, Traits

Plain = PlainBlocks | PlainRadix


class Pair:
    """An allocator and its model, in which the same things happen."""

    def __init__(self, rng: random.Random, match: str, eviction: str) -> None:
        self.rng, self.size, self.per = rng, rng.choice([1, 1, 2, 4]), rng.choice([1, 2, 4, 6])
        blocks = rng.choice([12, 20, 40, 200])
        make: Callable[..., PrefixCachedKV] = RadixCachedKV if match == "radix" else PrefixCachedKV
        self.kv = make(blocks, self.size, eviction=eviction)
        plain: Callable[..., Plain] = PlainRadix if match == "radix" else PlainBlocks
        self.plain = plain(blocks, self.size, eviction == "lfu")
        self.inside: list[tuple[Request, Guest]] = []
        self.born = 0

    def newcomer(self) -> tuple[Request, Guest]:
        """A request and what its tokens are; hashes may end early, or name its answer."""
        rng, per = self.rng, self.per
        prompt, output, named = rng.randint(1, 20), rng.randint(1, 12), rng.random() < 0.5
        last = -(-(prompt + output) // per) if named else rng.choice([prompt // per, -(-prompt // per)])
        hashes = tuple(rng.choice([0, 0, 0, 1]) for _ in range(last))
        traits = Traits(prefix_hashes=hashes, prefix_block_tokens=per, hashes_output=named)
        known = last * per if named else min(last * per, prompt)
        # A token is known by the hash it lies in, and a page by the hashes of all of its tokens.
        content: list[object] = [(hashes[i // per], i) for i in range(known)]
        self.born += 1
        return Request(self.born, 0, prompt, output, traits=traits), Guest(content)

    def act(self) -> None:
        """One random thing."""
        action = self.rng.choice(["admit", "admit", "chunk", "chunk", "grow", "leave", "leave"])
        young = [pair for pair in self.inside if not pair[1].grows]
        if action == "admit":
            self.admit(*self.newcomer())
        elif action == "chunk" and young:
            self.chunk(*self.rng.choice(young))
        elif action == "grow":
            self.grow(self.kv.growth_limit(self.rng.randint(1, 6)))
        elif action == "leave" and self.inside:
            self.leave(*self.rng.choice(self.inside))
        assert self.kv.free_blocks == self.plain.free
        probe, guest = self.newcomer()
        found = self.plain.find(guest, probe.target_tokens - 1)
        assert self.kv.find_cached(probe) == len(found) * self.size
        self.kv.check([(request, request.computed_tokens) for request, _ in self.inside])

    def admit(self, request: Request, guest: Guest) -> None:
        tokens = self.rng.randint(1, request.prompt_tokens)
        grant = self.kv.reserve(request, tokens)
        if grant is None:
            return
        assert grant.cached_tokens == self.plain.admit(guest, request.target_tokens - 1)
        tokens = min(tokens, request.target_tokens - guest.has)
        self.plain.extend(guest, tokens, guest.has + tokens)
        request.computed_tokens = guest.has
        self.inside.append((request, guest))
        self.settle(request, guest)

    def chunk(self, request: Request, guest: Guest) -> None:
        tokens = self.rng.randint(1, request.prompt_tokens - guest.has)
        if self.kv.reserve(request, tokens) is None:
            return
        before = guest.has
        self.plain.extend(guest, tokens, before + tokens)
        self.plain.computed(guest, before)
        request.computed_tokens = guest.has
        self.settle(request, guest)

    def settle(self, request: Request, guest: Guest) -> None:
        if guest.has == request.prompt_tokens:
            guest.grows, request.emitted_tokens = True, 1
            self.kv.grow(request)
            self.plain.computed(guest, guest.has)

    def grow(self, steps: int) -> None:
        growing = [pair for pair in self.inside if pair[1].grows]
        self.kv.advance(steps)
        for _ in range(steps):
            for request, guest in growing:
                self.plain.extend(guest, 1, request.prompt_tokens)
                request.computed_tokens += 1
                request.emitted_tokens += 1

    def leave(self, request: Request, guest: Guest) -> None:
        self.inside.remove((request, guest))
        wasted = guest.grows and self.rng.random() < 0.3  # its last token was in flight: it has one more than counts
        request.emitted_tokens -= wasted
        self.kv.release(request)
        known = request.prompt_tokens + request.emitted_tokens - 1 if guest.grows else guest.has
        self.plain.leave(guest, known)


@pytest.mark.parametrize("eviction", ["lru", "lfu"])
@pytest.mark.parametrize("match", ["hash_block", "radix"])
@given(seed=st.integers(0, 10**9))
@examples(250)
def test_found_and_free_as_in_the_plain_model(match: str, eviction: str, seed: int) -> None:
    """After any history both find the same tokens of any prompt, and have the same number of free blocks."""
    pair = Pair(random.Random(seed), match, eviction)
    for _ in range(60):
        pair.act()
