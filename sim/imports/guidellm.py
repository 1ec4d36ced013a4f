"""guidellm's `benchmarks.json`: several benchmarks in a file, every metric split by the requests' status.

Two of its names mean something else than ours (guidellm README, "metrics"): `time_per_output_token_ms` is E2E / n, the
first token included, so it is not our TPOT and is left out; `inter_token_latency_ms` is (last - first) / (n - 1), one
value per request, which is our TPOT. It reports no pooled gaps, so there is no ITL here. Field names of guidellm 0.2 to
0.5, from memory; unknown fields are ignored and missing ones leave the metric out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.imports.measured import MeasuredRun, dig, finite, first_number, latency_statistics, number
from sim.imports.source import Source

KIND = "guidellm"

_STATISTICS = {"mean": "mean", "median": "median", "std": "std_dev", "min": "min", "max": "max"}
_PERCENTILES = {"p90": "p90", "p95": "p95", "p99": "p99", "p99.9": "p999"}
_LATENCIES = {  # ours -> theirs, and the factor to milliseconds
    "ttft": ("time_to_first_token_ms", 1.0),
    "tpot": ("inter_token_latency_ms", 1.0),
    "e2el": ("request_latency", 1e3),
}
_MAPPED = (
    "its inter_token_latency_ms is our TPOT; its time_per_output_token_ms (E2E / n, with the first token) is not "
    "compared; only successful requests count"
)


def recognises(data: Any) -> bool:
    """A list `benchmarks` whose entries have `metrics`."""
    runs = dig(data, "benchmarks")
    return isinstance(runs, list) and bool(runs) and all(isinstance(dig(run, "metrics"), Mapping) for run in runs)


def read(source: Source) -> MeasuredRun:
    """The benchmark meant by `benchmarks.json#index`, or the only one.

    Raises ConfigError listing the benchmarks when there are several and none was chosen.
    """
    runs = source.data["benchmarks"]
    run = source.choose(runs, [_name(run) for run in runs])
    per_request = _per_request_tpot(run)
    metrics = _totals(run) | _latencies(run["metrics"]) | per_request
    incomplete = _count(run, "incomplete") or 0
    notes = [_MAPPED]
    if metrics.get("mean_tpot_ms") is not None and not per_request:
        notes.append(
            "some versions weight inter_token_latency_ms by each request's tokens; ours counts every request once"
        )
    if incomplete:
        notes.append(f"{incomplete:.0f} requests were cut off by the end of the benchmark and are not counted")
    meta = _meta(run, source.data)
    return MeasuredRun(_name(run), KIND, source.path, metrics, meta, tuple(notes))


def _strategy(run: Mapping[str, Any]) -> Mapping[str, Any]:
    for place in ("config", "args"):
        found = dig(run, place, "strategy")
        if isinstance(found, Mapping):
            return found
    return {}


def _name(run: Mapping[str, Any]) -> str:
    strategy = _strategy(run)
    name = str(strategy.get("type_") or "benchmark")
    rate, streams = number(strategy.get("rate")), number(strategy.get("streams"))
    return f"{name} {rate:g} req/s" if rate is not None else f"{name} x{streams:g}" if streams is not None else name


def _count(run: Mapping[str, Any], status: str) -> float | None:
    return first_number(
        dig(run, "metrics", "request_totals", status),
        dig(run, "run_stats", "requests_made", status),
        dig(run, "request_totals", status),
    )


def _successful(metrics: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The successful part of a metric; a version that does not split by status has only that."""
    whole = metrics.get(name)
    part = dig(whole, "successful") if isinstance(whole, Mapping) and "successful" in whole else whole
    return part if isinstance(part, Mapping) else {}


def _totals(run: Mapping[str, Any]) -> dict[str, float]:
    metrics = run["metrics"]
    start, end = (first_number(run.get(k), dig(run, "run_stats", k)) for k in ("start_time", "end_time"))
    elapsed = end - start if start is not None and end is not None else None
    return finite(
        {
            "duration": first_number(run.get("duration"), elapsed),
            "completed": first_number(_count(run, "successful"), _successful(metrics, "request_latency").get("count")),
            "failed": _count(run, "errored"),
            "total_input_tokens": _sum(_successful(metrics, "prompt_token_count")),
            "total_output_tokens": _sum(_successful(metrics, "output_token_count")),
            "request_throughput": _successful(metrics, "requests_per_second").get("mean"),
            "output_throughput": _successful(metrics, "output_tokens_per_second").get("mean"),
            "total_token_throughput": _successful(metrics, "tokens_per_second").get("mean"),
            "request_goodput": _successful(metrics, "request_goodput").get("mean"),
        }
    )


def _sum(statistics: Mapping[str, Any]) -> float | None:
    mean, count = number(statistics.get("mean")), number(statistics.get("count"))
    product = mean * count if mean is not None and count is not None else None
    return first_number(statistics.get("total_sum"), statistics.get("sum"), product)


def _latencies(metrics: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for ours, (theirs, to_ms) in _LATENCIES.items():
        statistics = _successful(metrics, theirs)
        values = {name: statistics.get(key) for name, key in _STATISTICS.items()}
        values |= {name: dig(statistics, "percentiles", key) for name, key in _PERCENTILES.items()}
        values["median"] = first_number(values["median"], dig(statistics, "percentiles", "p50"))
        found |= {f"{name}_{ours}_ms": to_ms * value for name, value in finite(values).items()}
    return found


def _per_request_tpot(run: Mapping[str, Any]) -> dict[str, float]:
    """TPOT from the listed requests, when all of them are listed (guidellm can sample what it writes)."""
    rows = dig(run, "requests", "successful")
    if not isinstance(rows, list) or not rows or len(rows) != _count(run, "successful"):
        return {}
    values = [dig(row, "inter_token_latency_ms") for row in rows if (number(dig(row, "output_tokens")) or 0) > 1]
    numbers = [kept for value in values if (kept := number(value)) is not None]
    return latency_statistics("tpot", numbers) if len(numbers) == len(values) else {}


def _meta(run: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    strategy = _strategy(run)
    models = (
        dig(run, "config", "backend", "model"),
        dig(run, "worker", "backend_model"),
        dig(document, "args", "model"),
        dig(document, "metadata", "model"),
    )
    meta = {
        "model": next((model for model in models if isinstance(model, str)), None),
        "request_rate": number(strategy.get("rate")),
        "max_concurrency": number(strategy.get("streams")),
        "num_prompts": _count(run, "total"),
    }
    return {key: value for key, value in meta.items() if value is not None}
