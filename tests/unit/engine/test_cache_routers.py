"""Routers that look into prefix caches: who keeps a conversation in one place, and what that costs."""

from __future__ import annotations

from typing import Any

import pytest

from sim.build import build
from sim.results import RunResult
from sim.run import run_setup
from sim.scenario import load_scenario


def serve(router: str, **workload: Any) -> RunResult:
    """Conversations on three replicas whose memory holds a third of them each."""
    traffic = {
        "num_requests": 400,
        "arrival": {"kind": "poisson", "rate": 4},
        "sessions": {"turns": 5, "think_time_s": {"kind": "exponential", "mean": 5}},
        "input_tokens": {"kind": "exponential", "mean": 300},
        "output_tokens": {"kind": "exponential", "mean": 100},
    }
    scenario = {
        "model": "meta-llama/Llama-3.1-8B",
        "hardware": "h100-sxm",
        "workload": {**traffic, **workload},
        "engine": {"num_gpu_blocks_override": 3000, "max_model_len": 16000},
        "replicas": {"count": 3, "router": router},
    }
    return run_setup(build(load_scenario(scenario, {})))


def hit_ratio(result: RunResult) -> float:
    """Tokens found of all prompt tokens."""
    return float(result.requests["cached_tokens"].sum() / result.requests["prompt_tokens"].sum())


def shares(result: RunResult) -> list[float]:
    """Of the requests, what each replica got."""
    replicas = result.requests["replica"].tolist()
    return [replicas.count(i) / len(replicas) for i in range(3)]


@pytest.mark.parametrize("router", ["prefix_affinity", "kv_aware"])
def test_a_conversation_stays_where_its_history_is(router: str) -> None:
    """More is found than when turns are dealt out, and every replica gets its share."""
    affine = serve(router)
    assert hit_ratio(affine) > 1.25 * hit_ratio(serve("round_robin"))
    assert min(shares(affine)) > 0.2


def test_a_common_system_prompt_draws_everybody_to_one_replica() -> None:
    """Unless the hit is weighed against the load."""
    prompt = {"tokens": 512}
    assert max(shares(serve("prefix_affinity", shared_prefix=prompt))) > 0.9
    assert max(shares(serve("kv_aware", shared_prefix=prompt))) < 0.5
