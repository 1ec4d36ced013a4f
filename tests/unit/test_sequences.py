"""Groups of sequences, and how beams replace each other."""

from __future__ import annotations

import math

import pytest

from sim.request import Request, State, Traits
from sim.sequences import BeamSearch, neutral_switch_probability, sequences_of, with_sequences


def test_a_request_is_its_first_sequence_until_it_forks() -> None:
    """Children begin where the first one is, with outputs of their own and ids above those of all requests."""
    first = with_sequences(Request(7, 100, 30, 5), (5, 9, 2))
    assert (first.id, first.forks, first.max_output_tokens, sequences_of(first)) == (7, 2, 9, [first])
    first.computed_tokens, first.scheduled_ps = 30, 110
    children = first.group.fork()
    assert sequences_of(first) == [first, *children]
    assert [child.id for child in children] == [7 + (1 << 40), 7 + (2 << 40)]
    assert [child._output_tokens for child in children] == [9, 2]
    for child in children:
        assert (child.computed_tokens, child.scheduled_ps, child.forks, child.state) == (30, 110, 0, State.RUNNING)


def test_a_plain_request_is_one_sequence() -> None:
    """Nothing is kept for forks that never come."""
    request = Request(0, 0, 5, 5)
    assert (sequences_of(request), request.forks, request.sibling_tokens) == ([request], 0, 0)


def test_the_client_sees_sums_and_the_first_token() -> None:
    """At the end the first sequence becomes the row: tokens of all, the earliest first token, the longest wait."""
    first = with_sequences(Request(0, 0, 5, 3), (3, 4))
    (other,) = first.group.fork()
    for sequence, tokens, at, lost in ((first, 3, 50, 0), (other, 4, 50, 7)):
        sequence.emitted_tokens, sequence.first_token_ps, sequence.preempted_ps = tokens, at, lost
    other.preemptions = 2
    row = first.group.close(State.COMPLETED, 90)
    assert row is first
    assert (row.emitted_tokens, row.sibling_tokens, row.first_token_ps) == (7, 3, 50)
    assert (row.preemptions, row.preempted_ps, row.state) == (2, 7, State.COMPLETED)


@pytest.mark.parametrize(("spoken", "seen"), [(True, 90), (False, -1)])
def test_the_client_of_a_beam_search_sees_tokens_at_the_end(spoken: bool, seen: int) -> None:
    """Which beam is best is known at the end only, so its first token comes with its last."""
    first = with_sequences(Request(0, 0, 5, 3), (3, 3), BeamSearch(2, 0.1))
    for sequence in [first, *first.group.fork()]:
        sequence.first_token_ps, sequence.emitted_tokens = (50, 3) if spoken else (-1, 0)
    assert first.group.close(State.COMPLETED, 90).first_token_ps == seen


def test_what_several_answers_hold_has_no_identity() -> None:
    """Hashes of the answer are those of one sequence, and are not used when there are several."""
    traits = Traits(prefix_hashes=(1, 2), prefix_block_tokens=4, hashes_output=True)
    assert not with_sequences(Request(0, 0, 4, 4, traits=traits), (4, 4)).traits.hashes_output


def test_every_beam_may_be_dropped_after_each_token_but_the_first_and_the_last() -> None:
    """With probability one every beam is, and always for another one; the next event is the last of its list."""
    events = BeamSearch(3, 1.0).switches(5, 6)
    assert [[token for token, _ in own] for own in events] == [[5, 4, 3, 2]] * 3
    assert all(0 <= source < 3 and source != beam for beam, own in enumerate(events) for _, source in own)
    assert BeamSearch(3, 0.0).switches(5, 6) == [[], [], []]
    assert BeamSearch(3, 1.0).switches(5, 1) == [[], [], []]


def test_draws_follow_from_seed_and_request_and_have_the_rate() -> None:
    """The same search draws the same; over many tokens the share of drops is the probability, sources are alike."""
    search = BeamSearch(4, 0.25, seed=3)
    assert search.switches(1, 50) == search.switches(1, 50) != search.switches(2, 50)
    events = search.switches(0, 20_002)
    drops = sum(map(len, events))
    assert drops / 80_000 == pytest.approx(0.25, abs=0.01)
    from_next = sum(source == (beam + 1) % 4 for beam, own in enumerate(events) for _, source in own)
    assert from_next / drops == pytest.approx(1 / 3, abs=0.02)


def test_the_neutral_probability_is_that_of_having_no_successor() -> None:
    """(1 - 1/w)^w: a quarter for two beams, towards 1/e for many."""
    assert neutral_switch_probability(2) == 0.25
    assert neutral_switch_probability(1000) == pytest.approx(math.exp(-1), rel=1e-3)
