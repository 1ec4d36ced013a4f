"""Techniques of attention and decoding under the engine's rule: runs of steps give what single steps give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim.results import RunResult
from sim.run import simulate
from sim.scenario import load_scenario

CHAT: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B",
    "hardware": "h100-sxm",
    "workload": {
        "num_requests": 60,
        "arrival": {"kind": "poisson", "rate": 400},
        "input_tokens": {"kind": "uniform", "min": 20, "max": 600},
        "output_tokens": {"kind": "uniform", "min": 1, "max": 250},
        "shared_prefix": {"tokens": 700, "groups": 2},
    },
    "engine": {"num_gpu_blocks_override": 500},
    "seed": 3,
}
TECHNIQUES: dict[str, dict[str, Any]] = {
    "relay": {"shared_prefix_attention": "relay"},
    "hydragen": {"shared_prefix_attention": "hydragen"},
    "hydragen, eager": {"shared_prefix_attention": "hydragen", "kernels": {"cuda_graphs": False}},
    "naive kernels": {"kernels": {"attention": "standard", "fusion": False}, "max_model_len": 4096,
                      "max_num_batched_tokens": 2048},
}  # fmt: skip


def run(engine: dict[str, Any], workload: dict[str, Any], *, step_by_step: bool) -> RunResult:
    """The chat traffic with some keys changed; the audit is part of every run."""
    scenario = CHAT | {"engine": CHAT["engine"] | engine, "workload": CHAT["workload"] | workload}
    return simulate(load_scenario(scenario), step_by_step=step_by_step)


def assert_equal(engine: dict[str, Any], workload: dict[str, Any]) -> RunResult:
    """Requests and segments are the same either way."""
    leaping, stepping = (run(engine, workload, step_by_step=s) for s in (False, True))
    for name in ("requests", "segments"):
        a, b = getattr(leaping, name), getattr(stepping, name)
        for column in a.columns:
            assert np.array_equal(a[column], b[column]), column
    return leaping


@pytest.mark.parametrize("name", sorted(TECHNIQUES))
def test_leaping_is_single_stepping(name: str) -> None:
    """Also under preemptions, with two applications whose members come and go."""
    result = assert_equal(TECHNIQUES[name], {})
    assert int(result.requests["preemptions"].sum()) > 0


def test_samples_share_their_prompt() -> None:
    """Parallel samples are a group of their own; the run ends sooner than without."""
    shared = assert_equal(TECHNIQUES["hydragen"], {"n": 4, "shared_prefix": {"tokens": 2000}})
    plain = run({}, {"n": 4, "shared_prefix": {"tokens": 2000}}, step_by_step=False)
    assert int(shared.requests["finish_ps"].max()) < int(plain.requests["finish_ps"].max())
