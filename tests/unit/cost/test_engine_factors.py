"""What an engine preset adds to the price of a step: a sampler's filter, and factors on the times of kernels."""

from __future__ import annotations

import pytest

from sim.build import build
from sim.cost.shape import RunShape
from sim.presets import load_preset
from sim.scenario import load_scenario
from sim.setup import Setup


def setup(**engine: object) -> Setup:
    """Llama-3.1-8B on an H100."""
    workload = {"arrival": {"kind": "all_at_once"}, "num_requests": 1, "input_tokens": 1, "output_tokens": 1}
    scenario = {"model": "meta-llama/Llama-3.1-8B", "hardware": "h100-sxm", "workload": workload, "engine": engine}
    return build(load_scenario(scenario))


def seconds(made: Setup, operator: str) -> float:
    """Time of an operator in a step of 32 sequences."""
    ops = made.timer.explain(RunShape(32, 32 * 500))
    return sum(op.seconds for op in ops if op.name == operator)


def test_sampling_among_the_likeliest_costs_a_sort() -> None:
    """Llama 3.1 asks for top-p, so requests get it unless they are greedy; the filter is priced by batch."""
    sampler = load_preset("vllm-v1").sampler
    assert setup().engine.sampling == "filtered"
    assert setup(sampling="greedy").engine.sampling == "greedy"
    cost = seconds(setup(), "top-k/top-p filter")
    logits_bytes = 32 * 128256 * sampler.filter_bytes_per_logit
    assert sampler.filter_s < cost
    assert cost - sampler.filter_s == pytest.approx(logits_bytes / 3.35e12, rel=0.5)
    assert seconds(setup(sampling="greedy"), "top-k/top-p filter") == 0


def test_an_engine_scales_the_kernels_it_has_of_its_own() -> None:
    """The factor of an operator class multiplies its times and no others."""
    factor = load_preset("vllm-v1").kernel_factors["attention_decode"]
    plain, scaled = setup(preset="vllm-0.9"), setup(preset="vllm-v1")
    assert seconds(scaled, "attention decode") == pytest.approx(factor * seconds(plain, "attention decode"))
    assert seconds(scaled, "qkv") == seconds(plain, "qkv")
