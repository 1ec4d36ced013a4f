"""Bounds on a fleet: no simulation does its work in less time than the bound says is needed."""

from __future__ import annotations

from typing import Any

import pytest

from sim import load_scenario
from sim.build import build
from sim.metrics import summarise
from sim.planner.bounds import Sizes, least_work
from sim.run import run_setup

CHAT = {
    "num_requests": 250,
    "arrival": {"kind": "poisson", "rate": 200},
    "input_tokens": {"kind": "lognormal", "mean": 400, "std": 300, "max": 2000},
    "output_tokens": {"kind": "lognormal", "mean": 60, "std": 60, "max": 400},
}
PROMPTS = {**CHAT, "input_tokens": {"kind": "lognormal", "mean": 4000, "std": 3000, "max": 12000}, "output_tokens": 2}
ANSWERS = {**CHAT, "input_tokens": 16, "output_tokens": {"kind": "uniform", "min": 100, "max": 600}}
LLAMA, MIXTRAL, SLIDING = "meta-llama/Llama-3.1-8B", "mistralai/Mixtral-8x7B-v0.1", "mistralai/Mistral-7B-v0.1"


@pytest.mark.parametrize(
    ("model", "hardware", "workload", "engine"),
    [
        (LLAMA, "h100-sxm", CHAT, {}),
        (LLAMA, "h100-sxm", PROMPTS, {}),
        (LLAMA, "h100-sxm", ANSWERS, {"max_num_seqs": 16}),
        (LLAMA, "l40s", CHAT, {"quantization": "fp8", "num_gpu_blocks_override": 600}),
        (LLAMA, "a100-sxm-80gb", CHAT, {"quantization": "awq", "tensor_parallel_size": 4}),
        (LLAMA, "h200-sxm", CHAT, {"scheduler": "continuous", "max_model_len": 16384, "pipeline_parallel_size": 2}),
        (LLAMA, "h100-sxm", {**CHAT, "shared_prefix": {"tokens": 2048}}, {}),
        (SLIDING, "l40s", PROMPTS, {}),
        (
            LLAMA,
            "h100-sxm",
            ANSWERS,
            {"speculative": {"method": "ngram", "num_speculative_tokens": 4, "acceptance": 0.9}},
        ),
        (MIXTRAL, "h100-sxm", CHAT, {"tensor_parallel_size": 2, "enable_expert_parallel": True}),
        (MIXTRAL, "h200-sxm", ANSWERS, {"tensor_parallel_size": 2, "data_parallel_size": 2}),
    ],
)
@pytest.mark.parametrize("rate", [2, 200])
def test_no_simulation_is_faster_than_its_bound(
    model: str, hardware: str, workload: dict[str, Any], engine: dict[str, Any], rate: float
) -> None:
    """Idle or flooded, the busy time of a replica per request is at least the least work."""
    traffic = {**workload, "arrival": {"kind": "poisson", "rate": rate}}
    loaded = load_scenario({"model": model, "hardware": hardware, "workload": traffic, "engine": engine})
    work = least_work(build(loaded))
    told = summarise(run_setup(build(loaded)))
    assert told["completed"] == told["num_prompts"]
    busy_s = told["busy_share"] * told["duration"]
    assert 0 < work.per_request_s <= busy_s / told["completed"]
    assert 1e3 * work.tpot_s <= told["median_tpot_ms"]


def test_the_bound_is_worth_having() -> None:
    """On a flooded replica the bound is not far below what is needed: it prunes."""
    loaded = load_scenario({"model": LLAMA, "hardware": "h100-sxm", "workload": {**CHAT, "num_requests": 1500}})
    work, told = least_work(build(loaded)), summarise(run_setup(build(loaded)))
    assert work.per_request_s > 0.4 * told["busy_share"] * told["duration"] / told["completed"]


def test_objectives_tighten_the_bound() -> None:
    """A tighter TPOT leaves smaller batches, hence more work per request; what is too long is no work at all."""
    base = {"model": LLAMA, "hardware": "h100-sxm", "workload": ANSWERS}
    works = [
        least_work(build(load_scenario({**base, "slo": {"tpot_p99_ms": limit}}))).per_request_s for limit in (8, 20, 90)
    ]
    assert works == sorted(works, reverse=True) and works[0] > works[-1]
    short = build(load_scenario({**base, "engine": {"max_model_len": 300}}))
    assert 0.2 < Sizes.of(short).served_share < 0.6


def test_fleets_grow_with_the_traffic() -> None:
    """Twice the requests in the same time need twice the replicas, and time after the last arrival counts."""
    loaded = load_scenario({"model": LLAMA, "hardware": "h100-sxm", "workload": CHAT, "slo": {"e2e_p99_s": 10}})
    work = least_work(build(loaded))
    assert work.slack_s == 10
    assert work.replicas(200_000, 100.0) == pytest.approx(2 * work.replicas(100_000, 100.0), abs=1)
    assert work.replicas(100_000, 0.0) > work.replicas(100_000, 100.0)
