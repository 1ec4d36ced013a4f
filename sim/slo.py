"""Service-level objectives: keys such as `ttft_p99_ms: 500`, what each asks for, and whether a run meets it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Protocol

from sim.errors import ConfigError
from sim.units import SECONDS, quantity

METRICS = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2e": "e2el", "e2el": "e2el", "queue": "queue_time"}
"""Word in the key -> metric of the summary."""
_OF_ONE_REQUEST = ("ttft", "tpot", "e2el")
_KEY = re.compile(rf"^({'|'.join(METRICS)})(?:_(p\d+(?:\.\d+)?|mean|median))?_(ms|s)$")


class Statistics(Protocol):
    """A sample in seconds that can be asked for a mean and percentiles."""

    def mean(self) -> float:
        """In seconds; NaN of nothing."""

    def percentile(self, percent: float) -> float:
        """In seconds; NaN of nothing."""


def per_request_limits_ms(slo: Mapping[str, float]) -> dict[str, float]:
    """What a single request must meet to count as goodput: the limits on TTFT, TPOT and E2E latency.

    The percentile of a key does not matter here; of several limits on one metric the loosest holds, as it belongs to
    the tail. Limits on ITL or queue time are not of one request's goodput (vLLM's goodput knows these three only).
    """
    limits: dict[str, float] = {}
    for key, value in slo.items():
        metric, _, unit_ms = _parse(key)
        if metric in _OF_ONE_REQUEST:
            limits[metric] = max(value * unit_ms, limits.get(metric, 0.0))
    return limits


def verdicts(slo: Mapping[str, float], samples: Mapping[str, Statistics]) -> list[dict[str, Any]]:
    """For each objective the limit, what was observed, and whether it is met; nothing observed is not met.

    A key without a statistic (`ttft_ms`) means p99. Raises ConfigError for a key that cannot be read.
    """
    lines = []
    for key, value in sorted(slo.items()):
        metric, statistic, unit_ms = _parse(key)
        observed_ms = _statistic(samples[metric], statistic) * 1e3
        limit_ms = value * unit_ms
        lines.append(
            {
                "key": key,
                "metric": metric,
                "statistic": statistic,
                "limit_ms": limit_ms,
                "observed_ms": observed_ms,
                "met": bool(math.isfinite(observed_ms) and observed_ms <= limit_ms),
            }
        )
    return lines


def check_objective(key: str) -> str:
    """The key of an objective, unchanged. Raises ValueError with the nearest valid keys when it cannot be read."""
    try:
        _parse(key)
    except ConfigError as error:
        raise ValueError(str(error).removeprefix(f"{error.key}: ")) from None
    return key


def parse_objectives(text: str) -> dict[str, float]:
    """`ttft_p99=500ms,tpot_p99=50ms` as the mapping that a scenario has: `{ttft_p99_ms: 500, tpot_p99_ms: 50}`.

    `ttft_p99_ms=500` is understood as well. Raises ConfigError.
    """
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (word.strip() for word in part.partition("="))
        if _KEY.match(name):  # its unit is in the name
            key, scale = name, 1.0
        else:
            key, scale = f"{name}_ms", 1e3
            _parse(key)
        try:
            limit = quantity(value, SECONDS) * scale
        except ValueError as error:
            raise ConfigError(str(error), key=f"slo.{key}", value=value) from None
        if not 0 < limit < math.inf:
            raise ConfigError("must be positive", key=f"slo.{key}", value=value)
        found[key] = float(f"{limit:.12g}")
    if not found:
        raise ConfigError("names no objective, such as ttft_p99=500ms", key="slo", value=text)
    return found


def _parse(key: str) -> tuple[str, str, float]:
    match = _KEY.match(key)
    if match is None:
        known = [f"{word}_{statistic}_ms" for word in METRICS for statistic in ("p99", "p95", "p90", "p50", "mean")]
        raise ConfigError("is not an objective", key=f"slo.{key}", choices=known)
    return METRICS[match[1]], match[2] or "p99", 1.0 if match[3] == "ms" else 1e3


def _statistic(sample: Statistics, statistic: str) -> float:
    if statistic == "mean":
        return sample.mean()
    return sample.percentile(50.0 if statistic == "median" else float(statistic[1:]))
