"""Memory saved by sharing, in the setting of the PagedAttention paper (arXiv 2309.06180, figure 15).

OPT-13B on an A100 with 40 GB: 15.7 thousand slots in blocks of 16; Alpaca lengths (mean 19.31 in, 58.45 out) and
ShareGPT lengths (161.31 in, 337.99 out). The paper gives means and histograms, so the laws here are lognormal, with
outputs of the samples of one request independent, or all alike. Nothing is fitted to what it measured: blocks saved
over blocks without sharing.
"""

from __future__ import annotations

from typing import Any

import pytest

from sim.build import build
from sim.metrics import summarise
from sim.run import run_setup
from sim.scenario import load_scenario

ALPACA, SHAREGPT = (19.31, 58.45), (161.31, 337.99)
SLOTS, BLOCK = 15_700, 16


def saved_percent(lengths: tuple[float, float], spread: float, rate: float, **asked: Any) -> float:
    """Percent of blocks saved; `spread` is the standard deviation of the lengths over their mean."""
    prompt, answer = ({"kind": "lognormal", "mean": m, "std": m * spread, "max": 1024} for m in lengths)
    arrival = {"kind": "poisson", "rate": rate}
    workload = {"num_requests": 150, "arrival": arrival, "input_tokens": prompt, "output_tokens": answer, **asked}
    engine = {"preset": "vllm-v0", "num_gpu_blocks_override": SLOTS // BLOCK}
    scenario = {"model": "facebook/opt-13b", "hardware": "a100-sxm-40gb", "engine": engine, "workload": workload}
    kv = summarise(run_setup(build(load_scenario(scenario))))["kv"]
    return 100 * float(kv["shared_fraction"])


@pytest.mark.parametrize(("n", "measured"), [(2, 6.09), (4, 8.53), (6, 9.79)])
def test_parallel_samples_of_alpaca_prompts(n: int, measured: float) -> None:
    """What the paper measured lies between samples of very unequal lengths and equal ones."""
    unequal, equal = (saved_percent(ALPACA, spread, 6 / n, n=n) for spread in (1.0, 1e-4))
    assert unequal < measured < equal


@pytest.mark.parametrize(("n", "measured"), [(2, 16.2), (6, 30.5)])
def test_parallel_samples_of_sharegpt_prompts(n: int, measured: float) -> None:
    """The ends of the range the paper gives for ShareGPT, whose prompts are several blocks long."""
    unequal, equal = (saved_percent(SHAREGPT, spread, 0.6 / n, n=n) for spread in (1.0, 1e-4))
    assert unequal < measured < equal


@pytest.mark.parametrize(("width", "measured"), [(2, 37.56), (4, 53.13), (6, 55.16)])
def test_beams_of_alpaca_prompts(width: int, measured: float) -> None:
    """Beams that descend from each other as in the neutral model share what the paper measured, to 6 points in 100."""
    assert saved_percent(ALPACA, 0.5, 6 / width, beam_width=width) == pytest.approx(measured, abs=6)


def test_beams_share_more_than_samples_and_more_beams_share_more() -> None:
    """The order of the paper's figure, for ShareGPT lengths."""
    samples = [saved_percent(SHAREGPT, 0.5, 0.6 / n, n=n) for n in (2, 4, 6)]
    beams = [saved_percent(SHAREGPT, 0.5, 0.6 / n, beam_width=n) for n in (2, 4, 6)]
    assert samples == sorted(samples)
    assert beams == sorted(beams)
    assert all(few < many for few, many in zip(samples, beams, strict=True))


def test_beams_that_are_never_dropped_share_their_prompt_only() -> None:
    """Without drops a beam search is parallel sampling with equal lengths."""
    never = saved_percent(ALPACA, 1e-4, 2, beam_width=3, beam_switch_probability=0.0)
    assert never == pytest.approx(saved_percent(ALPACA, 1e-4, 2, n=3), abs=0.5)
