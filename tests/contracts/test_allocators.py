"""What `sim.kv.base` promises, for every allocator of `sim.policies`, with shared prompts and forks."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios import examples
from sim.errors import InvariantError
from sim.kv.base import KVAllocator
from sim.kv.bounded import BoundedKV
from sim.kv.max_length import PLACEMENTS, MaxLengthKV
from sim.kv.paged import PagedKV
from sim.kv.predicted import PredictedKV
from sim.policies import ALLOCATORS, FORKING, FORKING_PREFIX_CACHES, PREFIX_CACHES
from sim.request import Request, Traits
from sim.sequences import Sequence, with_sequences

BOUND, CONTEXT = 30, 60
MAKERS = {
    **ALLOCATORS,
    "paged with a watermark": partial(PagedKV, watermark=0.1),
    **{f"max-length, {place}": partial(MaxLengthKV, placement=place) for place in PLACEMENTS},
    "max-length, the whole context": partial(MaxLengthKV, reserve="context", placement="buddy", max_model_len=CONTEXT),
    "predicted, three pages at a time": partial(PredictedKV, growth_blocks=3),
    "paged, bounded": partial(BoundedKV, bound_tokens=BOUND),
    "max-length, bounded": partial(MaxLengthKV, bound_tokens=BOUND),
    "predicted, bounded": partial(PredictedKV, bound_tokens=BOUND, growth_blocks=2),
    **{f"{name}, prefixes cached": make for name, make in PREFIX_CACHES.items()},
    **{f"{name}, prefixes shared": make for name, make in PREFIX_CACHES.items()},
    **{f"{name}, forks": make for name, make in FORKING.items()},
    **{f"{name}, prefixes shared, forks": make for name, make in FORKING_PREFIX_CACHES.items()},
}
pytestmark = pytest.mark.parametrize("kind", MAKERS)


@dataclass
class Tenants:
    """Requests that prefill, grow and leave, as a replica would have them, with an allocator that houses them."""

    kv: KVAllocator
    hash_tokens: int = 0  # 0: prompts share nothing
    forks: bool = False  # whether requests have several sequences
    prefilling: list[Request] = field(default_factory=list)
    growing: list[Request] = field(default_factory=list)
    copied: list[tuple[Request, int]] = field(default_factory=list)  # parked, and the tokens stored
    away: list[Request] = field(default_factory=list)  # their keys and values lie elsewhere
    born: int = 0

    def act(self, rng: random.Random) -> None:
        """One random thing that a scheduler or a replica may do."""
        moves = ["switch", "switch"] if self.forks else ["park", "land", "restore"]
        action = rng.choice(["admit", "admit", "chunk", "advance", "advance", "leave", "leave", *moves])
        if action == "admit":
            request = self.newcomer(rng, rng.randint(1, 40))
            self.born += 1
            if self.chunk(request, rng.randint(1, request.prompt_tokens)):
                self.prefilling.append(request)
                self.settle(request)
        elif action == "chunk" and self.prefilling:
            request = rng.choice(self.prefilling)
            if self.chunk(request, rng.randint(1, request.prompt_tokens - request.computed_tokens)):
                self.settle(request)
        elif action == "advance":
            self.advance_far(rng.randint(1, 40))
        elif action == "leave" and self.holders():
            self.leave(rng.choice(self.prefilling + self.growing))
        elif action == "park" and (short := [r for r in self.growing if r.computed_tokens <= r.prompt_tokens + 30]):
            self.park(rng.choice(short))
        elif action == "land" and self.copied:
            self.land()
        elif action == "restore" and self.away and self.kv.restore(self.away[0]) is not None:
            self.growing.append(self.away.pop(0))
            self.kv.grow(self.growing[-1])

        elif action == "switch" and self.growing:
            self.switch(rng.choice(self.growing), rng.choice(self.growing))

    def switch(self, dropped: Request, other: Request) -> None:
        """A beam is continued twice, in the stead of another one that is as long."""
        if dropped is not other and dropped.computed_tokens == other.computed_tokens:
            self.kv.release(dropped)
            self.kv.fork(other, dropped)
            self.kv.grow(dropped)

    def park(self, request: Request) -> None:
        """A growing request is swapped out: it holds its room until it has been copied."""
        self.growing.remove(request)
        self.kv.park(request)
        self.copied.append((request, request.computed_tokens))

    def land(self) -> None:
        """The oldest copy has ended."""
        request, _ = self.copied.pop(0)
        self.kv.release(request)
        self.away.append(request)

    def newcomer(self, rng: random.Random, prompt: int) -> Request:
        """A request that holds nothing; its prompt may begin like others."""
        request = Request(self.born, 0, prompt, 30)
        request.predicted_output_tokens = rng.choice([1, 10, 30])
        if self.hash_tokens:
            blocks = rng.choice([0, 1, 2]) * prompt // self.hash_tokens
            hashes = tuple(rng.choice([0, 0, 0, 0, 1]) for _ in range(blocks))
            request.traits = Traits(prefix_hashes=hashes, prefix_block_tokens=self.hash_tokens)
        return with_sequences(request, (30,) * rng.choice([1, 2, 4])) if self.forks else request

    def chunk(self, request: Request, tokens: int) -> bool:
        """Room for a chunk, which is computed at once."""
        grant = self.kv.reserve(request, tokens)
        if grant is None:
            return False
        request.computed_tokens += grant.cached_tokens
        request.computed_tokens += min(tokens, request.target_tokens - request.computed_tokens)
        return True

    def settle(self, request: Request) -> None:
        """A prompt that is complete begins to grow."""
        if request.computed_tokens == request.prompt_tokens:
            self.prefilling.remove(request)
            self.growing.append(request)
            self.kv.grow(request)
            for child in request.group.fork() if isinstance(request, Sequence) else ():
                self.kv.fork(request, child)
                request.forks -= 1
                self.growing.append(child)
                self.kv.grow(child)

    def advance(self, steps: int) -> None:
        """Steps in which the growing requests take part."""
        self.kv.advance(steps)
        for request in self.growing:
            request.computed_tokens += steps

    def advance_far(self, steps: int) -> int:
        """As many of these steps as fit, in as many goes as the allocator wants; how many that are."""
        done = 0
        while done < steps and (limit := self.kv.growth_limit(steps - done)):
            assert limit <= steps - done
            self.advance(limit)
            done += limit
        return done

    def leave(self, request: Request) -> None:
        """A request ends or is preempted."""
        (self.growing if request in self.growing else self.prefilling).remove(request)
        self.kv.release(request)

    def holders(self) -> list[tuple[Request, int]]:
        """As `check` wants them."""
        return [(request, request.computed_tokens) for request in self.prefilling + self.growing]

    def copy(self) -> Tenants:
        """Allocator and requests, to try something."""
        return copy.deepcopy(self)

    def look(self) -> tuple[object, ...]:
        """All that can be seen of the allocator; how far it lets others grow at a time is its own affair."""
        kv, later, near = self.kv, [], self.copy().kv
        while len(later) < 40 and near.growth_limit(1):
            later.append(near.used_after(1))
            near.advance(1)
        room = tuple(kv.can_reserve(Request(-2, 0, 100, 5), tokens) for tokens in range(1, 60, 4))
        return kv.usage(), kv.free_blocks, kv.stored_tokens, kv.shortage(), later, room


def housed(kind: str, seed: int) -> Tenants:
    """An allocator after a random history."""
    rng = random.Random(seed)
    size, fixed = rng.choice([1, 3, 4, 16]), rng.choice([0, 0, 2])
    hash_tokens = rng.choice([1, 2, 4, 6, 16]) if "shared" in kind else 0
    tenants = Tenants(MAKERS[kind](rng.choice([12, 30, 80, 1000]), size, fixed), hash_tokens, "forks" in kind)
    for _ in range(rng.randint(0, 60)):
        tenants.act(rng)
    return tenants


def _most_stored(kind: str, request: Request) -> int:
    """Tokens of a sequence that keep their room however long it grows."""
    most = BOUND if "bounded" in kind else 10**9
    if "max-length" in kind:
        longest = request.prompt_tokens + request.max_output_tokens
        most = min(most, max(longest, CONTEXT) if "context" in kind else longest)
    return most


seeds = st.integers(0, 10**6)


@given(seed=seeds, edge=st.booleans(), tokens=st.integers(1, 100))
@examples(300)
def test_a_refused_reservation_changes_nothing(kind: str, seed: int, edge: bool, tokens: int) -> None:
    """`reserve` grants all tokens or returns None, and then the allocator and the request are as before."""
    tenants = housed(kind, seed)
    if edge:  # about as many as there is room for
        tokens = max(1, (tenants.kv.free_blocks + 1) * tenants.kv.block_tokens - tokens)
    request = tenants.newcomer(random.Random(seed), tokens)
    before, offered, known = tenants.look(), tenants.kv.can_reserve(request, tokens), tenants.kv.find_cached(request)
    grant = tenants.kv.reserve(request, tokens)
    assert (grant is not None) == offered if not known else grant is None or offered
    if grant is None:
        assert tenants.look() == before
        assert tenants.kv.find_cached(request) == known
        assert request.reserved_tokens == 0
    else:
        assert grant.cached_tokens == known < request.prompt_tokens
        assert request.reserved_tokens == min(tokens + known, request.prompt_tokens)
    tenants.kv.check([*tenants.holders(), (request, 0)] if grant is not None else tenants.holders())


@given(seed=seeds, tokens=st.integers(1, 400))
@examples(100)
def test_release_restores(kind: str, seed: int, tokens: int) -> None:
    """A reservation that is released takes no room, and releasing everybody leaves all blocks free."""
    tenants = housed(kind, seed)
    request = tenants.newcomer(random.Random(seed), tokens)
    before = tenants.look()
    if tenants.kv.reserve(request, tokens) is not None:
        tenants.kv.release(request)
    assert tenants.look() == before
    for holder, _ in tenants.holders():
        tenants.leave(holder)
    while tenants.copied:
        tenants.land()
    usage = tenants.kv.usage()
    assert (usage.used_blocks, usage.stored_tokens, usage.wasted_tokens) == (0, 0, 0)
    assert tenants.kv.free_blocks == tenants.kv.total_blocks == usage.total_blocks


@given(seed=seeds, steps=st.integers(1, 60))
@examples(150)
def test_growth_limit_is_maximal(kind: str, seed: int, steps: int) -> None:
    """The steps it allows fit one by one; and when it allows no more, the next one does not fit."""
    tenants, single = housed(kind, seed), housed(kind, seed)
    done = tenants.advance_far(steps)
    for _ in range(done):
        assert single.kv.shortage() == 0
        single.advance(1)
        assert single.kv.free_blocks >= 0
    if done < steps:
        assert tenants.kv.shortage() > 0
    assert tenants.look() == single.look()


@given(seed=seeds, steps=st.integers(1, 60))
@examples(150)
def test_advancing_at_once_equals_step_by_step(kind: str, seed: int, steps: int) -> None:
    """`advance(k)` leaves what k single advances leave; and `used_after` had foretold every one of them."""
    at_once, singly = housed(kind, seed), housed(kind, seed)
    while steps and (leap := at_once.kv.growth_limit(steps)):
        foretold = [at_once.kv.used_after(k) for k in range(leap + 1)]
        at_once.advance(leap)
        seen = [singly.kv.usage().used_blocks]
        for _ in range(leap):
            singly.advance(1)
            seen.append(singly.kv.usage().used_blocks)
        assert foretold == seen
        assert at_once.look() == singly.look()
        steps -= leap
    at_once.kv.check(at_once.holders())


@given(seed=seeds)
@examples(100)
def test_looking_changes_nothing(kind: str, seed: int) -> None:
    """Questions about room, growth and use may be asked any number of times."""
    tenants = housed(kind, seed)
    assert tenants.look() == tenants.look()
    tenants.kv.check(tenants.holders())


@given(seed=seeds, tokens=st.integers(1, 200))
@examples(150)
def test_reservations_leave_the_growing_requests_their_next_token(kind: str, seed: int, tokens: int) -> None:
    """After any granted reservation of new blocks the next step of the growing requests still fits."""
    tenants = housed(kind, seed)
    if tenants.kv.shortage():
        return
    request = tenants.newcomer(random.Random(seed), tokens)
    tenants.kv.reserve(request, tokens)
    assert tenants.kv.shortage() == 0
    for other in list(tenants.prefilling):
        tenants.kv.reserve(other, other.prompt_tokens - other.computed_tokens)
        assert tenants.kv.shortage() == 0


@given(prompt=st.integers(1, 100), output=st.integers(1, 100), size=st.sampled_from([1, 3, 16]), guess=st.integers(1))
@examples(60)
def test_blocks_for_is_what_a_lone_request_may_need(kind: str, prompt: int, output: int, size: int, guess: int) -> None:
    """A request alone in a cache of exactly `blocks_for` blocks reaches its longest output; no request holds more."""
    request = Request(0, 0, prompt, output)
    request.predicted_output_tokens = guess
    roomy = MAKERS[kind](10**6, size, 2)
    tenants = Tenants(MAKERS[kind](roomy.blocks_for(request), size, 2))
    assert tenants.chunk(request, prompt)
    tenants.prefilling.append(request)
    tenants.settle(request)
    assert tenants.advance_far(output) == output
    assert tenants.kv.usage().used_blocks <= tenants.kv.total_blocks


@given(seed=seeds)
@examples(60)
def test_cooked_books_are_found(kind: str, seed: int) -> None:
    """`check` raises when a holder is missing, held twice, or when blocks were lost."""
    tenants = housed(kind, seed)
    holders = tenants.holders()
    tenants.kv.check(holders)
    if not holders:
        return
    with pytest.raises(InvariantError):
        tenants.kv.check(holders[1:])
    with pytest.raises(InvariantError):
        tenants.kv.check([*holders, holders[0]])
    tenants.kv.free_blocks -= 1
    with pytest.raises(InvariantError, match="blocks"):
        tenants.kv.check(holders)


@given(seed=seeds)
@examples(60)
def test_stored_tokens_are_those_of_the_holders(kind: str, seed: int) -> None:
    """Stored tokens are the sum of what requests have, or less where they share; blocks in use hold at least that."""
    tenants = housed(kind, seed)
    stored = [*tenants.holders(), *tenants.copied]
    held = sum(min(tokens, _most_stored(kind, request)) for request, tokens in stored)
    shares = tenants.hash_tokens or tenants.forks
    assert tenants.kv.stored_tokens <= held if shares else tenants.kv.stored_tokens == held
    assert tenants.kv.shared_blocks * tenants.kv.block_tokens == held - tenants.kv.stored_tokens
    assert tenants.kv.usage().wasted_tokens >= 0


@given(seed=seeds)
@examples(100)
def test_a_parked_request_keeps_its_room_until_it_is_released(kind: str, seed: int) -> None:
    """Parking frees nothing and stops growth; the release frees what the books call parked; then it may come back."""
    tenants = housed(kind, seed)
    if not tenants.growing or tenants.hash_tokens or tenants.forks:
        return
    request, kv = tenants.growing[0], tenants.kv
    free, parked = kv.free_blocks, kv.parked_blocks
    tenants.park(request)
    assert kv.free_blocks == free
    assert kv.restore(request) is None
    held = kv.parked_blocks - parked
    while request not in tenants.away:
        tenants.land()
    assert kv.free_blocks >= free + held > free
    shortage = kv.shortage()
    if kv.restore(request) is not None:
        assert kv.shortage() == shortage == 0
        tenants.growing.append(request)
        kv.grow(request)
        assert kv.shortage() == 0  # its next token has room as well
    kv.check(tenants.holders())
