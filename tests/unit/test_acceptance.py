"""How many guesses are right, by place, and what follows from it."""

from __future__ import annotations

import numpy as np
import pytest

from sim.acceptance import Acceptance, expected_tokens
from sim.request import Request


def request(number: int, output: int, emitted: int = 1) -> Request:
    found = Request(number, 0, 10, output)
    found.emitted_tokens = emitted
    return found


@pytest.mark.parametrize(("rate", "depth", "tokens"), [(0.2, 3, 1.248), (0.75, 7, 3.60), (0.8, 5, 3.69)])
def test_tokens_per_verification_are_leviathans(rate: float, depth: int, tokens: float) -> None:
    """(1 - a^(k+1)) / (1 - a): the formula, and what long answers come out at."""
    assert expected_tokens((rate,) * depth) == pytest.approx((1 - rate ** (depth + 1)) / (1 - rate))
    assert expected_tokens((rate,) * depth) == pytest.approx(tokens, abs=0.005)
    progress = Acceptance(1, (rate,) * depth).progress(request(0, 60_000))
    assert progress[-1] / (len(progress) - 1) == pytest.approx(tokens, rel=0.02)


def test_rates_may_fall_with_depth() -> None:
    """1 + 0.8 + 0.8 x 0.4 = 2.12 tokens per verification."""
    assert expected_tokens((0.8, 0.4)) == pytest.approx(2.12)
    progress = Acceptance(5, (0.8, 0.4)).progress(request(3, 60_000))
    assert progress[-1] / (len(progress) - 1) == pytest.approx(2.12, rel=0.02)


@pytest.mark.parametrize(("rate", "steps"), [(0.0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), (1.0, [0, 4, 8, 9])])
def test_never_and_always_right(rate: float, steps: list[int]) -> None:
    """Nine tokens are left of ten: one by one, or four at a time with the last step cut short."""
    assert Acceptance(0, (rate,) * 3).progress(request(1, 10)) == steps


def test_nothing_is_left_of_a_single_token() -> None:
    """A request whose only token came with its prompt takes no step."""
    assert Acceptance(0, (0.5,)).progress(request(1, 1)) == [0]


def test_a_place_keeps_its_draw() -> None:
    """A request that is preempted between two steps goes on as if nothing had happened."""
    acceptance = Acceptance(7, (0.7,) * 4)
    whole = acceptance.progress(request(5, 300))
    for step in (1, 10, 40):
        rest = acceptance.progress(request(5, 300, 1 + whole[step]))
        assert [whole[step] + tokens for tokens in rest] == whole[step:]


def test_requests_and_seeds_draw_for_themselves() -> None:
    """The same request twice is the same; another one, or another seed, is not."""
    found = [Acceptance(s, (0.7,) * 4).progress(request(i, 200)) for s, i in ((1, 1), (1, 1), (1, 2), (2, 1))]
    assert found[0] == found[1]
    assert found[0] != found[2] != found[3] != found[0]


def test_sequences_may_differ_in_how_easy_they_are() -> None:
    """With a standard deviation, rates spread around the same mean: 0.6 and 0.15."""
    acceptance = Acceptance(3, (0.6,), 0.15)
    progress = [acceptance.progress(request(i, 3000)) for i in range(300)]
    rates = np.array([p[-1] / (len(p) - 1) - 1 for p in progress])
    assert rates.mean() == pytest.approx(0.6, abs=0.03)
    assert rates.std() == pytest.approx(0.15, abs=0.02)
