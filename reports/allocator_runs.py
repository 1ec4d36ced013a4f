"""The simulations behind reports/allocator-study.md: each function is one run and returns the few numbers it is for."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.metrics import summarise
from sim.results import RunResult
from sim.run import simulate
from sim.scenario import load_scenario
from sim.series import Series, series_of

SHAREGPT, ALPACA = (161.31, 337.99), (19.31, 58.45)
"""Mean prompt and output tokens, Kwon et al. (SOSP 2023), figure 11."""
SLOTS = 15_700
"""Tokens that OPT-13B's KV cache has room for on an A100 with 40 GB, the same paper, table 1."""
CONTEXT = 2048
LENGTH_SPREAD = 1.0
"""Standard deviation of the lengths over their mean: the paper gives means and histograms only."""

Numbers = dict[str, Any]

_CONTEXT_BUDDY = {"allocator": {"kind": "max-length", "reserve": "context", "placement": "buddy"}}
_OUTPUT_BUDDY = {"allocator": {"kind": "max-length", "reserve": "output", "placement": "buddy"}}
_OUTPUT_PAGED = {"allocator": {"kind": "max-length", "reserve": "output", "placement": "paged"}, "block_size": 16}
_PREDICTED = {"allocator": "predicted", "block_size": 16}
PAGED = {"allocator": "paged", "block_size": 16}
ALLOCATORS: dict[str, tuple[Numbers, Numbers]] = {
    "buddy, whole context (Orca Max)": (_CONTEXT_BUDDY, {}),
    "buddy, known output (Orca Oracle)": (_OUTPUT_BUDDY, {}),
    "blocks, known output": (_OUTPUT_PAGED, {}),
    "predicted, oracle": (_PREDICTED, {"length_predictor": "oracle"}),
    "predicted, noisy (sigma 0.5)": (_PREDICTED, {"length_predictor": {"kind": "noisy", "sigma": 0.5}}),
    "paged, block 16": (PAGED, {}),
}
"""Label -> `kv_cache` and further engine keys. Outputs end where `max_output_tokens` says, so that is the oracle."""


def lengths(mean: float, spread: float = LENGTH_SPREAD, longest: int = 1024) -> Numbers:
    """A lognormal law; a prompt and an answer of 1,024 tokens fill OPT's context."""
    return {"kind": "lognormal", "mean": mean, "std": mean * spread, "max": longest}


def opt_13b(kv_cache: Numbers, engine: Numbers, workload: Numbers) -> RunResult:
    """OPT-13B on an A100 with 40 GB and the paper's KV memory."""
    engine = {"preset": "vllm-v0", "max_model_len": CONTEXT, **engine, "kv_cache": kv_cache,
              "num_gpu_blocks_override": SLOTS // kv_cache.get("block_size", 1)}  # fmt: skip
    scenario = {"model": "facebook/opt-13b", "hardware": "a100-sxm-40gb", "engine": engine, "workload": workload}
    return simulate(load_scenario(scenario))


def traffic(
    means: tuple[float, float], arrival: Numbers, requests: int, spread: float = LENGTH_SPREAD, **more: Any
) -> Numbers:
    """Requests of one law of lengths."""
    prompt, output = (lengths(mean, spread) for mean in means)
    return {"num_requests": requests, "arrival": arrival, "input_tokens": prompt, "output_tokens": output, **more}


def poisson(rate: float) -> Numbers:
    """Arrivals of independent users."""
    return {"kind": "poisson", "rate": rate}


def at_rate(label: str, rate: float, seconds: float) -> Numbers:
    """ShareGPT-like requests for so long: shares of memory, batch, and the paper's normalised latency."""
    kv_cache, engine = ALLOCATORS[label]
    result = opt_13b(kv_cache, engine, traffic(SHAREGPT, poisson(rate), round(rate * seconds)))
    return {**_memory(result), "normalised_s": normalised_latency_s(result)}


def over_time(label: str, rate: float, requests: int) -> tuple[Numbers, Series]:
    """The same with its series, of a run as short as a figure is wide."""
    kv_cache, engine = ALLOCATORS[label]
    result = opt_13b(kv_cache, engine, traffic(SHAREGPT, poisson(rate), requests))
    return {**_memory(result), **result.facts}, series_of(result)


def backlog(label: str, requests: int) -> Numbers:
    """How many run side by side while others wait: all requests are there at the beginning."""
    kv_cache, engine = ALLOCATORS[label]
    engine = {**engine, "max_num_seqs": 1024}
    result = opt_13b(kv_cache, engine, traffic(SHAREGPT, {"kind": "all_at_once"}, requests))
    return {**_memory(result), **_while_waiting(result)}


def by_length(total_tokens: int, requests: int) -> Numbers:
    """Paged blocks of 16, one third of the tokens prompt, two thirds answer."""
    means = (total_tokens / 3, total_tokens * 2 / 3)
    return _memory(opt_13b(PAGED, {}, traffic(means, {"kind": "all_at_once"}, requests, spread=0.5)))


def by_block_size(means: tuple[float, float], block_size: int, requests: int) -> Numbers:
    """A backlog under paging with other blocks; up to 1,024 sequences, so that memory is the bound."""
    kv_cache = {**PAGED, "block_size": block_size}
    workload = traffic(means, {"kind": "all_at_once"}, requests)
    result = opt_13b(kv_cache, {"max_num_seqs": 1024}, workload)
    return {**_memory(result), **_while_waiting(result)}


def shared(means: tuple[float, float], spread: float, rate: float, asked: dict[str, int]) -> float:
    """Percent of KV blocks saved because the sequences of a request share them."""
    sequences = next(iter(asked.values()))
    workload = traffic(means, poisson(rate / sequences), 300, spread, **asked)
    return 100 * float(summarise(opt_13b(PAGED, {"async_scheduling": False}, workload))["kv"]["shared_fraction"])


def seats(model: str, max_num_seqs: int) -> Numbers:
    """A backlog on one H100 under vLLM V1, with so many seats."""
    engine = {"max_num_seqs": max_num_seqs, "kv_cache": {**PAGED, "enable_prefix_caching": False}}
    workload = traffic(SHAREGPT, {"kind": "all_at_once"}, max(1500, 5 * max_num_seqs))
    scenario = {"model": model, "hardware": "h100-sxm", "engine": engine, "workload": workload}
    result = simulate(load_scenario(scenario))
    requests = result.requests
    needed = int(requests["prompt_tokens"].sum())
    computed = int((result.steps["prefill_tokens"]).sum())
    return {**_memory(result), **_while_waiting(result), "recomputed": computed / needed - 1,
            "slots": result.facts["num_gpu_blocks"] * result.facts["block_size"]}  # fmt: skip


def normalised_latency_s(result: RunResult) -> float:
    """Mean over requests of end-to-end latency over output tokens, in s/token (Kwon et al., section 6.1)."""
    requests = result.requests
    return float(np.mean((requests["finish_ps"] - requests["arrival_ps"]) / 1e12 / requests["output_tokens"]))


def _memory(result: RunResult) -> Numbers:
    """Shares of KV memory, and what the batch was."""
    summary = summarise(result)
    names = ("mean_batch_size", "max_batch_size", "num_preemptions", "num_prompts", "output_throughput", "mean_tpot_ms")
    mean_output = float(np.mean(result.requests["output_tokens"]))
    return {**summary["kv"], **{name: summary[name] for name in names}, "mean_output_tokens": mean_output}


def _while_waiting(result: RunResult) -> Numbers:
    """Means over the time in which requests wait, which leaves the emptying of the batch at the end out."""
    series = series_of(result)
    busy = series.waiting >= 1
    busy = busy if busy.any() else np.ones_like(busy)
    return {
        "running": float(series.running[busy].mean()),
        "tokens_per_s": float(series.output_tokens_per_s[busy].mean()),
    }
