"""One traffic, every scheduler: `python reports/scheduler_ladder.py` writes scheduler-ladder.md and its figure.

Two processes; every run is a few hundred requests. All numbers of the page come from the runs of this script.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from ladder_page import Study, write

from sim.fairness import jain_index
from sim.latencies import e2e_s
from sim.metrics import summarise
from sim.presets import load_preset
from sim.request import State
from sim.results import RunResult
from sim.run import simulate
from sim.scenario import load_scenario
from sim.series import row_durations_ps

REQUESTS = 500
RATES = (0.5, 2.0, 8.0, 14.0, 20.0, 26.0)
COMMON_RATE = 8.0
OVERLOAD_RATE = 40.0
OVERLOAD_SEATS = 64
SLO = {"ttft_p99_ms": 1000, "tpot_p99_ms": 50}
ATTAINMENT = 0.9
NORMALISED_LIMIT_MS = 50.0
CONTEXT = 16_384
FINEST = 1.05
"""Ratio of neighbouring rates at which the search for a capacity stops."""
SLOWEST, FASTEST = 0.05, 60.0
HOST = load_preset("vllm-v1").host.model_dump()
"""For every rung but the last."""
HOST_IN_LINE = load_preset("vllm-0.9").host.model_dump()
"""Fitted where a step is planned only after the one before it has ended."""

BASE: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B", "hardware": "h100-sxm", "workload": "chat", "slo": SLO, "seed": 1,
    "engine": {"preset": "vllm-v1", "max_model_len": CONTEXT, "max_num_seqs": 256, "async_scheduling": False,
               "kv_cache": {"enable_prefix_caching": False}, "host": HOST},
}  # fmt: skip
RESERVED = {"kind": "max-length", "reserve": "context", "placement": "buddy"}
DECODE_FIRST = {"kind": "continuous", "priority": "decode", "mixed": False}
ORCA = {"kind": "continuous", "priority": "decode", "mixed": True}
PREFILL_FIRST = {"kind": "continuous", "priority": "prefill", "mixed": False}


@dataclass(frozen=True)
class Rung:
    """One way of serving: what differs from the base scenario."""

    name: str
    scheduler: str | dict[str, Any]
    reserved: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def overrides(self) -> dict[str, Any]:
        """Dotted keys, as after `--set`."""
        memory = {"engine.kv_cache.allocator": RESERVED} if self.reserved else {}
        return {"engine.scheduler": self.scheduler, **memory, **self.extra}


def chunked(budget: int, **extra: Any) -> dict[str, Any]:
    """Overrides of a rung that splits prompts."""
    return {"engine.max_num_batched_tokens": budget, **{f"engine.{key}": value for key, value in extra.items()}}


RUNGS = (
    Rung("static, reserved", "static", True),
    Rung("dynamic 50 ms, reserved", {"kind": "dynamic", "max_wait_ms": 50}, True),
    Rung("decode-first, reserved", DECODE_FIRST, True),
    Rung("prefill-first, reserved", PREFILL_FIRST, True),
    Rung("Orca, reserved", ORCA, True),
    Rung("decode-first, paged", DECODE_FIRST),
    Rung("prefill-first, paged (vLLM V0)", PREFILL_FIRST),
    Rung("Orca, paged", ORCA),
    Rung("SGLang 2048", "sglang", extra=chunked(2048)),
    Rung("chunked 2048 (vLLM V1)", "chunked", extra=chunked(2048)),
    Rung("chunked 512 (Sarathi)", "chunked", extra=chunked(512)),
    Rung("chunked 2048, async", "chunked", extra=chunked(2048, async_scheduling=True)),
    Rung("chunked 2048, host in line", "chunked", extra=chunked(2048, host=HOST_IN_LINE)),
)
ORDERS = ("fcfs", "shortest_prompt", "shortest_predicted", "priority", "fair_share")


def run(overrides: dict[str, Any], rate: float) -> tuple[RunResult, dict[str, Any]]:
    """The chat workload at a rate, with the same requests in the same order at every rate."""
    traffic = {"workload.num_requests": REQUESTS, "workload.arrival": {"kind": "poisson", "rate": rate}}
    result = simulate(load_scenario(BASE, {**traffic, **overrides}))
    return result, summarise(result)


def measured(rung: Rung, rate: float) -> dict[str, Any]:
    """The summary of one run, and what became of its rows and steps."""
    result, summary = run(rung.overrides(), rate)
    steps, requests = result.steps, result.requests
    done = requests.where(requests["state"] == State.COMPLETED)
    rows, computed = int((steps["steps"] * steps["decodes"]).sum()), int(steps["prefill_tokens"].sum())
    useful = int((done["output_tokens"] - 1).sum())
    durations = row_durations_ps(steps)
    apart = (steps["prefill_tokens"] > 0) & (steps["decodes"] == 0) & (steps["running"] > steps["prefill_sequences"])
    return summary | {
        "rate": rate,
        "wasted_rows": 1 - useful / rows,
        "padded": 1 - int(done["prompt_tokens"].sum()) / computed,
        "decodes_stopped": float(durations[apart].sum() / durations.sum()),
        "median_normalised_ms": float(np.median(e2e_s(done) * 1e3 / done["output_tokens"])),
        "mean_decodes": rows / max(1, int(steps["steps"][steps["decodes"] > 0].sum())),
        "kv_tokens": result.facts["num_gpu_blocks"] * result.facts["block_size"],
        "notes": list(result.facts["notes"]),
    }


def highest_rate(at: Callable[[float], dict[str, Any]], met: Callable[[dict[str, Any]], bool]) -> float:
    """Requests per second up to which a condition holds, by bisection; NaN if it does not at the slowest rate tried."""
    if not met(at(SLOWEST)):
        return math.nan
    low, high = SLOWEST, FASTEST
    while high / low > FINEST:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if met(at(middle)) else (low, middle)
    return low


def capacities(rung: Rung, gap_limit_ms: float) -> dict[str, float]:
    """The highest rates by the measures of three papers: objectives met, normalised latency, gaps between tokens."""
    at = cache(partial(measured, rung))  # the three searches begin with the same rates
    return {
        "slo": highest_rate(at, lambda found: found["slo_attainment"] >= ATTAINMENT),
        "normalised": highest_rate(at, lambda found: found["median_normalised_ms"] <= NORMALISED_LIMIT_MS),
        "gaps": highest_rate(
            at, lambda found: found["p99_itl_ms"] <= gap_limit_ms and found["median_queue_time_ms"] <= 2000
        ),
    }


def gap_limit_ms() -> float:
    """Sarathi-Serve's strict objective: 5 times a decode step of 32 sequences with 4k tokens each."""
    traffic = {"num_requests": 32, "arrival": {"kind": "all_at_once"}, "input_tokens": 4096, "output_tokens": 64}
    summary = summarise(simulate(load_scenario({**BASE, "workload": traffic})))
    return 5 * float(summary["median_itl_ms"])


def ordered(order: str) -> dict[str, Any]:
    """Two tenants, one with three times the requests of the other, and more than the GPU can serve of either."""
    tenants = [{"name": "large", "share": 3.0, "priority": 1}, {"name": "small", "share": 1.0, "priority": 0}]
    overrides = {"workload.tenants": tenants, "engine.scheduler": "chunked", "engine.scheduling_policy": order,
                 "engine.max_num_batched_tokens": 2048, "engine.max_num_seqs": OVERLOAD_SEATS}  # fmt: skip
    result, summary = run(overrides, OVERLOAD_RATE)
    requests = result.requests
    begun = (requests["scheduled_ps"] >= 0) & (requests["scheduled_ps"] <= requests["arrival_ps"].max())
    service = requests["prompt_tokens"].astype(np.int64) + 2 * requests["output_tokens"]
    shares = [int(service[begun & (requests["tenant"] == number)].sum()) for number in range(2)]
    return summary | {"order": order, "jain": jain_index(shares), "small_share": shares[1] / sum(shares)}


def study() -> Study:
    """All runs, two at a time."""
    limit = gap_limit_ms()
    curves = _parallel("curves", (delayed(measured)(rung, rate) for rung in RUNGS for rate in RATES))
    found = _parallel("capacities", (delayed(capacities)(rung, limit) for rung in RUNGS))
    orders = _parallel("queue orders", (delayed(ordered)(order) for order in ORDERS))
    size = len(RATES)
    return Study(
        names=[rung.name for rung in RUNGS],
        curves=[curves[i * size : (i + 1) * size] for i in range(len(RUNGS))],
        capacities=found,
        orders=orders,
        setting={
            "requests": REQUESTS, "rates": RATES, "common": COMMON_RATE, "finest": FINEST, "context": CONTEXT,
            "overload": OVERLOAD_RATE, "overload_seats": OVERLOAD_SEATS, "slo": SLO, "attainment": ATTAINMENT,
            "normalised_ms": NORMALISED_LIMIT_MS, "gap_ms": limit, "host": HOST, "host_in_line": HOST_IN_LINE,
            "model": BASE["model"], "hardware": BASE["hardware"],
        },
    )  # fmt: skip


def _parallel(what: str, jobs: Iterable[Any]) -> list[Any]:
    jobs, results = list(jobs), []
    for result in Parallel(n_jobs=2, return_as="generator")(jobs):
        results.append(result)
        print(f"\r{what}: {len(results)} of {len(jobs)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return results


if __name__ == "__main__":
    write(study(), Path(__file__).parent)
