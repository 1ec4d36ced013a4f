"""Length laws: the mean they state is the mean they draw, and every draw can be a request."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from sim.rng import stream
from sim.workloads.lengths import (
    Empirical,
    Exponential,
    Fixed,
    LengthLaw,
    Lengths,
    Lognormal,
    Normal,
    Uniform,
    Zipf,
    law,
)

LAWS = [
    Fixed(tokens=211),
    Uniform(min=10, max=500),
    Normal(mean=300, std=50),
    Normal(mean=100, std=200, max=250),
    Lognormal(mean=1155, std=1100, max=14050),
    Lognormal(mean=1541, std=12116, max=32768),
    Exponential(mean=200),
    Exponential(mean=200, max=300),
    Empirical(values=(1, 10, 1000), weights=(3.0, 0.0, 1.0)),
    Empirical(values=(5, 6, 7)),
    Zipf(min=16, max=4096, theta=0.6),
]


@pytest.mark.parametrize("lengths", LAWS, ids=repr)
def test_stated_mean_is_drawn(lengths: LengthLaw) -> None:
    """The mean of many draws is the closed form, clipping included, within rounding and four standard errors."""
    draws = lengths.draw(stream(3, "test"), 200_000)
    assert draws.mean() == pytest.approx(lengths.mean_tokens, abs=0.5 + 4 * draws.std() / len(draws) ** 0.5)


@settings(max_examples=60, deadline=None)
@given(mean=st.floats(0.01, 1e6), std=st.floats(0.01, 1e6), most=st.integers(1, 10**6), seed=st.integers(0, 9))
def test_draws_can_be_requests(mean: float, std: float, most: int, seed: int) -> None:
    """Whatever the parameters, a length is a whole number of tokens from 1 to max."""
    for lengths in (
        Normal(mean=mean, std=std, max=most),
        Lognormal(mean=mean, std=std, max=most),
        Exponential(mean=mean, max=most),
    ):
        draws = lengths.draw(stream(seed, "test"), 100)
        assert draws.dtype == np.int64
        assert draws.min() >= 1
        assert draws.max() <= most
        assert 1 <= lengths.mean_tokens <= most + 1e-6


def test_lognormal_parameters_are_those_of_the_lengths() -> None:
    """mean and std describe the tokens, not their logarithm."""
    draws = Lognormal(mean=500, std=250).draw(stream(0, "test"), 400_000)
    assert draws.mean() == pytest.approx(500, rel=0.01)
    assert draws.std() == pytest.approx(250, rel=0.02)


def test_uniform_reaches_both_ends() -> None:
    """Both limits of a uniform law occur."""
    assert set(Uniform(min=3, max=5).draw(stream(0, "test"), 1000).tolist()) == {3, 4, 5}


def test_empirical_probabilities_are_kept() -> None:
    """A length occurs as often as its weight says, and one of weight 0 never."""
    draws = LAWS[8].draw(stream(0, "test"), 100_000)
    assert (draws == 1).mean() == pytest.approx(0.75, abs=0.01)
    assert not (draws == 10).any()


def test_the_forms_of_yaml_mean_the_same() -> None:
    """An integer is a fixed length; a mapping of lengths to weights is an empirical law."""
    read = TypeAdapter(Lengths).validate_python
    assert law(read(211)) == Fixed(tokens=211)
    assert read({"kind": "empirical", "values": {128: 0.5, 512: 1.5}}) == Empirical(
        values=(128, 512), weights=(0.5, 1.5)
    )


@pytest.mark.parametrize(
    "written",
    [
        0,
        -3,
        2.5,
        "many",
        True,
        {"kind": "uniform", "min": 9, "max": 3},
        {"kind": "zipf", "min": 9, "max": 3, "theta": 1},
        {"kind": "empirical", "values": []},
        {"kind": "empirical", "values": [3], "weights": [1, 2]},
        {"kind": "empirical", "values": [3], "weights": [0]},
        {"kind": "lognormal", "mean": 3},
        {"kind": "normal", "mean": 3, "std": 0},
    ],
)
def test_senseless_lengths_are_refused(written: object) -> None:
    """What cannot be a length, or a law of lengths, is refused when it is read."""
    with pytest.raises(ValidationError):
        TypeAdapter(Lengths).validate_python(written)
