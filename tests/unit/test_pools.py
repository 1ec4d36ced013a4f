"""Disaggregated serving from a scenario: the halves, what contradicts itself, and what a run reports."""

from __future__ import annotations

from typing import Any

import pytest

from sim.build import build
from sim.errors import ConfigError
from sim.metrics import summarise
from sim.resolved import resolved
from sim.run import run_setup
from sim.scenario import load_scenario
from sim.series import blocks_of_replicas
from sim.setup import Setup

TRAFFIC = {
    "num_requests": 40, "arrival": {"kind": "poisson", "rate": 20}, "input_tokens": 900, "output_tokens": 50,
}  # fmt: skip
BASE: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B",
    "hardware": "h100-sxm",
    "workload": TRAFFIC,
    "engine": {"max_num_seqs": 100, "kv_cache": {"block_size": 32}},
    "pools": {
        "prefill": {"count": 2, "engine": {"max_num_batched_tokens": 4096}},
        "decode": {"hardware": "a100-sxm-80gb", "engine": {"tensor_parallel_size": 2, "kv_cache": {"block_size": 16}}},
        "link": {"bandwidth": "10 GB/s"},
    },
}


def setup(**changes: Any) -> Setup:
    """What is built from the base scenario with some keys set."""
    return build(load_scenario(BASE, {key.replace("__", "."): value for key, value in changes.items()}))


def halves(built: Setup) -> tuple[Setup, Setup]:
    """Both pools."""
    assert built.decode is not None
    return built, built.decode


def test_a_pool_adds_to_the_engine_of_the_scenario() -> None:
    """Key by key, each pool with its own hardware, memory and number of replicas."""
    prefill, decode = halves(setup())
    assert (prefill.gpu.name, decode.gpu.name) == ("h100-sxm", "a100-sxm-80gb")
    assert (prefill.engine.max_num_batched_tokens, decode.engine.tensor_parallel_size) == (4096, 2)
    assert (prefill.engine.max_num_seqs, decode.engine.max_num_seqs) == (100, 100)
    assert [pool.engine.kv_cache["block_size"] for pool in (prefill, decode)] == [32, 16]
    assert [pool.scenario.replicas.count for pool in (prefill, decode)] == [2, 1]


def test_a_policy_of_a_pool_replaces_that_of_the_scenario() -> None:
    """With all its options: those of another policy would make no sense."""
    common = {"kind": "continuous", "mixed": True}
    prefill, decode = halves(setup(engine__scheduler=common, pools__prefill__engine__scheduler={"kind": "chunked"}))
    assert prefill.engine.scheduler == {"kind": "chunked"}
    assert decode.engine.scheduler == common


def test_by_default_the_link_is_the_network_of_a_replica() -> None:
    """Of the pool whose replicas have less of it; nothing is sent early."""
    link = setup(pools__link={}).link
    gpus = [pool.gpu.network_bytes_per_s * pool.engine.layout.gpus for pool in halves(setup())]
    assert link is not None
    assert (link.bandwidth, link.latency_s, link.layerwise) == (min(gpus), 0, False)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"replicas__count": 2}, "pools.prefill.count"),
        ({"pools__decode__engine__scheduler": "static"}, "hands no prompts"),
        ({"pools__prefill__engine__kv_cache__allocator": "max-length"}, "that another pool gives"),
        ({"pools__decode__engine__kv_cache_dtype": "fp8"}, "must be that of the prefill pool"),
        ({"pools__decode__engine__max_queued_requests": 3}, "is for the prefill pool"),
        ({"pools__decode__hardware": "h100"}, "h100-sxm"),
        ({"pools__decode__gpus": 3}, "gpus"),
        ({"pools__decode__router": "nearest"}, "unknown policy"),
        ({"workload__n": 2}, "one answer per request"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], problem: str) -> None:
    """With what would be right."""
    with pytest.raises(ConfigError, match=problem):
        setup(**changes)


def test_the_resolved_scenario_resolves_to_itself() -> None:
    """Both halves written out, and the same results."""
    built = setup(pools__decode__engine__preemption_mode="swap", engine__num_gpu_blocks_override=100)
    again = build(load_scenario(resolved(built)))
    assert resolved(again) == resolved(built)
    assert run_setup(again).manifest == run_setup(built).manifest


def test_a_run_counts_both_pools() -> None:
    """GPUs, money and memory of both; every prompt is copied once, in whole blocks of the decode replicas."""
    built = setup()
    result = run_setup(built)
    summary, (prefill, decode) = summarise(result), halves(built)
    assert (summary["gpus"], result.facts["replicas"]) == (4, 3)
    assert blocks_of_replicas(result) == [prefill.num_blocks, prefill.num_blocks, decode.num_blocks]
    assert summary["kv"]["num_blocks"] == sum(blocks_of_replicas(result))
    assert [pool["name"] for pool in summary["pools"]] == ["prefill", "decode"]
    weights = sum(pool["busy_share"] * pool["replicas"] for pool in summary["pools"])
    assert summary["busy_share"] == pytest.approx(weights / 3)
    assert summary["handoff"]["handed_over"] == 40
    assert summary["handoff"]["copied_bytes"] == 40 * 57 * decode.block_bytes
    assert set(result.requests["replica"].tolist()) == {2}
    assert prefill.gpu.price_per_hour_usd is not None
    assert decode.gpu.price_per_hour_usd is not None
    price = 2 * prefill.gpu.price_per_hour_usd.mid + 2 * decode.gpu.price_per_hour_usd.mid
    assert result.facts["price_per_gpu_hour_usd"] * 4 == pytest.approx(price)


def test_a_slow_link_shows_between_the_first_two_tokens() -> None:
    """And layer by layer most of it hides behind the prompt."""
    times = {}
    for layerwise in (False, True):
        given = {"pools__link__bandwidth": "3 GB/s", "pools__link__layerwise": layerwise, "workload__arrival__rate": 1}
        result = run_setup(setup(**given))
        summary = summarise(result)
        times[layerwise] = summary["mean_tpot_ms"] * 49
        assert summary["mean_ttft_ms"] == pytest.approx(summarise(run_setup(setup(**given)))["mean_ttft_ms"])
    copy_ms = 57 * halves(setup())[1].block_bytes / 3e9 * 1e3
    assert 0.5 * copy_ms < times[False] - times[True] < copy_ms


def test_the_step_mode_does_not_matter() -> None:
    """Runs of steps and single steps end all requests at the same instants, with pools as without."""
    given = {"pools__link__layerwise": True, "workload__arrival__rate": 60}
    leaping, single = run_setup(setup(**given)), run_setup(setup(**given), step_by_step=True)
    for column in leaping.requests.columns:
        assert leaping.requests[column].tolist() == single.requests[column].tolist()
