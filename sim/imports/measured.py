"""A finished run of any tool under one set of names: those of `vllm bench serve`, latencies in milliseconds.

    ttft    send -> first token
    tpot    (e2e - ttft) / (output tokens - 1), one value per request; a request of one token has none
    itl     each gap between consecutive tokens, pooled over all requests
    e2el    send -> last token

Other tools use the same words for other things (NVIDIA's "inter-token latency" is our TPOT, guidellm's "time per output
token" is E2E / n); every reader in this folder maps by definition, not by word, and says so in `MeasuredRun.notes`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

LATENCIES = ("ttft", "tpot", "itl", "e2el")
TOTALS = (
    "duration",
    "completed",
    "failed",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "request_goodput",
    "output_throughput",
    "total_token_throughput",
    "max_output_tokens_per_s",
)
_STATISTICS = ("mean", "median", "std", "min", "max")
_LATENCY_KEY = re.compile(rf"^({'|'.join(_STATISTICS)}|p\d+(?:\.\d+)?)_([a-z0-9_]+)_ms$")
_PERCENTILES = (90, 95, 99)


@dataclass(frozen=True)
class MeasuredRun:
    """What one benchmark run reports, whichever tool wrote it.

    `metrics` holds only finite numbers under the canonical keys; what a tool does not report is absent, never 0.
    `meta` holds what is known of the set-up: `model`, `request_rate` (1/s, may be inf), `max_concurrency`,
    `num_prompts`. `notes` say how the tool's own definitions were mapped and what was computed here.
    """

    label: str
    kind: str
    path: Path
    metrics: Mapping[str, float]
    meta: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def number(value: Any) -> float | None:
    """A finite number, or None for anything else (null, NaN, "inf", true, text)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond the range of a float
        return None


def finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The entries that hold a finite number."""
    return {key: kept for key, value in metrics.items() if (kept := number(value)) is not None}


def dig(data: Any, *keys: str) -> Any:
    """`data[k1][k2]...`, or None where the path ends early: results of other tools differ between versions."""
    for key in keys:
        if not isinstance(data, Mapping):
            return None
        data = data.get(key)
    return data


def first_number(*values: Any) -> float | None:
    """The first of `values` that is a finite number."""
    return next((kept for value in values if (kept := number(value)) is not None), None)


def is_canonical(key: str) -> bool:
    """Whether `key` is a result of `vllm bench serve` (as opposed to a setting it repeats)."""
    return key in TOTALS or _LATENCY_KEY.match(key) is not None


def latency_statistics(name: str, values_ms: Sequence[float]) -> dict[str, float]:
    """Mean, median, standard deviation, p90, p95 and p99 as `vllm bench serve` computes them.

    Percentiles interpolate linearly and the deviation is the population's: numpy's defaults (vLLM
    `benchmarks/serve.py`). Empty without values.
    """
    if len(values_ms) == 0:
        return {}
    values = np.asarray(values_ms, dtype=float)
    with np.errstate(all="ignore"):  # what overflows is dropped below
        statistics = {"mean": values.mean(), "median": np.median(values), "std": values.std()}
        statistics |= {f"p{p}": np.percentile(values, p) for p in _PERCENTILES}
    return finite({f"{statistic}_{name}_ms": float(value) for statistic, value in statistics.items()})


def sort_key(key: str) -> tuple[int, int, float, str]:
    """Totals first, then TTFT, TPOT, ITL, E2EL, then everything else; within a latency mean, median, std, p90, p99."""
    if key in TOTALS:
        return (0, TOTALS.index(key), 0.0, key)
    match = _LATENCY_KEY.match(key)
    if not match:
        return (3, 0, 0.0, key)
    statistic, latency = match[1], match[2]
    rank = float(_STATISTICS.index(statistic)) if statistic in _STATISTICS else 10.0 + float(statistic[1:])
    return (1, LATENCIES.index(latency), rank, key) if latency in LATENCIES else (2, 0, rank, latency)
