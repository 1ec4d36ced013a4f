"""Swapping and load shedding from a scenario: settings, defaults, and what a run reports."""

from __future__ import annotations

from typing import Any

import pytest

from sim.audit import audit
from sim.build import build
from sim.engine_settings import PCIE_SHARE
from sim.errors import ConfigError, InvariantError
from sim.metrics import summarise
from sim.request import Reason
from sim.resolved import resolved
from sim.results import RunResult
from sim.run import run_setup
from sim.scenario import load_scenario
from sim.setup import Setup
from sim.step import IN, OUT

TRAFFIC = {"num_requests": 40, "arrival": {"kind": "all_at_once"}, "input_tokens": 200, "output_tokens": 200}
BASE = {
    "model": "meta-llama/Llama-3.1-8B",
    "hardware": "h100-sxm",
    "workload": TRAFFIC,
    "engine": {"num_gpu_blocks_override": 300, "host": {"request_s": 0, "prompt_token_s": 0}},
}


def setup(**changes: Any) -> Setup:
    """What is built from the base scenario with some keys set: `engine__max_num_seqs=64`."""
    return build(load_scenario(BASE, {key.replace("__", "."): value for key, value in changes.items()}))


def test_each_gpu_has_its_link_and_its_share_of_the_host() -> None:
    """By default 4 GiB and the usable rate of PCIe per GPU; a block counts the shares of all of them."""
    parts = setup(engine__preemption_mode="swap", engine__tensor_parallel_size=2).parts()
    assert parts.host is not None
    assert parts.host.capacity_bytes == 2 * 4 * 2**30
    assert parts.links[OUT] == parts.links[IN]
    assert parts.links[IN].bytes_per_s == 2 * round(PCIE_SHARE * 64e9)
    assert not parts.overlap


def test_what_is_written_counts() -> None:
    """Sizes with units, and they come back from the resolved scenario."""
    offload = {"capacity": "1 GiB", "bandwidth": "20 GB/s", "latency_s": "10 us", "overlap": True}
    built = setup(engine__preemption_mode="swap", engine__kv_cache__offload=offload)
    parts = built.parts()
    assert parts.host is not None
    assert (parts.host.capacity_bytes, parts.overlap) == (2**30, True)
    assert (parts.links[OUT].bytes_per_s, parts.links[OUT].latency_ps) == (20 * 10**9, 10**7)
    again = build(load_scenario(resolved(built)))
    assert resolved(again) == resolved(built)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("engine__preemption_mode", "copy", "preemption_mode"),
        ("engine__kv_cache__offload__capacity", "4 parsecs", "capacity"),
        ("engine__kv_cache__offload__bandwidth", 0, "bandwidth"),
        ("engine__max_queued_requests", 0, "max_queued_requests"),
        ("engine__scheduler", "static", "swap needs chunked or continuous"),
    ],
)
def test_mistakes_are_named(key: str, value: Any, problem: str) -> None:
    """With the key."""
    with pytest.raises(ConfigError, match=problem):
        setup(**{"engine__preemption_mode": "swap", key: value})


@pytest.mark.parametrize("overlap", [False, True])
def test_a_run_says_what_was_swapped(overlap: bool) -> None:
    """Totals in the summary; whole blocks, and as many bytes in as out."""
    built = setup(engine__preemption_mode="swap", engine__kv_cache__offload__overlap=overlap)
    result = run_setup(built)
    swap = summarise(result)["swap"]
    assert swap["swaps"] == result.requests["preemptions"].sum() > 0
    assert swap["swapped_out_bytes"] == swap["swapped_in_bytes"]
    assert swap["swapped_out_bytes"] % built.memory.block_bytes == 0
    assert 0 < swap["stalled_s"] < summarise(result)["duration"]
    assert summarise(run_setup(setup()))["swap"] is None


def test_the_audit_finds_lost_bytes() -> None:
    """What went out and is nowhere is an error."""
    result = run_setup(setup(engine__preemption_mode="swap"))
    facts = result.facts | {"swap": result.facts["swap"] | {"swapped_in_bytes": 0}}
    lost = RunResult(result.requests, result.steps, result.segments, {"facts": facts})
    with pytest.raises(InvariantError, match="nowhere"):
        audit(lost, len(result.requests))


def test_a_full_queue_rejects() -> None:
    """At one instant as many as may wait are taken in, for nobody is admitted before the plan; the rest is rejected."""
    result = run_setup(setup(engine__max_queued_requests=5))
    assert summarise(result)["failures"] == {Reason.QUEUE_FULL.name.lower(): 35}
