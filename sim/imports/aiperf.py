"""The JSON exports of NVIDIA's aiperf (`profile_export_aiperf.json`) and genai-perf: per metric one object.

Their `inter_token_latency` is (E2E - TTFT) / (n - 1), one value per request: our TPOT. The gaps between parts of the
response, aiperf's `inter_chunk_latency`, are our ITL as long as each part carries one token. Field names from memory
of genai-perf 0.0.x and aiperf 0.x.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.errors import ConfigError
from sim.imports.measured import MeasuredRun, dig, finite, number
from sim.imports.source import Source

KIND = "aiperf"

_TO_MS = {"ms": 1.0, "s": 1e3, "sec": 1e3, "seconds": 1e3, "us": 1e-3, "ns": 1e-6}
_STATISTICS = {"avg": "mean", "p50": "median", "std": "std", "min": "min", "max": "max"}
_PERCENTILES = ("p90", "p95", "p99")
_LATENCIES = {
    "time_to_first_token": "ttft",
    "inter_token_latency": "tpot",
    "inter_chunk_latency": "itl",
    "request_latency": "e2el",
}
_TOTALS = {
    "request_throughput": "request_throughput",
    "output_token_throughput": "output_throughput",
    "total_token_throughput": "total_token_throughput",
    "goodput": "request_goodput",
    "request_count": "completed",
    "error_request_count": "failed",
    "total_isl": "total_input_tokens",
    "total_osl": "total_output_tokens",
    "benchmark_duration": "duration",
}
_MAPPED = "its inter_token_latency is our TPOT"


def recognises(data: Any) -> bool:
    """Metrics as objects with `avg` and `unit`, at the top or under `records`."""
    return isinstance(data, Mapping) and dig(_records(data), "request_latency", "avg") is not None


def read(source: Source) -> MeasuredRun:
    """The run of an export file. Raises ConfigError when a latency has an unknown unit."""
    source.refuse_index()
    records = _records(source.data)
    metrics = finite({ours: dig(records, theirs, "avg") for theirs, ours in _TOTALS.items()})
    if dig(records, "benchmark_duration", "unit") == "ms" and "duration" in metrics:
        metrics["duration"] /= 1e3
    for theirs, ours in _LATENCIES.items():
        metrics |= _latency(source, theirs, ours, records.get(theirs))
    return MeasuredRun(source.path.stem, KIND, source.path, metrics, _meta(source.data), (_MAPPED,))


def _records(data: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = data.get("records")
    return nested if isinstance(nested, Mapping) and "request_latency" in nested else data


def _latency(source: Source, theirs: str, ours: str, record: Any) -> dict[str, float]:
    if not isinstance(record, Mapping):
        return {}
    unit = str(record.get("unit", "ms"))
    if unit not in _TO_MS:
        raise ConfigError("unknown unit", file=source.path, key=f"{theirs}.unit", value=unit, choices=_TO_MS)
    names = _STATISTICS | {p: p for p in _PERCENTILES}
    values = finite({name: record.get(key) for key, name in names.items()})
    return {f"{name}_{ours}_ms": _TO_MS[unit] * value for name, value in values.items()}


def _meta(data: Mapping[str, Any]) -> dict[str, Any]:
    config = data.get("input_config")
    models = dig(config, "endpoint", "model_names") or dig(config, "model_names") or dig(config, "model")
    meta = {
        "model": models[0] if isinstance(models, list) and models else None,
        "request_rate": number(dig(config, "loadgen", "request_rate")),
        "max_concurrency": number(dig(config, "loadgen", "concurrency")),
        "num_prompts": number(dig(config, "loadgen", "request_count")),
    }
    return {key: value for key, value in meta.items() if value is not None}
