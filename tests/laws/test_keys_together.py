"""Keys of the scenario in combinations nobody thought of: each runs, exactly, or is refused in one line."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from scenarios import amount
from sim import catalog
from sim.errors import ConfigError
from sim.policies import QUEUE_ORDERS, ROUTERS, SCHEDULERS
from sim.run import simulate
from sim.scenario import load_scenario

KEYS: Mapping[str, Sequence[Any]] = {
    "engine.preset": catalog.names("preset"),
    "hardware": ["h100-sxm", "a100-sxm-80gb", "l40s", "h200-sxm", "v100-sxm-32gb", "epyc-9554", "rtx-4090"],
    "model": [
        "Qwen/Qwen2.5-7B", "mistralai/Mixtral-8x7B-v0.1", "openai/gpt-oss-20b", "deepseek-ai/DeepSeek-V2-Lite",
        "llava-hf/llava-1.5-7b-hf",
    ],
    "engine.tensor_parallel_size": [2, 4],
    "engine.pipeline_parallel_size": [2],
    "engine.data_parallel_size": [2],
    "engine.enable_expert_parallel": [True],
    "engine.quantization": ["fp8", "awq", "nf4", "smoothquant", "q4_k_m", {"kv_cache": "fp8"}],
    "engine.scheduler": sorted(SCHEDULERS),
    "engine.scheduling_policy": sorted(QUEUE_ORDERS),
    "engine.preemption_mode": ["swap"],
    "engine.num_gpu_blocks_override": [200, 600, 2000],
    "engine.max_queued_requests": [3],
    "engine.kv_cache.allocator": ["max-length", "predicted", {"kind": "max-length", "placement": "buddy"}],
    "engine.kv_cache.tiers": [[{"capacity": "8 GiB", "bandwidth": "20 GB/s"}]],
    "engine.kv_cache.sliding_window": [512],
    "engine.speculative": [
        {"method": "ngram", "num_speculative_tokens": 4, "acceptance": 0.5},
        {"method": "eagle", "num_speculative_tokens": 3, "acceptance": [0.8, 0.6, 0.5]},
    ],
    "engine.shared_prefix_attention": ["relay", "hydragen"],
    "engine.kernels": [{"attention": "standard"}, {"cuda_graphs": False, "fusion": False}],
    "replicas.count": [2, 3],
    "replicas.router": sorted(ROUTERS),
    "workload.n": [3],
    "workload.shared_prefix": [{"tokens": 256, "groups": 3}],
    "workload.images": [{"count": 1, "width": 512, "height": 512}],
    "workload.client_timeout_s": [0.5, 20],
    "workload.application": [{"kind": "rag"}, {"kind": "agent"}, {"kind": "graph_rag"}],
    "client": [{"response": "polling", "poll_interval_s": 0.5, "network_rtt_s": 0.03}],
}  # fmt: skip


def drawn(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A small scenario, and up to four keys that change it."""
    rng = random.Random(seed)
    workload = {
        "num_requests": 30, "arrival": {"kind": "poisson", "rate": rng.choice([2, 20, 200])},
        "input_tokens": {"kind": "uniform", "min": 10, "max": 900},
        "output_tokens": {"kind": "uniform", "min": 1, "max": 120},
    }  # fmt: skip
    chosen = rng.sample(sorted(KEYS), rng.choice([1, 2, 2, 3, 3, 4]))
    base = {"model": "meta-llama/Llama-3.1-8B", "hardware": "h100-sxm", "workload": workload}
    return base, {key: rng.choice(KEYS[key]) for key in chosen}


@pytest.mark.parametrize("batch", range(4))
def test_any_keys_together_run_exactly_or_are_refused(batch: int) -> None:
    """Leaping gives the tables of single-stepping, the audit finds nothing, and refusals are the user's to mend.

    At least half of what is drawn runs.
    """
    became: Counter[str] = Counter()
    for seed in range(amount(30)):
        base, changes = drawn(1000 * batch + seed)
        try:
            leaping = simulate(load_scenario(base, changes))
        except ConfigError as error:
            assert "\n" not in str(error)
            became["refused"] += 1
            continue
        stepping = simulate(load_scenario(base, changes), step_by_step=True)
        for name, column in leaping.requests.columns.items():
            assert np.array_equal(column, stepping.requests[name]), (changes, name)
        became["ran"] += 1
    assert became["ran"] >= sum(became.values()) / 2
