"""What must not matter does not: units of time, the clock's zero, names, room nobody uses, what happens later."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from scenarios import Run, Scenario, examples, play, random_scenario, rows_of, with_memory, with_prefixes

TIMES = ("arrival_ps", "scheduled_ps", "first_token_ps", "finish_ps")
SPANS = ("preempted_ps",)
seeds = st.integers(0, 10**6)


def drawn(seed: int, most: int = 40) -> Scenario:
    """A scenario of one tenant, first come first served, without a closed loop."""
    return replace(random_scenario(seed, most), closed_loop=False)


def by_id(run: Run) -> dict[int, dict[str, int]]:
    """The rows of the request table by request."""
    return {row["request_id"]: row for row in rows_of(run.requests)}


def moved(row: Mapping[str, int], factor: int = 1, shift: int = 0) -> dict[str, int]:
    """A row with its times multiplied and shifted; what never happened stays so."""
    times = {name: factor * row[name] + shift if row[name] >= 0 else row[name] for name in TIMES}
    return {**row, **times, **{name: factor * row[name] for name in SPANS}}


@given(seed=seeds, factor=st.sampled_from([2, 3, 1000]))
@examples(60)
def test_seconds_may_be_any_unit(seed: int, factor: int) -> None:
    """Arrivals, steps and patience times c: every time of every request times c, and nothing else changes."""
    one = drawn(seed)
    rows = tuple((i, factor * at, *lengths) for i, at, *lengths in one.rows)
    timeout = None if one.timeout_ps is None else factor * one.timeout_ps
    other = replace(one, rows=rows, tick_ps=factor * one.tick_ps, timeout_ps=timeout)
    assert by_id(play(other)) == {i: moved(row, factor) for i, row in by_id(play(one)).items()}


@given(seed=seeds, shift=st.integers(1, 10**12))
@examples(60)
def test_the_clock_may_start_anywhere(seed: int, shift: int) -> None:
    """All arrivals later by d: everything later by d."""
    one = drawn(seed)
    other = replace(one, rows=tuple((i, at + shift, *lengths) for i, at, *lengths in one.rows))
    assert by_id(play(other)) == {i: moved(row, 1, shift) for i, row in by_id(play(one)).items()}


@given(seed=seeds, step=st.integers(2, 9), first=st.integers(0, 99))
@examples(60)
def test_requests_may_have_any_numbers(seed: int, step: int, first: int) -> None:
    """Other ids in the same order are names: routers that draw by id apart, nothing changes."""
    one = replace(drawn(seed), router="round_robin")
    other = replace(one, rows=tuple((first + step * i, *rest) for i, *rest in one.rows))
    renamed = {first + step * i: {**row, "request_id": first + step * i} for i, row in by_id(play(one)).items()}
    assert by_id(play(other)) == renamed


@dataclass(frozen=True, repr=False)
class Renamed(Scenario):
    """The same prompts, whose pieces of content have other hashes."""

    def hashes(self, row: tuple[int, int, int, int, int]) -> tuple[int, ...]:
        """An injective map of the original's."""
        return tuple(1_000_003 - 7 * found for found in super().hashes(row))


@given(seed=seeds)
@examples(60)
def test_hashes_are_names(seed: int) -> None:
    """A prefix cache sees which hashes are equal, not what they are."""
    one = with_prefixes(drawn(seed), random.Random(seed))
    assert by_id(play(Renamed(**vars(one)))) == by_id(play(one))


@given(seed=seeds, replicas=st.integers(2, 4))
@examples(50)
def test_replicas_behind_round_robin_are_servers_of_their_own(seed: int, replicas: int) -> None:
    """Each serves its every n-th request as if the others were not there."""
    one = replace(drawn(seed), replicas=replicas, router="round_robin")
    together = by_id(play(one))
    for first in range(replicas):
        share = one.rows[first::replicas]
        if share:
            for i, row in by_id(play(replace(one, rows=share, replicas=1))).items():
                assert {**together[i], "replica": 0} == {**row, "replica": 0}


@given(seed=seeds, kept=st.integers(0, 40))
@examples(60)
def test_the_future_changes_nothing(seed: int, kept: int) -> None:
    """Leave out the last requests: whatever ended before the first of them came is the same."""
    one = drawn(seed)
    late = [at for _, at, *_ in one.rows[kept:]]
    rest = replace(one, rows=one.rows[:kept])
    if not late or not rest.rows:
        return
    whole, part = by_id(play(one)), by_id(play(rest))
    for i, row in part.items():
        if row["finish_ps"] < min(late):
            assert whole[i] == row


@given(seed=seeds, size=st.sampled_from([1, 2, 7, 64]))
@examples(40)
def test_block_size_does_not_matter_where_memory_is_ample(seed: int, size: int) -> None:
    """Blocks decide who fits; where everybody does they decide nothing."""
    one = replace(drawn(seed), num_blocks=10**7, router="round_robin")
    found = [by_id(play(replace(one, block_size=n))) for n in (size, one.block_size)]
    for row in (row for rows in found for row in rows.values()):
        row["kv_unused_tokens"] = 0  # the end of a last block
    assert found[0] == found[1]


@given(seed=seeds, more=st.sampled_from([1, 5, 1000]))
@examples(40)
def test_seats_that_nobody_takes_do_not_matter(seed: int, more: int) -> None:
    """With a seat for every request, more of them change nothing."""
    one = drawn(seed)
    one = replace(one, max_num_seqs=len(one.rows))
    assert by_id(play(replace(one, max_num_seqs=len(one.rows) + more))) == by_id(play(one))


@given(seed=seeds, which=st.integers(0, 10))
@examples(60)
def test_memory_that_nobody_needs_does_not_matter(seed: int, which: int) -> None:
    """Whatever the allocator: once all requests fit at their longest, twice the blocks change nothing."""
    one = with_memory(drawn(seed), random.Random(seed), which)
    ample = replace(one, num_blocks=max(one.num_blocks, 1 << 17))
    assert by_id(play(replace(ample, num_blocks=2 * ample.num_blocks))) == by_id(play(ample))


@given(seed=seeds, slack=st.integers(1, 50))
@examples(40)
def test_output_that_was_allowed_and_not_given_does_not_matter_to_paging(seed: int, slack: int) -> None:
    """Blocks on demand follow the tokens that come; `max_tokens` is only a limit."""
    one = replace(drawn(seed), num_blocks=10**6, max_model_len=10**9, max_num_batched_tokens=10**6)
    other = replace(one, rows=tuple((i, at, p, n, n + slack) for i, at, p, n, _ in one.rows))
    assert by_id(play(other)) == by_id(play(one))


@given(seed=seeds)
@examples(40)
def test_endless_patience_is_no_time_out(seed: int) -> None:
    """A client that would wait for ever is one without a time-out."""
    one = replace(drawn(seed), timeout_ps=None)
    assert by_id(play(replace(one, timeout_ps=1 << 62))) == by_id(play(one))


@given(seed=seeds, threshold=st.integers(1, 10))
@examples(40)
def test_a_cap_beyond_the_budget_is_no_cap(seed: int, threshold: int) -> None:
    """Chunks are never longer than the token budget anyway."""
    one = replace(drawn(seed), scheduler="chunked", threshold=0)
    assert by_id(play(replace(one, threshold=one.max_num_batched_tokens + threshold))) == by_id(play(one))


@given(seed=seeds)
@examples(40)
def test_a_cache_that_finds_nothing_changes_nothing(seed: int) -> None:
    """Prompts with nothing in common run with a prefix cache as without one."""
    one = replace(drawn(seed), num_blocks=10**6, router="round_robin")
    assert by_id(play(Unlike(**{**vars(one), "prefix_tokens": 16}))) == by_id(play(one))


@dataclass(frozen=True, repr=False)
class Unlike(Scenario):
    """Prompts of which no two begin alike."""

    def hashes(self, row: tuple[int, int, int, int, int]) -> tuple[int, ...]:
        """Numbers that nobody else has."""
        return tuple(1000 * row[0] + i for i in range(-(-row[2] // self.prefix_tokens)))


@given(seed=seeds)
@examples(40)
def test_fcfs_is_the_priority_queue_of_equals(seed: int) -> None:
    """Where all have one priority, order by priority is order of arrival, unless somebody is preempted."""
    one = replace(drawn(seed), num_blocks=10**6)
    same = Equal(**{**vars(one), "order": "priority"})
    assert by_id(play(same)) == by_id(play(one))


@dataclass(frozen=True, repr=False)
class Equal(Scenario):
    """Requests of one priority."""

    def priority(self, row: tuple[int, int, int, int, int]) -> int:
        """The same for all."""
        return 3
