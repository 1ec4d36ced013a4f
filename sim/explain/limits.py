"""What bounds a run: compute, HBM, KV capacity, the queue, the interconnect or the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sim.explain.operators import Operators, totals
from sim.results import RunResult
from sim.series import row_durations_ps
from sim.setup import Setup

_OF_BOUND: Mapping[str, str] = {
    "compute": "compute", "memory": "hbm", "link": "interconnect", "host": "host", "launch": "launch",
}  # fmt: skip
_WORDS: Mapping[str, str] = {
    "compute": "compute: the tensor cores",
    "hbm": "HBM: reading weights and keys and values",
    "interconnect": "interconnect: tensors exchanged between GPUs",
    "host": "host: the engine's work between steps",
    "launch": "launch: kernels too small for the GPU",
    "kv_capacity": "KV capacity: requests wait for blocks",
    "queue": "queue: requests wait for a seat in the batch",
}
_MATERIAL = 0.2
"""Share of the time from which waiting for seats or blocks is what bounds a system, whatever its steps do meanwhile."""
_WHOLE_BATCHES = ("static", "dynamic")
"""Schedulers whose requests wait for a batch to end."""
_BUSY = 0.5


def limits_of(setup: Setup, result: RunResult, operators: Operators, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What bounds the run, in a word and a sentence, and the shares that say so.

    `compute`, `hbm`, `interconnect`, `host` and `launch` share out the busy time by what each operator waited for;
    `idle` is the rest of the run. `kv_capacity` and `queue` are shares of the busy time in which somebody waited for
    KV blocks, or for a seat. If either is at least a fifth, admission is the bound; else the largest of the five.
    """
    shares = _busy_shares(operators, summary["busy_share"] or 0.0) | _waiting_shares(setup, result)
    bound = next((name for name in ("kv_capacity", "queue") if shares[name] >= _MATERIAL), "")
    bound = bound or max(_OF_BOUND.values(), key=lambda name: shares[name])
    return {"bound_by": bound, "verdict": _verdict(bound, shares, summary), "shares": shares}


def _busy_shares(operators: Operators, busy: float) -> dict[str, float]:
    whole = totals(operators)["all"]
    shares = dict.fromkeys(_OF_BOUND.values(), 0.0)
    for bound, seconds in whole.by_bound.items():
        shares[_OF_BOUND.get(bound, "launch")] += busy * seconds / whole.seconds
    return shares | {"idle": 1.0 - busy}


def _waiting_shares(setup: Setup, result: RunResult) -> dict[str, float]:
    steps = result.steps
    if not len(steps):
        return {"kv_capacity": 0.0, "queue": 0.0}
    duration, replica = row_durations_ps(steps).astype(float), steps["replica"]
    engines = [pool.engine for pool in setup.pools for _ in range(pool.scenario.replicas.count)]
    seats = np.array([engine.max_num_seqs * engine.layout.lanes for engine in engines])[replica]
    batches = np.array([engine.scheduler["kind"] in _WHOLE_BATCHES for engine in engines])[replica]
    waits = steps["waiting"] > 0
    seated = waits & (batches | (np.maximum(steps["running"], steps["decodes"]) >= seats))
    # Somebody waits, there is a seat, and the step computes no prompt: what is missing are blocks.
    short = waits & ~seated & ((steps["kv_stranded_blocks"] > 0) | (steps["prefill_tokens"] == 0))
    total = max(float(duration.sum()), 1.0)
    return {"kv_capacity": float(duration[short].sum()) / total, "queue": float(duration[seated].sum()) / total}


def _verdict(bound: str, shares: Mapping[str, float], summary: Mapping[str, Any]) -> str:
    text = f"{_WORDS[bound]} ({shares[bound]:.0%} of the {'busy ' if bound in ('kv_capacity', 'queue') else ''}time)"
    if bound == "kv_capacity" and summary["num_preemptions"]:
        text += f", and {summary['requests_preempted']:,} requests were preempted"
    if shares["idle"] > 1 - _BUSY:
        return f"nothing: the replicas idle {shares['idle']:.0%} of the time. A step is bound by {text}"
    if summary["regime"] == "OVERLOADED":
        text += "; more arrives than is served, so that the queue grows as long as requests come"
    return text
