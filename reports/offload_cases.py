"""The runs behind reports/offload-study.md: scenarios, and the few numbers that the page needs of each."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from joblib import Parallel, delayed

from sim.build import build
from sim.cost.shape import RunShape
from sim.metrics import summarise
from sim.results import RunResult
from sim.run import simulate
from sim.scenario import load_scenario
from sim.setup import Setup
from sim.units import to_s

LINKS = {"PCIe 3": 12, "PCIe 4": 25, "PCIe 5": 50, "NVLink-C2C": 400}
"""GB/s each way: usable PCIe x16 and one direction of NVLink-C2C, both from memory."""
MODELS = {"Llama-2-7B": ("meta-llama/Llama-2-7b-hf", 4096), "Llama-3.1-8B": ("meta-llama/Llama-3.1-8B", 32768)}
CONTEXTS = {"Llama-2-7B": (256, 512, 1024, 2048), "Llama-3.1-8B": (256, 1024, 4096, 8192, 16384)}
QUEUE = 8
"""Where requests are rejected: so many may wait."""
Case = tuple[Any, ...]


def pressure(
    model: str, prompt: int, mode: str, gb_per_s: int = 1, rate: float = 1000.0, requests: int = 300
) -> tuple[str, dict[str, Any]]:
    """More traffic than KV memory has room for. `mode`: recompute, swap, overlap (swap beside the steps) or reject."""
    name, longest = MODELS[model]
    changes: dict[str, Any] = {
        "model": name,
        "workload.num_requests": requests,
        "workload.arrival.rate": rate,
        "workload.input_tokens": prompt,
        "engine.max_model_len": longest,
        "engine.num_gpu_blocks_override": slots(prompt) * (prompt + 256) // 16,
        "engine.preemption_mode": "swap" if mode in ("swap", "overlap") else "recompute",
        "engine.kv_cache.offload.bandwidth": f"{gb_per_s} GB/s",
        "engine.kv_cache.offload.overlap": mode == "overlap",
    }
    if mode == "reject":
        changes["engine.max_queued_requests"] = QUEUE
        changes["engine.kv_cache.allocator"] = {"kind": "max-length", "placement": "paged"}
    return "kv-pressure", changes


def slots(prompt: int) -> int:
    """Requests that fit in KV memory at about half their output: few enough for memory to be what is short."""
    return 24 if prompt < 8192 else 12 if prompt < 16384 else 6


def overload_rate(model: str, prompt: int) -> float:
    """1.2 times what is completed per second when all requests are there at once: swapping fast, or reserving ahead."""
    swapping = pressure(model, prompt, "swap", 400, requests=200)
    name, reserving = pressure(model, prompt, "reject", requests=200)
    del reserving["engine.max_queued_requests"]
    done = [summarise(simulate(load_scenario(*run)))["request_throughput"] for run in (swapping, (name, reserving))]
    return 1.2 * float(max(done))


def measured(scenario: str | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The summary of a run, how often its prompts were computed, and the second tokens of who is handed over."""
    result = simulate(load_scenario(scenario, overrides))
    computed = int((result.steps["prefill_tokens"] * result.steps["steps"]).sum())
    return {
        **summarise(result),
        "prompts_computed": computed / max(1, int(result.requests["prompt_tokens"].sum())),
        "second_token_ms": _second_token_ms(result) if "handoff" in result.facts else None,
    }


def _second_token_ms(result: RunResult) -> dict[str, float]:
    """Between the first token, on a prefill replica, and the second, on a decode replica."""
    first_decode = result.facts["pools"][0]["replicas"]
    chosen = result.segments["replica"] >= first_decode
    ids, starts = result.segments["request_id"][chosen], result.segments["start_ps"][chosen]
    order = np.lexsort((starts, ids))
    ids, where = np.unique(ids[order], return_index=True)
    firsts = dict(zip(result.requests["request_id"].tolist(), result.requests["first_token_ps"].tolist(), strict=True))
    gaps = starts[order][where] - np.array([firsts[i] for i in ids.tolist()])
    return {"median": float(np.median(gaps)) / 1e9, "p99": float(np.percentile(gaps, 99)) / 1e9}


def many(cases: Sequence[tuple[Any, ...]], label: str) -> list[dict[str, Any]]:
    """The summaries of `(scenario, overrides)` pairs, two processes at a time; progress on stderr."""
    results: list[dict[str, Any]] = []
    for result in Parallel(n_jobs=2, return_as="generator")(delayed(measured)(*case) for case in cases):
        results.append(result)
        print(f"\r{label}: {len(results)} of {len(cases)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return results


def pressure_study() -> tuple[dict[Case, dict[str, Any]], dict[Case, float]]:
    """Every (model, prompt, mode, GB/s), and the rate of every (model, prompt). Without copies: link 0."""
    rates = {(m, c): overload_rate(m, c) for m in MODELS for c in CONTEXTS[m]}
    keys: list[Case] = []
    for model, prompt in rates:
        keys += [(model, prompt, "recompute", 0), (model, prompt, "reject", 0)]
        keys += [(model, prompt, mode, bw) for mode in ("swap", "overlap") for bw in LINKS.values()]
    runs = many([pressure(m, c, mode, bw or 1, rates[m, c]) for m, c, mode, bw in keys], "pressure")
    return dict(zip(keys, runs, strict=True)), rates


def setup_of(model: str, hardware: str = "h100-sxm", **engine: Any) -> Setup:
    """An engine for its timer."""
    workload = {"num_requests": 1, "arrival": {"kind": "poisson", "rate": 1}, "input_tokens": 8, "output_tokens": 8}
    return build(load_scenario({"name": "timer", "model": model, "hardware": hardware, "workload": workload,
                                "engine": engine}))  # fmt: skip


def prefill_s(setup: Setup, tokens: int) -> float:
    """The step times of a prompt that is alone, in chunks of the engine's budget."""
    total, done, spans = 0, 0, len(setup.timer.spans)
    while done < tokens:
        chunk = min(setup.engine.max_num_batched_tokens, tokens - done)
        total += setup.timer.run(RunShape(0, 0, [(done, chunk)], [0] * spans, [0] * spans), 1).total_ps
        done += chunk
    return to_s(total)


def bytes_per_token(setup: Setup) -> float:
    """Of keys and values, on all GPUs of the replica."""
    return setup.memory.block_bytes / int(setup.engine.kv_cache["block_size"])


def one_swap(gb_per_s: int, overlap: bool) -> dict[str, Any]:
    """Eight long requests of which one must leave for a while: how long do the other seven wait between tokens?"""
    prompt, blocks = 8000, 8 * 512
    workload = {"num_requests": 8, "arrival": {"kind": "poisson", "rate": 1000.0}, "input_tokens": prompt,
                "output_tokens": 400}  # fmt: skip
    offload = {"bandwidth": f"{gb_per_s} GB/s", "overlap": overlap, "capacity": "1 TB"}
    engine = {"max_model_len": 32768, "num_gpu_blocks_override": blocks, "preemption_mode": "swap",
              "kv_cache": {"enable_prefix_caching": False, "offload": offload}}  # fmt: skip
    result = simulate(load_scenario({"name": "one-swap", "model": MODELS["Llama-3.1-8B"][0], "hardware": "h100-sxm",
                                     "workload": workload, "engine": engine}))  # fmt: skip
    steps, swap = result.steps, result.facts["swap"]
    last = steps["first_step_ps"] + (steps["steps"] - 1) * steps["slope_ps"]
    ends = steps["start_ps"] + (steps["steps"] * (steps["first_step_ps"] + last)) // 2
    gaps = steps["start_ps"][1:] - ends[:-1]
    typical = float(np.median(gaps))
    decode = steps["first_step_ps"][(steps["prefill_tokens"] == 0) & (steps["decodes"] > 0)]
    return {"swaps": swap["swaps"], "bytes": swap["swapped_out_bytes"], "moved": swap["swapped_out_bytes"]
            + swap["swapped_in_bytes"], "stalled_s": swap["stalled_s"], "step_s": to_s(int(np.median(decode))),
            "longest_gap_s": to_s(int(gaps.max() - typical))}  # fmt: skip


TIER_CASES = {
    "host": ("tiers-host", {"workload.num_requests": 600}),
    "slow disk": ("tiers-disk", {"workload.num_requests": 600}),
}
DISK = {"name": "disk", "capacity": "1 TB", "bandwidth": "6 GB/s", "latency_s": "100 us"}
TWO_TIERS = {
    f"{size} host + disk": [{"name": "host", "capacity": size, "latency_s": "50 us"}, DISK]
    for size in ("4 GiB", "16 GiB")
}


def tier_study() -> dict[Case, dict[str, Any]]:
    """(case, load_policy); the last cases have a small host tier, too small for all, and a disk below it."""
    keys = [(case, policy) for case in (*TIER_CASES, *TWO_TIERS) for policy in ("never", "always", "cheaper")]
    cases = []
    for case, policy in keys:
        name, changes = TIER_CASES.get(case, TIER_CASES["host"])
        more = {"engine.kv_cache.tiers": TWO_TIERS[case]} if case in TWO_TIERS else {}
        cases.append((name, {**changes, **more, "engine.kv_cache.load_policy": policy}))
    return dict(zip(keys, many(cases, "tiers"), strict=True))


FAST, SLOW = "50 GB/s", "2 GB/s"
POOL_MODES = {
    "collocated, vllm-v1": (None, False),
    "collocated, vllm-v0": (None, False),
    "2 + 2, fast link": (FAST, False),
    "2 + 2, fast, layerwise": (FAST, True),
    "2 + 2, fast, layerwise, sync": (FAST, True),
    "2 + 2, slow link": (SLOW, False),
    "2 + 2, slow, layerwise": (SLOW, True),
}
RATES = (8, 24, 40, 56)


def pooled(mode: str, rate: int) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Four H100s under conversations: one way of using them."""
    lengths = {"input_tokens": {"kind": "lognormal", "mean": 1155, "std": 1100, "max": 14050},
               "output_tokens": {"kind": "lognormal", "mean": 211, "std": 165, "max": 1000}}  # fmt: skip
    scenario: dict[str, Any] = {
        "name": "pools", "model": MODELS["Llama-3.1-8B"][0], "hardware": "h100-sxm",
        "workload": {"num_requests": 600, "arrival": {"kind": "poisson", "rate": rate}, **lengths},
        "slo": {"ttft_p99_ms": 500, "tpot_p99_ms": 15},
        "engine": {"preset": "vllm-v0" if mode.endswith("v0") else "vllm-v1",
                   **({"async_scheduling": False} if mode.endswith("sync") else {})},
    }  # fmt: skip
    link, layerwise = POOL_MODES[mode]
    if link is None:
        return {**scenario, "replicas": {"count": 4, "router": "least_outstanding_requests"}}, {}
    pool = {"count": 2, "router": "least_outstanding_requests"}
    between = {"bandwidth": link, "latency_s": "10 us", "layerwise": layerwise}
    return {**scenario, "pools": {"prefill": pool, "decode": pool, "link": between}}, {}


def pool_study() -> dict[Case, dict[str, Any]]:
    """(mode, requests per second)."""
    keys = [(mode, rate) for mode in POOL_MODES for rate in RATES]
    return dict(zip(keys, many([pooled(*key) for key in keys], "pools"), strict=True))


BLOCK_SIZES = (1, 4, 16, 64, 256)


def block_study() -> tuple[list[dict[str, Any]], Setup]:
    """OPT-13B with ShareGPT's mean lengths on an A100, swapping, by block size; and its timer."""
    lengths = {"num_requests": 300, "arrival": {"kind": "poisson", "rate": 4}, "input_tokens": 161,
               "output_tokens": {"kind": "lognormal", "mean": 338, "std": 200, "max": 1000}}  # fmt: skip
    cases = []
    for size in BLOCK_SIZES:
        kv = {
            "enable_prefix_caching": False,
            "block_size": size,
            "offload": {"bandwidth": "25 GB/s", "capacity": "1 TB"},
        }
        engine = {"preset": "vllm-v0", "num_gpu_blocks_override": 8192 // size, "preemption_mode": "swap",
                  "kv_cache": kv}  # fmt: skip
        cases.append(({"name": "blocks", "model": "facebook/opt-13b", "hardware": "a100-sxm-40gb", "workload": lengths,
                       "engine": engine},))  # fmt: skip
    return many(cases, "block sizes"), setup_of("facebook/opt-13b", "a100-sxm-40gb", preset="vllm-v0")
