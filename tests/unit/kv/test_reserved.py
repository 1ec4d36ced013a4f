"""Room taken at admission: hand-computed reservations, misses, early ends and bounds."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from scenarios import examples
from sim.kv.bounded import BoundedKV
from sim.kv.host_pool import HostPool
from sim.kv.max_length import PLACEMENTS, MaxLengthKV
from sim.kv.paged import PagedKV
from sim.kv.predicted import PredictedKV
from sim.kv.reserved import ReservedKV
from sim.request import Request
from sim.schedulers.mover import Mover


def request_of(prompt: int, output: int, most: int | None = None, guess: int | None = None) -> Request:
    """A request with a prompt, an output, the longest output allowed, and a guess of it."""
    request = Request(0, 0, prompt, output, most)
    if guess is not None:
        request.predicted_output_tokens = guess
    return request


def admit(kv: ReservedKV | PagedKV, request: Request) -> bool:
    """The whole prompt is computed at once and the request decodes, if there is room."""
    if kv.reserve(request, request.prompt_tokens) is None:
        return False
    request.computed_tokens = request.prompt_tokens
    kv.grow(request)
    return True


def decode(kv: ReservedKV | PagedKV, request: Request, steps: int) -> None:
    """Steps of a request that decodes alone."""
    while steps:
        leap = kv.growth_limit(steps)
        assert leap
        kv.advance(leap)
        request.computed_tokens += leap
        steps -= leap


def test_max_length_holds_the_longest_output_from_the_start() -> None:
    """Prompt 20, at most 100 more, blocks of 16: 8 blocks at admission, none later, 90 tokens unused after 10."""
    kv = MaxLengthKV(100, 16, placement="paged")
    request = request_of(20, 10, most=100)
    assert admit(kv, request)
    assert kv.usage().used_blocks == 8
    decode(kv, request, 10)
    assert (kv.usage().used_blocks, kv.stored_tokens, kv.usage().wasted_tokens) == (8, 30, 98)
    kv.release(request)
    assert (kv.free_blocks, kv.stored_tokens, request.unused_tokens) == (100, 0, 98)


def test_max_length_of_the_whole_context() -> None:
    """Every request holds the model's 2048 tokens: seven fit the 15,728 slots of the PagedAttention paper's OPT-13B."""
    kv = MaxLengthKV(15728, 1, reserve="context", placement="buddy", max_model_len=2048)
    assert [admit(kv, request_of(161, 338)) for _ in range(8)] == [True] * 7 + [False]
    assert kv.stranded_blocks == kv.free_blocks == 15728 - 7 * 2048


def test_buddy_holds_the_power_of_two() -> None:
    """A reservation of 70 + 30 slots holds 128; what does not fit empty memory rounded up never fits."""
    kv = MaxLengthKV(1000, 1, placement="buddy")
    assert admit(kv, request_of(70, 30))
    assert kv.usage().used_blocks == 128
    assert kv.blocks_for(request_of(500, 13)) == 1024 > kv.total_blocks


def test_a_hole_that_is_too_small_is_stranded() -> None:
    """100 slots in pieces of 40 and 50; with the first one gone 50 are free, yet 45 do not fit until the other ends."""
    kv = MaxLengthKV(100, 1, placement="first-fit")
    first, second, third = request_of(30, 10), request_of(30, 20), request_of(35, 10)
    assert admit(kv, first)
    assert admit(kv, second)
    kv.release(first)
    assert kv.stranded_blocks == 0
    assert not kv.can_reserve(third, 35)
    assert not admit(kv, third)
    assert kv.stranded_blocks == kv.free_blocks == 50
    kv.release(second)
    assert kv.stranded_blocks == 0
    assert admit(kv, third)


def test_a_recomputed_request_reserves_what_is_still_to_come() -> None:
    """After a preemption the tokens emitted are part of the target, so the room stays prompt plus longest output."""
    kv = MaxLengthKV(100, 1)
    request = request_of(20, 30)
    request.emitted_tokens, request.target_tokens = 10, 30
    kv.reserve(request, 30)
    assert kv.usage().used_blocks == 50


def test_a_miss_takes_a_page_when_the_room_is_full() -> None:
    """Prompt 10, guess 6, pages of 4: four pages last 6 steps; the 7th takes a fifth, the 11th a sixth."""
    kv = PredictedKV(100, 4)
    request = request_of(10, 20, guess=6)
    assert admit(kv, request)
    used = [kv.usage().used_blocks]
    for _ in range(12):
        decode(kv, request, 1)
        used.append(kv.usage().used_blocks)
    assert used == [4] * 7 + [5] * 4 + [6] * 2
    kv.check([(request, request.computed_tokens)])


def test_growth_in_larger_units() -> None:
    """The same with three pages at a time: 4, then 7 pages, which last 12 steps; 17 pages of room fit 20 + 2 extra."""
    kv = PredictedKV(100, 4, growth_blocks=3)
    request = request_of(10, 20, guess=6)
    assert admit(kv, request)
    decode(kv, request, 6)
    assert kv.usage().used_blocks == 4
    decode(kv, request, 12)
    assert kv.usage().used_blocks == 7
    decode(kv, request, 1)
    assert kv.usage().used_blocks == 10 == kv.blocks_for(request)


def test_a_miss_without_a_free_page_is_a_shortage() -> None:
    """Growth that needs three pages where two are free cannot go on: somebody has to be preempted."""
    kv = PredictedKV(6, 4, growth_blocks=3)
    request = request_of(10, 20, guess=6)
    assert admit(kv, request)
    decode(kv, request, 6)
    assert (kv.free_blocks, kv.shortage(), kv.growth_limit(5)) == (2, 1, 0)


def test_an_early_end_gives_all_back() -> None:
    """A guess of 90 for an answer of 5: everything is free at its end, and 85 tokens of room were never used."""
    kv = PredictedKV(100, 1)
    request = request_of(10, 5, most=100, guess=90)
    assert admit(kv, request)
    decode(kv, request, 5)
    kv.release(request)
    assert (kv.free_blocks, request.unused_tokens) == (100, 85)


def test_a_guess_is_never_more_than_the_client_allows() -> None:
    """A guess of 1000 for at most 20 tokens reserves 20."""
    kv = PredictedKV(100, 1)
    assert admit(kv, request_of(10, 20, guess=1000))
    assert kv.usage().used_blocks == 30


def test_a_window_with_sinks_stops_growing() -> None:
    """Four sinks and a window of 12: a prompt of 10 grows by 6 tokens in blocks of 4, then holds 4 for ever."""
    kv = BoundedKV(10, 4, bound_tokens=16)
    request = request_of(10, 1000)
    assert kv.blocks_for(request) == 4
    assert admit(kv, request)
    assert (kv.usage().used_blocks, kv.stored_tokens) == (3, 10)
    decode(kv, request, 6)
    assert (kv.usage().used_blocks, kv.stored_tokens) == (4, 16)
    decode(kv, request, 900)
    assert (kv.usage().used_blocks, kv.stored_tokens) == (4, 16)
    kv.check([(request, request.computed_tokens)])
    kv.release(request)
    assert (kv.free_blocks, kv.stored_tokens, request.unused_tokens) == (10, 0, 0)


def test_only_the_window_is_swapped() -> None:
    """A sequence of 900 tokens of which 16 are kept is a copy of 4 blocks of 4, out and in."""
    kv, request = BoundedKV(10, 4, bound_tokens=16), request_of(10, 1000)
    mover = Mover(kv, HostPool(10**6), block_bytes=100, bound_tokens=16)
    assert admit(kv, request)
    decode(kv, request, 890)
    copies = [mover.out(request), mover.bring_in(request)]
    assert [copy and copy.bytes_ for copy in copies] == [400, 400]
    assert kv.usage().used_blocks == 4


def test_a_prompt_longer_than_the_window_holds_the_window() -> None:
    """A prompt of 100 in chunks of 40 and 60 with a bound of 16 never holds more than 4 blocks of 4."""
    kv = BoundedKV(4, 4, bound_tokens=16)
    request = request_of(100, 10)
    for chunk in (40, 60):
        assert kv.reserve(request, chunk) is not None
        request.computed_tokens += chunk
        assert (kv.usage().used_blocks, kv.stored_tokens) == (4, 16)
    kv.grow(request)
    assert kv.growth_limit(50) == 50


def test_the_watermark_is_kept_at_admission_only() -> None:
    """Of ten blocks two are kept: beside a decode of 4 a prompt of 3 fits and one of 4 does not; growth takes all."""
    kv = PagedKV(10, 1, watermark=0.2)
    first = request_of(4, 6)
    assert admit(kv, first)
    assert not kv.can_reserve(request_of(4, 1), 4)
    assert kv.reserve(request_of(4, 1), 4) is None
    assert kv.can_reserve(request_of(3, 1), 3)
    decode(kv, first, 6)
    assert kv.free_blocks == 0
    kv.release(first)
    assert admit(kv, request_of(10, 0))


@given(seed=st.integers(0, 10**6), placement=st.sampled_from(sorted(PLACEMENTS)))
@examples(200)
def test_a_perfect_guess_never_fits_fewer_requests(seed: int, placement: str) -> None:
    """Of one list of requests, as many or more are admitted with an oracle's guess as with the longest output."""
    rng = random.Random(seed)
    total, size = rng.choice([20, 100, 1000]), rng.choice([1, 4, 16])
    lengths = [(rng.randint(1, 200), rng.randint(1, 60), rng.randint(0, 100)) for _ in range(30)]

    def admitted(kv: ReservedKV) -> int:
        requests = [request_of(p, out, most=out + slack, guess=out) for p, out, slack in lengths]
        return next((i for i, request in enumerate(requests) if not admit(kv, request)), len(requests))

    assert admitted(PredictedKV(total, size)) >= admitted(MaxLengthKV(total, size, placement=placement))
