"""The defaults that serving engines choose, some of them by the GPU."""

from __future__ import annotations

from itertools import combinations

import pytest

from sim import catalog
from sim.build import build
from sim.errors import ConfigError
from sim.policies import ALLOCATORS, SCHEDULERS
from sim.presets import load_preset
from sim.scenario import load_scenario
from sim.specs.hardware import load_gpu

SAME = {("vllm-0.15", "vllm-v1"), ("llama.cpp", "t-mac")}
"""Two versions that differ in what was fitted only, and llama.cpp with other products."""


@pytest.mark.parametrize("name", catalog.names("preset"))
def test_a_preset_is_complete(name: str) -> None:
    """Every shipped preset names a scheduler that exists and describes itself."""
    preset = load_preset(name)
    assert preset.scheduler.kind in SCHEDULERS
    assert preset.allocator.kind in ALLOCATORS
    assert preset.description
    scenario = {"model": "meta-llama/Llama-3.1-8B", "hardware": "h100-sxm", "workload": "chat"}
    engine = build(load_scenario(scenario | {"engine": {"preset": name}})).parts()
    assert engine.scheduler.num_waiting == 0


def test_presets_of_papers_reserve_for_the_longest_output() -> None:
    """Before PagedAttention memory was contiguous and reserved; Orca mixes whole prompts with decodes."""
    scenario = {"model": "meta-llama/Llama-3.1-8B", "hardware": "h100-sxm", "workload": "chat"}
    orca = build(load_scenario(scenario | {"engine": {"preset": "orca"}})).engine
    assert orca.scheduler == {"kind": "continuous", "priority": "decode", "mixed": True}
    assert orca.kv_cache["allocator"]["kind"] == "max-length"
    paged = build(load_scenario(scenario | {"engine": {"preset": "orca", "kv_cache": {"allocator": "paged"}}})).engine
    assert paged.kv_cache["allocator"] == {"kind": "paged"}
    fixed = build(load_scenario(scenario | {"engine": {"preset": "faster-transformer"}})).engine
    assert fixed.scheduler == {"kind": "static"}


@pytest.mark.parametrize(
    ("gpu", "limits"),
    [
        ("h100-sxm", (1024, 8192)),
        ("h200-sxm", (1024, 8192)),
        ("rtx-pro-6000", (1024, 8192)),
        ("a100-sxm-80gb", (256, 2048)),
        ("a100-pcie-80gb", (256, 2048)),
        ("l40s", (256, 2048)),
        ("l4", (256, 2048)),
    ],
)
def test_vllm_chooses_its_limits_by_the_gpu(gpu: str, limits: tuple[int, int]) -> None:
    """From 70 GiB on, A100 apart, the API server takes 1024 sequences and 8192 tokens (vllm/engine/arg_utils.py)."""
    assert load_preset("vllm-v1").limits(load_gpu(gpu)) == limits


def test_times_of_the_host_are_read_with_their_units() -> None:
    """Microseconds and milliseconds become seconds."""
    assert 1e-4 < load_preset("vllm-v1").host.step_s < 1e-3
    assert load_preset("vllm-v0").host.step_s == 2e-3


def test_vllm_v0_fits_the_longest_prompt_in_one_step() -> None:
    """Without chunked prefill the token budget grows to the longest context."""
    loaded = load_scenario("quickstart", {"engine.preset": "vllm-v0", "engine.max_model_len": 32768})
    engine = build(loaded).engine
    assert (engine.scheduler["kind"], engine.max_num_batched_tokens, engine.max_num_seqs) == ("continuous", 32768, 256)
    assert not engine.async_scheduling


def test_an_unknown_preset_is_refused() -> None:
    """With the nearest names."""
    with pytest.raises(ConfigError, match=r"preset: 'vllm': unknown preset \(valid, nearest first: vllm-v"):
        load_preset("vllm")


def test_versions_of_vllm_differ_in_what_was_fitted_only() -> None:
    """`vllm-v1` follows the newest version; `vllm-0.15` stays with the servers that it was fitted to."""
    newest, older = load_preset("vllm-v1"), load_preset("vllm-0.15")
    fitted = {name: getattr(older, name) for name in ("description", "host", "kernel_factors")}
    assert older == newest.model_copy(update=fitted)
    assert older.host != newest.host


def behaviours(name: str) -> dict[str, object]:
    """What a preset does on an H100, setting by setting."""
    scenario = {"model": "meta-llama/Llama-3.1-8B", "hardware": "h100-sxm", "workload": "chat"}
    setup = build(load_scenario(scenario | {"engine": {"preset": name}}))
    engine = setup.engine
    found = {key: getattr(engine, key) for key in ("scheduler", "max_num_seqs", "max_num_batched_tokens")}
    found |= {key: engine.kv_cache[key] for key in ("allocator", "block_size", "enable_prefix_caching")}
    found |= {"waits for the step before": not engine.async_scheduling, "num_blocks": setup.num_blocks}
    found |= {"drains together": setup.parts().scheduler.drains_together}
    return found | dict(engine.host)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pair
        for pair in combinations(catalog.names("preset"), 2)
        if pair not in SAME and not any(name.endswith("max-utilization") for name in pair)
    ],
)
def test_presets_differ_in_three_behaviours(one: str, other: str) -> None:
    """Every two engines differ in at least three of scheduler, limits, pipelining, host times and KV memory."""
    first, second = behaviours(one), behaviours(other)
    assert sum(first[key] != second[key] for key in first) >= 3
