"""What a trace looks like: rate, burstiness, lengths, and how much of its prompts a prefix cache could serve."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.workloads.trace_table import BY_THE_CLOCK, Ints, Trace
from sim.workloads.traces import sha256


def summarise(trace: Trace) -> dict[str, Any]:
    """Format, rows, span and rate, coefficient of variation of the gaps, percentiles of lengths; ready for JSON."""
    return {
        "file": trace.path.name,
        "sha256": sha256(trace.path),
        "format": trace.format,
        "rows_read": trace.rows_read,
        "requests": len(trace),
        "waiting_for_another": 0 if trace.delay_ps is None else int((trace.delay_ps != BY_THE_CLOCK).sum()),
        "span_s": trace.span_s if trace.timed else None,
        "mean_rate": trace.mean_rate,
        "arrival_cv": arrival_cv(trace),
        "input_tokens": _lengths(trace.input_tokens),
        "output_tokens": _lengths(trace.output_tokens),
        "prefix_block_tokens": trace.prefix_block_tokens or None,
        "prefix_hit_bound": prefix_hit_bound(trace),
        "notes": list(trace.remarks),
    }


def arrival_cv(trace: Trace) -> float | None:
    """Standard deviation over mean of the time between arrivals: 1 for Poisson, more for bursts."""
    alone = trace if trace.delay_ps is None else trace.where(trace.delay_ps == BY_THE_CLOCK)
    gaps = np.diff(alone.arrival_ps)
    return float(gaps.std() / gaps.mean()) if trace.timed and len(gaps) and gaps.any() else None


def prefix_hit_bound(trace: Trace) -> float | None:
    """Share of prompt blocks that begin like an earlier prompt; None without hashes.

    A cache of infinite size that knows a prompt the moment it arrives serves this share; a real one serves less.
    """
    if trace.prefix_hashes is None:
        return None
    seen: set[int] = set()
    hits = total = 0
    for hashes in trace.prefix_hashes:
        hits += next((i for i, h in enumerate(hashes) if h not in seen), len(hashes))
        total += len(hashes)
        seen.update(hashes)
    return hits / total if total else None


def _lengths(tokens: Ints) -> dict[str, float]:
    p50, p90, p99 = np.percentile(tokens, [50, 90, 99])
    return {"mean": float(tokens.mean()), "p50": float(p50), "p90": float(p90), "p99": float(p99),
            "max": float(tokens.max())}  # fmt: skip
