"""A run taken apart: operators by phase, single requests' time, what bounds the system."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim.explain.limits import limits_of
from sim.explain.load import Case
from sim.explain.operators import Roofs, operators_of, phase_rows, totals
from sim.explain.request_time import PARTS, latency_rows
from sim.explain.run import Explanation, explain_run
from sim.metrics import summarise
from sim.results import RunResult
from sim.run import run_setup
from sim.series import row_durations_ps
from sim.setup import Setup

SCENARIO: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B",
    "hardware": "h100-sxm",
    "workload": {
        "num_requests": 150,
        "arrival": {"kind": "poisson", "rate": 12},
        "input_tokens": {"kind": "lognormal", "mean": 1155, "std": 1100, "max": 14050},
        "output_tokens": {"kind": "lognormal", "mean": 211, "std": 165, "max": 1000},
    },
    "slo": {"ttft_p99_ms": 500, "tpot_p99_ms": 50},
}
POOLS = {
    "pools": {"prefill": {"count": 1}, "decode": {"count": 1}, "link": {"bandwidth": "1 GB/s"}},
    "workload.arrival.rate": 4,
}


def run(**settings: Any) -> tuple[Setup, RunResult]:
    case = Case(SCENARIO, settings)
    return case.setup, run_setup(case.fresh_setup())


@pytest.fixture(scope="module")
def explained() -> Explanation:
    """A run without any change tried."""
    return explain_run(Case(SCENARIO), changes=())


@pytest.mark.parametrize("settings", [{}, POOLS], ids=["one replica", "pools"])
def test_operators_add_up_to_the_busy_time(settings: dict[str, Any]) -> None:
    """Whatever the phases, the seconds of all operators are those in which the replicas computed."""
    setup, result = run(**settings)
    busy_s = float(row_durations_ps(result.steps).sum()) / 1e12
    assert totals(operators_of(setup, result))["all"].seconds == pytest.approx(busy_s, rel=1e-9)


def test_prefill_is_bound_by_compute_and_decode_by_memory(explained: Explanation) -> None:
    """The roofline of chat traffic: prompts lie right of the ridge, answers left of it."""
    prefill, decode = phase_rows(explained.operators, explained.roofs)
    assert (prefill["phase"], prefill["bound"], prefill["side_of_ridge"]) == ("prefill", "compute", "compute")
    assert (decode["phase"], decode["bound"], decode["side_of_ridge"]) == ("decode", "memory", "memory")
    assert prefill["compute_utilisation"] > 0.4 > decode["compute_utilisation"]
    assert decode["bandwidth_utilisation"] > 0.4 > prefill["bandwidth_utilisation"]


def test_work_is_that_of_the_model(explained: Explanation) -> None:
    """The matrix products of a run take two FLOPs per parameter and token, to the padding of their tiles."""
    gemms = ("qkv", "o", "gate_up", "down")
    flops = sum(work.flops for (_, name), work in explained.operators.items() if name in gemms)
    matrices = [m for m in Case(SCENARIO).setup.architecture.matrices() if m.role in gemms]
    requests = explained.result.requests
    tokens = int((requests["prompt_tokens"] + requests["output_tokens"] - 1).sum())
    assert flops == pytest.approx(2 * tokens * sum(m.parameters for m in matrices), rel=0.08)


def test_no_operator_beats_its_roof(explained: Explanation) -> None:
    """No operator computes faster than the tensor cores, or than its intensity times the bandwidth of HBM."""
    roofs = explained.roofs
    for (phase, name), work in explained.operators.items():
        roof = min(roofs.flops_per_s, (work.intensity or np.inf) * roofs.bytes_per_s)
        assert work.flops / work.seconds <= roof * 1.001, (phase, name)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        POOLS,
        {"workload.arrival.rate": 40, "engine.num_gpu_blocks_override": 900},
        {"engine.num_gpu_blocks_override": 900, "engine.scheduler": "continuous"},
    ],
    ids=["plain", "pools", "preempted", "whole prompts"],
)
def test_the_parts_of_a_latency_add_up(settings: dict[str, Any]) -> None:
    """Queue, host, prefill, decode, preempted and transfer are never negative and sum to what was observed."""
    for row in latency_rows(*run(**settings)):
        assert min(row[part] for part in PARTS) >= 0
        assert sum(row[part] for part in PARTS) == pytest.approx(row["seconds"], abs=1e-9)


def test_preempted_time_is_what_the_request_table_says() -> None:
    """When memory is short, the p99 request's time without a seat is that of its row."""
    setup, result = run(**{"workload.arrival.rate": 40, "engine.num_gpu_blocks_override": 900})
    e2e = {row["percentile"]: row for row in latency_rows(setup, result) if row["metric"] == "e2el"}
    requests = result.requests
    lost = {int(i): int(ps) for i, ps in zip(requests["request_id"], requests["preempted_ps"], strict=True)}
    assert any(lost.values())
    for row in e2e.values():
        assert row["preempted"] == pytest.approx(lost[row["request_id"]] / 1e12, abs=1e-6)


def test_a_slow_link_shows_as_transfer() -> None:
    """With 1 GB/s between the pools, a prompt's keys and values take about as long as their bytes do."""
    setup, result = run(**POOLS)
    row = next(r for r in latency_rows(setup, result) if r["metric"] == "e2el" and r["percentile"] == 50)
    alone_s = row["prompt_tokens"] * 131072 / 1e9
    assert row["transfer"] > 0.9 * alone_s


def test_the_host_has_the_work_its_settings_say() -> None:
    """The host's part of a lone request: the API server's work, and step_s of each of its steps."""
    alone = {"workload.num_requests": 1, "workload.input_tokens": 100, "workload.output_tokens": 21,
             "engine.async_scheduling": False}  # fmt: skip
    host = {"step_s": 0.002, "sequence_s": 0.0, "token_s": 0.0, "request_s": 0.05, "prompt_token_s": 0.0}
    rows = latency_rows(*run(**alone, **{f"engine.host.{key}": value for key, value in host.items()}))
    assert [row["host"] for row in rows if row["metric"] == "ttft"] == pytest.approx([0.052] * 2)
    assert [row["host"] for row in rows if row["metric"] == "e2el"] == pytest.approx([0.05 + 21 * 0.002] * 2)


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        ({}, "hbm"),
        ({"engine.num_gpu_blocks_override": 900}, "kv_capacity"),
        ({"engine.max_num_seqs": 4, "workload.arrival.rate": 6}, "queue"),
        ({"workload.output_tokens": 1}, "compute"),
        ({"engine.host.step_s": 0.05}, "host"),
        ({"hardware": "a100-pcie-80gb", "engine.tensor_parallel_size": 8, "workload.output_tokens": 1,
          "workload.arrival.rate": 60}, "interconnect"),
    ],
)  # fmt: skip
def test_what_bounds_a_system_follows_its_scarcest_resource(settings: dict[str, Any], bound: str) -> None:
    """Taking blocks, seats, links or the host away makes each the bound; prompts alone are bound by compute."""
    setup, result = run(**settings)
    found = limits_of(setup, result, operators_of(setup, result), summarise(result))
    assert found["bound_by"] == bound, found


def test_an_idle_system_is_bound_by_nothing() -> None:
    """Under light load the verdict says that replicas idle, and what a step waits for."""
    setup, result = run(**{"workload.arrival.rate": 0.05, "workload.num_requests": 20})
    verdict = limits_of(setup, result, operators_of(setup, result), summarise(result))["verdict"]
    assert verdict.startswith("nothing: the replicas idle")


def test_roofs_are_the_datasheet_s() -> None:
    """989.4 dense BF16 TFLOP/s over 3.35 TB/s: a ridge at 295 FLOPs per byte."""
    assert Roofs.of(Case(SCENARIO).setup).ridge == pytest.approx(989.4 / 3.35, rel=1e-3)
