"""Published claims of techniques, at the paper's setting, by the code behind reports/techniques.md."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "reports"))

import techniques_claims as published
import techniques_sweeps as sweeps


def test_six_of_nine_claims_come_out_within_a_fifth() -> None:
    """Without those whose inputs are from memory; each of the others names the one term that makes the difference."""
    found = published.claims()
    assert len(found) == 9
    assert sum(claim.holds for claim in found if "memory" not in claim.mark) >= 6
    assert all(claim.cause and claim.isolated is not None for claim in found if not claim.holds)


def test_relay_attention_gains_as_measured() -> None:
    """Every row of the authors' table for an A40, the one included in which it loses."""
    for row in published.relay():
        measured, ours = row.gains
        assert ours == pytest.approx(measured, rel=0.2), row.what


def test_longer_prefixes_cost_hydragen_little_and_the_others_much() -> None:
    """From 1,024 to 16,384 tokens: a tenth of the throughput in the paper, nine tenths without it."""
    first, last = published.hydragen()[0], published.hydragen()[-1]
    assert last.ours[1] < 1.4 * first.ours[1]
    assert last.ours[0] > 10 * first.ours[0]


def test_every_technique_has_a_regime_without_gain() -> None:
    """Where it pays it is at least a tenth faster; elsewhere far less so, or slower."""
    for regime in sweeps.regimes():
        assert regime.gain > 1.1, regime.technique
        assert regime.loss < regime.gain, regime.technique
    losing = [regime.technique for regime in sweeps.regimes() if regime.loss < 1]
    assert {"FlashAttention", "Skeleton-of-Thought (7B, A100)"} <= set(losing)
    assert sum(name.startswith("speculative") for name in losing) == 4


def test_what_is_known_of_steps_comes_out() -> None:
    """Products are nine tenths of a lone decode, attention grows with the square, prompts are bound by compute."""
    prefill, decode = sweeps.prefill_shares(), sweeps.decode_shares()
    lone = decode[1, 512]
    assert 0.85 < lone.matmul_s / lone.total_s < 0.95
    assert 0.8 < prefill[1024].matmul_s / prefill[1024].total_s < 0.95
    assert sweeps.growth(prefill) == pytest.approx(2, abs=0.1)
    assert all(share.compute_bound > 0.85 for share in prefill.values())
    assert all(share.compute_bound < 0.05 for share in decode.values())
