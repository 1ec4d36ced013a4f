"""Tables to numbers: what `vllm bench serve` reports, under its names, and what a simulator knows beyond it.

Definitions follow vLLM (vllm/benchmarks/serve.py, main of 2026). Beware of the same words elsewhere: NVIDIA's "inter
token latency" (aiperf) is our TPOT, and guidellm's "time per output token" is end-to-end latency over output tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sim.client import client_figures, client_of, client_samples, seen_by_clients
from sim.fairness import fairness
from sim.guesses import guess_statistics
from sim.latencies import LatencySamples, Sample, e2e_s, tpot_s, ttft_s
from sim.regime import judge
from sim.request import Reason, State
from sim.results import Column, RunResult, Table
from sim.series import (
    DURATION_COLUMNS,
    KVLayout,
    Series,
    blocks_of_replicas,
    kv_growth,
    row_durations_ps,
    run_window_ps,
    sequences_per_step,
    series_of,
)  # fmt: skip
from sim.slo import per_request_limits_ms, verdicts
from sim.token_times import tokens_per_bin
from sim.units import PS_PER_S

PERCENTILES = (90, 95, 99)
_MS = 1e3
_SIGNIFICANT_DIGITS = 12


def summarise(
    result: RunResult, samples: Mapping[str, Sample] | None = None, series: Series | None = None
) -> dict[str, Any]:
    """Every number of a run as one JSON-ready mapping; equal runs give equal mappings.

    `ttft`, `tpot`, `itl`, `e2el` and the queue, prefill, decode and preempted times carry `mean_`, `median_`, `std_`,
    `p90_`, `p95_` and `p99_` in milliseconds, over completed requests; what nothing was observed of is null.
    `num_prompts` = `completed` + `failed` + `unfinished`. `duration` runs from the first arrival to the last
    request's end. `max_concurrent_requests` is the exact peak, where vLLM counts requests touching one second.
    With a `client` in the scenario also `client_ttft`, `client_tpot` and `client_e2el`, and `client` (messages, round
    trips and bytes per request). `samples` and `series`, when the caller has them already, save working them out again.
    """
    requests = result.requests
    completed = requests.where(requests["state"] == State.COMPLETED)
    samples = LatencySamples(result) if samples is None else samples
    summary: dict[str, Any] = {**_counts(requests), **_throughput(result, completed)}
    for name, sample in samples.items():
        summary |= _statistics(name, sample)
    summary |= _client(result, completed)
    queries = (result.facts.get("workload") or {}).get("queries")
    summary |= {} if queries is None else {"queries": queries}
    summary["num_preemptions"] = int(requests["preemptions"].sum())
    summary["requests_preempted"] = int(np.count_nonzero(requests["preemptions"]))
    summary |= fairness(requests, result.facts)
    summary |= _slo(result, completed, summary, samples)
    summary["prefix_cache"] = _prefix_cache(result, completed)
    summary |= _steps(result, summary["duration"])
    summary |= guess_statistics(result)
    summary |= {name: result.facts.get(name) for name in ("swap", "handoff")}
    summary["kv"] = _kv(result, series_of(result) if series is None else series)
    verdict = judge(requests, arrival_kind(result.manifest))
    summary |= {
        "regime": verdict.regime.value,
        "regime_reason": verdict.reason,
        "steady_state": verdict.steady_state,
        "queue_share_of_ttft": verdict.queue_share_of_ttft,
        "trust": result.facts.get("trust"),
        "intervals": result.facts.get("intervals"),
        "interrupted": bool(result.manifest.get("interrupted", False)),
    }
    stable: dict[str, Any] = _json_stable(summary)
    return stable


def _client(result: RunResult, completed: Table) -> dict[str, Any]:
    """What clients saw, where the scenario says how they are connected; else nothing."""
    spec = client_of(result)
    if spec is None:
        return {}
    seen = seen_by_clients(spec, completed)
    statistics: dict[str, Any] = {"client": client_figures(spec, seen)}
    for name, sample in client_samples(spec, seen).items():
        statistics |= _statistics(name, sample)
    return statistics


def arrival_kind(manifest: Mapping[str, Any]) -> str:
    """The kind of the workload's arrivals ("poisson", "closed_loop", ...), empty when the manifest does not say."""
    for part in ("facts", "scenario"):
        workload = (manifest.get(part) or {}).get("workload")
        arrival = workload.get("arrival") if isinstance(workload, Mapping) else None
        if isinstance(arrival, Mapping) and arrival.get("kind"):
            return str(arrival["kind"])
    return ""


def conforming(completed: Table, limits_ms: Mapping[str, float]) -> Column:
    """Which completed requests meet every limit (`ttft`, `tpot`, `e2el`); one-token requests pass any TPOT."""
    observed = {"ttft": ttft_s, "tpot": tpot_s, "e2el": e2e_s}
    passes = np.ones(len(completed), dtype=bool)
    for metric, limit in limits_ms.items():
        passes &= observed[metric](completed) * _MS <= limit
    return passes


def _statistics(name: str, sample: Sample) -> dict[str, float]:
    return {
        f"mean_{name}_ms": sample.mean() * _MS,
        f"median_{name}_ms": sample.percentile(50) * _MS,
        f"std_{name}_ms": sample.std() * _MS,
        **{f"p{p}_{name}_ms": sample.percentile(p) * _MS for p in PERCENTILES},
    }


def _counts(requests: Table) -> dict[str, Any]:
    state = requests["state"]
    failed = (state == State.ABORTED) | (state == State.REJECTED)
    completed = int(np.count_nonzero(state == State.COMPLETED))
    reasons, counts = np.unique(requests["reason"][failed], return_counts=True)
    return {
        "num_prompts": len(requests),
        "completed": completed,
        "failed": int(np.count_nonzero(failed)),
        "failures": {Reason(r).name.lower(): int(n) for r, n in zip(reasons, counts, strict=True)},
        "aborted": int(np.count_nonzero(state == State.ABORTED)),
        "rejected": int(np.count_nonzero(state == State.REJECTED)),
        "unfinished": len(requests) - completed - int(np.count_nonzero(failed)),
    }


def _throughput(result: RunResult, completed: Table) -> dict[str, Any]:
    start, end = run_window_ps(result.requests)
    duration = (end - start) / PS_PER_S
    received, generated = int(completed["prompt_tokens"].sum()), int(completed["output_tokens"].sum())
    seconds = (end - start) // PS_PER_S + 1
    peak = int(tokens_per_bin(result, start, PS_PER_S, int(seconds)).max())
    output_throughput = _per(generated, duration)
    gpus, price = result.facts.get("gpus"), result.facts.get("price_per_gpu_hour_usd")
    usd_per_s = gpus * price / 3600 if gpus and price else math.nan
    return {
        "duration": duration,
        "total_input_tokens": received,
        "total_output_tokens": generated,
        "cached_input_tokens": int(completed["cached_tokens"].sum()),
        "output_tokens_of_failed": int(result.requests["output_tokens"].sum()) - generated,
        "request_throughput": _per(len(completed), duration),
        "output_throughput": output_throughput,
        "total_token_throughput": _per(received + generated, duration),
        "output_throughput_per_gpu": _per(output_throughput, gpus or 0),
        "max_output_tokens_per_s": peak,
        "max_concurrent_requests": _peak_in_flight(result.requests),
        "gpus": gpus,
        "usd_per_million_output_tokens": _per(usd_per_s * 1e6, output_throughput),
    }


def _peak_in_flight(requests: Table) -> int:
    if not len(requests):
        return 0
    arrivals, ends = np.sort(requests["arrival_ps"]), np.sort(requests["finish_ps"])
    # At one instant those who leave go first.
    gone = np.searchsorted(ends, arrivals, side="right")
    return int(np.max(np.arange(1, len(arrivals) + 1) - gone, initial=0))


def _slo(
    result: RunResult, completed: Table, summary: Mapping[str, Any], samples: Mapping[str, Sample]
) -> dict[str, Any]:
    """Goodput divides by the whole run. A failed request does not conform; one cut off by the end is not counted."""
    scenario = result.manifest.get("scenario") or {}
    slo = {key: value for key, value in (scenario.get("slo") or {}).items() if value is not None}
    if not slo:
        return {"request_goodput": None, "slo_attainment": None, "slo": []}
    good = int(np.count_nonzero(conforming(completed, per_request_limits_ms(slo))))
    return {
        "request_goodput": _per(good, summary["duration"]),
        "slo_attainment": _per(good, summary["completed"] + summary["failed"]),
        "slo": verdicts(slo, samples),
    }


def _prefix_cache(result: RunResult, completed: Table) -> dict[str, Any]:
    """Shares of the prompts' tokens, and of their full blocks, that were found at the first admission."""
    block = int(result.facts.get("block_size") or 1)
    prompts, cached = completed["prompt_tokens"], completed["cached_tokens"]
    tiers: list[dict[str, Any]] = result.facts.get("tiers") or []
    return {
        "token_hit_ratio": _per(int(cached.sum()), int(prompts.sum())),
        "block_hit_ratio": _per(int((cached // block).sum()), int((prompts // block).sum())),
        "tiers": [{**tier, "share_of_prompts": _per(tier["loaded_tokens"], int(prompts.sum()))} for tier in tiers],
    }


def _steps(result: RunResult, duration_s: float) -> dict[str, Any]:
    end_ps = run_window_ps(result.requests)[1]
    count = largest = 0
    busy_ps, sequence_steps = np.zeros(_replicas(result)), 0.0
    for steps in result.steps.batches(("replica", *DURATION_COLUMNS, "decodes", "prefill_sequences")):
        # With asynchronous scheduling a last step runs on after the last request has ended.
        durations, sequences = row_durations_ps(steps), sequences_per_step(steps)
        beyond = np.maximum(steps["start_ps"] + durations - end_ps, 0)
        busy_ps += np.bincount(steps["replica"], durations - beyond, len(busy_ps))
        count += int(steps["steps"].sum())
        sequence_steps += float(np.sum(steps["steps"] * sequences, dtype=np.float64))
        largest = max(largest, int(sequences.max()))
    return {
        "num_steps": count,
        "mean_batch_size": _per(sequence_steps, count),
        "max_batch_size": largest,
        "busy_share": _per(float(busy_ps.sum()) / PS_PER_S, len(busy_ps) * duration_s),
        "pools": [
            {**pool, "busy_share": _per(float(busy_ps[numbers].sum()) / PS_PER_S, pool["replicas"] * duration_s)}
            for pool, numbers in _pools(result)
        ],
    }


def _pools(result: RunResult) -> Iterator[tuple[Mapping[str, Any], slice]]:
    """The pools of disaggregated serving, and the numbers of their replicas."""
    first = 0
    for pool in result.facts.get("pools") or ():
        yield pool, slice(first, first + int(pool["replicas"]))
        first += int(pool["replicas"])


def _replicas(result: RunResult) -> int:
    return int(result.facts.get("replicas") or max(1, len(np.unique(result.steps["replica"]))))


def _kv(result: RunResult, series: Series) -> dict[str, Any]:
    """Blocks over the whole run (idle time included), as shares of all and of those in use.

    In use: filled with tokens, reserved for tokens that still come, and never filled (internal fragmentation). Not in
    use: stranded (refused to the head of the queue) and free. The words are those of Kwon et al. (SOSP 2023, figure 2).
    `shared_fraction`: blocks saved because sequences and requests hold the same ones, of those that would be in use if
    nobody did (their figure 15).
    """
    facts = result.facts
    capacity = np.array(blocks_of_replicas(result))
    blocks, cache = int(capacity.sum()), KVLayout.of(result)
    batches = result.steps.batches(("kv_blocks", "kv_tokens", "running", "decodes", "steps", "replica"))
    peaks = (np.max((b["kv_blocks"] + kv_growth(b, cache)[1]) / capacity[b["replica"]]) for b in batches)
    peak = max(map(float, peaks), default=0.0) if blocks else math.nan
    levels = (
        series.kv_blocks, series.kv_blocks_filled, series.kv_blocks_unused, series.kv_blocks_stranded,
        series.kv_blocks_shared,
    )  # fmt: skip
    used, filled, unused, stranded, shared = (float(np.mean(x)) * _covered(series, result) for x in levels)
    reserved = used - filled - unused
    return {
        "num_blocks": blocks,
        "block_size": facts.get("block_size"),
        "mean_used_share": _per(used, blocks),
        "peak_used_share": min(peak, 1.0),
        "mean_filled_share": _per(filled, blocks),
        "mean_reserved_share": _per(reserved, blocks),
        "mean_internal_fragmentation_share": _per(unused, blocks),
        "mean_stranded_share": _per(stranded, blocks),
        "mean_free_share": _per(blocks - used - stranded, blocks),
        "mean_filled_share_of_used": _per(filled, used),
        "mean_reserved_share_of_used": _per(reserved, used),
        "mean_internal_fragmentation_share_of_used": _per(unused, used),
        "shared_fraction": _per(shared, used + shared),
    }


def _covered(series: Series, result: RunResult) -> float:
    """The grid is a little longer than the run, because its intervals are whole picoseconds."""
    start, end = run_window_ps(result.requests)
    return series.grid.width_ps * series.grid.bins / max(end - start, 1)


def _per(amount: float, of: float) -> float:
    # What is left of a sum of means may be a rounding error, which depends on how the tables were cut.
    return round(amount / of, _SIGNIFICANT_DIGITS) + 0.0 if of else math.nan


def _json_stable(value: Any) -> Any:
    """NaN becomes null; floats keep 12 digits, so that summation order on another CPU does not show."""
    if isinstance(value, Mapping):
        return {key: _json_stable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_stable(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{_SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None
    return value
