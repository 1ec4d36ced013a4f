"""Whole runs with memory below the prefix cache: where a copy beats computing, and where it does not."""

from __future__ import annotations

from typing import Any

import pytest

from sim.build import build
from sim.errors import ConfigError
from sim.metrics import summarise
from sim.run import run_setup
from sim.scenario import load_scenario


def served(scenario: str, requests: int = 500, step_by_step: bool = False, **kv_cache: Any) -> dict[str, Any]:
    """The summary of a shipped scenario, shortened."""
    changes = {f"engine.kv_cache.{key}": value for key, value in kv_cache.items()}
    loaded = load_scenario(scenario, {"workload.num_requests": requests, **changes})
    return summarise(run_setup(build(loaded), step_by_step=step_by_step))


@pytest.mark.parametrize("prefetch", [True, False])
def test_host_memory_beats_computing_again(prefetch: bool) -> None:
    """Long histories over PCIe: the mean wait for the first token is a good deal shorter with loads than without."""
    loads, computes = (served("tiers-host", 1500, load_policy=p, prefetch=prefetch) for p in ("cheaper", "never"))
    assert loads["mean_ttft_ms"] < 0.8 * computes["mean_ttft_ms"]
    assert loads["prefix_cache"]["token_hit_ratio"] > 0.9 > computes["prefix_cache"]["token_hit_ratio"]
    (host,) = loads["prefix_cache"]["tiers"]
    assert host["name"] == "host"
    assert 0 < host["held_tokens"] <= host["written_tokens"] < host["loaded_tokens"]


def test_a_slow_disk_loses_against_computing_again() -> None:
    """Short histories of a small model: always loading is worse than never, and `cheaper` knows it."""
    always, never, cheaper = (served("tiers-disk", load_policy=p) for p in ("always", "never", "cheaper"))
    assert always["prefix_cache"]["tiers"][0]["loaded_tokens"] > 0
    assert always["mean_ttft_ms"] > 1.05 * never["mean_ttft_ms"]
    assert cheaper["mean_ttft_ms"] < 1.02 * never["mean_ttft_ms"]


def test_a_small_first_tier_hands_on_to_the_second() -> None:
    """What the host cannot hold is read from the disk; single steps give the same summary."""
    tiers = [{"name": "host", "capacity": "1 GiB"}, {"name": "disk", "capacity": "1 TB", "bandwidth": "20 GB/s"}]
    summary = served("tiers-host", tiers=tiers)
    host, disk = summary["prefix_cache"]["tiers"]
    assert disk["loaded_tokens"] > host["loaded_tokens"]
    assert host["held_tokens"] * 131072 <= 2**30
    other = served("tiers-host", step_by_step=True, tiers=tiers)
    assert {k: v for k, v in other.items() if k != "kv"} == {k: v for k, v in summary.items() if k != "kv"}


def test_tiers_that_cannot_be_are_refused() -> None:
    """Only the first tier has a bandwidth of its own accord, and prefixes have to be cached at all."""
    tiers = [{"name": "host", "capacity": "1 GiB"}, {"name": "disk", "capacity": "1 TB"}]
    with pytest.raises(ConfigError, match=r"tiers\.1\.bandwidth: is required but missing"):
        served("tiers-host", tiers=tiers)
    with pytest.raises(ConfigError, match=r"kv_cache\.tiers: .*enable_prefix_caching"):
        served("tiers-host", enable_prefix_caching=False)
