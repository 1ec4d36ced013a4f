"""Guesses of output lengths."""

from __future__ import annotations

import math

import numpy as np

from sim.predictors import NoisyPredictor, OraclePredictor, QuantilePredictor
from sim.request import Request


def request(id_: int, output: int, most: int = 10**6) -> Request:
    """A request with a true and a longest output."""
    return Request(id_, 0, 10, output, most)


def completed(tokens: int) -> Request:
    """A request that has emitted so many tokens."""
    done = request(0, tokens)
    done.emitted_tokens = tokens
    return done


def test_without_a_predictor_the_longest_output_is_expected() -> None:
    """A policy that knows nothing sees what the client allows."""
    assert request(0, 5, 80).predicted_output_tokens == 80


def test_the_oracle_knows() -> None:
    """The true length."""
    assert OraclePredictor().predict(request(0, 37)) == 37


def test_noise_is_log_normal_with_median_one() -> None:
    """Half of the guesses are too long, and the logarithms of the errors have the standard deviation asked for."""
    guess = NoisyPredictor(3, sigma=0.5).predict
    logs = np.log([guess(request(i, 10_000)) / 10_000 for i in range(5000)])
    assert abs(np.median(logs)) < 0.03
    assert abs(np.std(logs) - 0.5) < 0.02


def test_noise_belongs_to_the_request() -> None:
    """The order of asking, and who else was asked about, do not matter; the seed does."""
    forward, backward = NoisyPredictor(3), NoisyPredictor(3)
    ids = [0, 1, 1023, 1024, 5000]
    guesses = {i: forward.predict(request(i, 1000)) for i in ids}
    assert guesses == {i: backward.predict(request(i, 1000)) for i in reversed(ids)}
    assert guesses != {i: NoisyPredictor(4).predict(request(i, 1000)) for i in ids}


def test_noise_stays_between_one_and_the_longest_output() -> None:
    """However wrong, a guess is possible."""
    guess = NoisyPredictor(0, sigma=5).predict
    guesses = {guess(request(i, 3, 20)) for i in range(500)}
    assert min(guesses) == 1
    assert max(guesses) == 20


def test_without_noise_the_guess_is_the_truth() -> None:
    """Sigma zero is the oracle."""
    assert [NoisyPredictor(0, sigma=0).predict(request(i, i + 1)) for i in range(50)] == list(range(1, 51))


def test_the_quantile_is_of_recent_answers() -> None:
    """The smallest length that the share does not exceed, over the window only; before any answer, the longest."""
    predictor = QuantilePredictor(quantile=0.5, window=4)
    assert predictor.predict(request(0, 7, 80)) == 80
    for tokens in (10, 40, 30, 20):
        predictor.observe(completed(tokens))
    assert predictor.predict(request(0, 7, 80)) == 20
    for tokens in (50, 60):  # 10 and 40 are forgotten
        predictor.observe(completed(tokens))
    assert predictor.predict(request(0, 7, 80)) == 30
    assert predictor.predict(request(0, 7, 25)) == 25


def test_quantiles_follow_the_definition() -> None:
    """Nearest rank: the share of lengths at most the guess is at least the quantile, and no smaller length will do."""
    lengths = [int(x) for x in np.random.default_rng(0).integers(1, 60, 101)]
    for quantile in (0.01, 0.5, 0.9, 1.0):
        predictor = QuantilePredictor(quantile=quantile)
        for tokens in lengths:
            predictor.observe(completed(tokens))
        expected = sorted(lengths)[math.ceil(quantile * 101) - 1]
        assert predictor.predict(request(0, 1)) == expected
