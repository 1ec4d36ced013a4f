"""A request as it arrives."""

from __future__ import annotations

import pytest

from sim.request import NO_TRAITS, Reason, Request, State, Traits


def test_a_fresh_request_has_done_nothing() -> None:
    """No tokens, no times, waiting; its prompt is what must be computed before the first token."""
    request = Request(7, 123, 40, 5)
    assert (request.id, request.arrival_ps, request.prompt_tokens, request.state) == (7, 123, 40, State.WAITING)
    assert request.computed_tokens == request.emitted_tokens == request.cached_tokens == request.reserved_tokens == 0
    assert request.preemptions == request.preempted_ps == 0
    assert request.scheduled_ps == request.first_token_ps == request.joined_step == -1
    assert request.target_tokens == 40
    assert request.traits is NO_TRAITS


def test_the_longest_output_defaults_to_the_true_one() -> None:
    """Clients may allow more than the model will say."""
    assert Request(0, 0, 40, 5).max_output_tokens == 5
    assert Request(0, 0, 40, 5, 100).max_output_tokens == 100


def test_the_true_length_is_private() -> None:
    """The public names and the text of a request do not show how long the answer will be."""
    request = Request(0, 0, 40, 9876, 10_000)
    public = [name for name in Request.__slots__ if not name.startswith("_")]
    assert 9876 not in [getattr(request, name) for name in public]
    assert "9876" not in repr(request)
    assert "waiting" in repr(request)


def test_requests_have_no_room_for_more() -> None:
    """Policies cannot hang notes of their own on a request."""
    with pytest.raises(AttributeError):
        Request(0, 0, 1, 1).note = "mine"  # type: ignore[attr-defined]


def test_codes_of_saved_runs_are_stable() -> None:
    """States and reasons are saved as numbers, so the numbers never change."""
    assert [s.value for s in (State.COMPLETED, State.ABORTED, State.REJECTED, State.UNFINISHED)] == [2, 3, 4, 5]
    codes = [Reason.NONE, Reason.TOO_LONG, Reason.NEVER_FITS, Reason.CLIENT_TIMEOUT, Reason.INTERRUPTED]
    assert [r.value for r in codes] == [0, 1, 2, 3, 4]


def test_traits_have_neutral_defaults() -> None:
    """A workload that knows nothing about tenants or sessions says nothing."""
    assert Traits() == NO_TRAITS
    assert (NO_TRAITS.tenant, NO_TRAITS.priority, NO_TRAITS.prefix_hashes) == ("", 0, ())
