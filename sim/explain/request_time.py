"""Where the latency of single requests went: queue, host, prefill, decode, preempted, transfer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sim.explain.operators import pool_steps
from sim.latencies import e2e_s, ttft_s
from sim.request import Request, State
from sim.results import Column, RunResult, Table
from sim.series import Floats, row_durations_ps
from sim.setup import Setup
from sim.token_times import rows_by_replica
from sim.units import PS_PER_S

PERCENTS = (50, 99)
PARTS = ("queue", "host", "prefill", "decode", "preempted", "transfer")


@dataclass(frozen=True)
class Split:
    """One request's latency in seconds, arrival to last token; the parts add up to it.

    `queue`: waiting for admission. `host`: the API server's work on the request, and the engine's work between steps
    while it was in the batch. `prefill` and `decode`: the GPU, until the first token and after it, work for others in
    the same steps included. `preempted`: between losing its seat and getting one again. `transfer`: disaggregated
    serving, from the first token until the decode replica goes on, less one step.
    """

    queue: float
    host: float
    prefill: float
    decode: float
    preempted: float
    transfer: float


def latency_rows(setup: Setup, result: RunResult) -> list[dict[str, Any]]:
    """The requests at the 50th and 99th percentile (nearest rank) of TTFT and of E2E latency, each split up.

    Of TTFT only what came before the first token counts.
    """
    completed = result.requests.where(result.requests["state"] == State.COMPLETED)
    if not len(completed):
        return []
    clock = _HostClock(setup, result)
    rows = []
    for metric, values in (("ttft", ttft_s(completed)), ("e2el", e2e_s(completed))):
        order = np.argsort(values, kind="stable")
        for percent in PERCENTS:
            row = int(order[_rank(percent, len(order))])
            one = {name: int(completed[name][row]) for name in completed.columns}
            split = asdict(_split(one, clock, to_first=metric == "ttft"))
            rows.append({
                "metric": metric, "percentile": percent, "request_id": one["request_id"],
                "prompt_tokens": one["prompt_tokens"], "output_tokens": one["output_tokens"],
                "cached_tokens": one["cached_tokens"], "seconds": float(values[row]), **split,
            })  # fmt: skip
    return rows


def _rank(percent: int, of: int) -> int:
    return max(0, -(-percent * of // 100) - 1)


def _split(one: Mapping[str, int], clock: _HostClock, *, to_first: bool) -> Split:
    arrival, scheduled, first, end = (
        one[f"{name}_ps"] for name in ("arrival", "scheduled", "first_token", "finish")
    )  # fmt: skip
    front = min(clock.front_end_ps[one["request_id"]], scheduled - arrival)
    host_prefill = clock.host_ps(one["replica"], scheduled, first, prompts=True)
    host_decode = clock.host_ps(one["replica"], first, end)
    lost = one["preempted_ps"]
    gaps = clock.pauses_ps(one["request_id"], first, end)
    after = min(lost, gaps)
    before = min(lost - after, first - scheduled - host_prefill)
    transfer = clock.transfer_ps(one)
    parts = {
        "queue": scheduled - arrival - front,
        "host": front + host_prefill,
        "prefill": first - scheduled - host_prefill - before,
        "decode": 0.0,
        "preempted": before,
        "transfer": 0.0,
    }
    if not to_first:
        idle = min(after + transfer, end - first)
        host_decode = min(host_decode, end - first - idle)
        parts["host"] += host_decode
        parts["decode"] = end - first - host_decode - idle
        parts["preempted"] += idle - transfer
        parts["transfer"] = transfer
    return Split(**{name: value / PS_PER_S for name, value in parts.items()})


class _HostClock:
    """How much host work the steps of each replica had done by any time, and how long requests were under way to it."""

    def __init__(self, setup: Setup, result: RunResult) -> None:
        self._setup, self._result = setup, result
        self.front_end_ps = _front_end_ps(setup, result.requests)
        self._done: dict[int, tuple[Floats, Floats]] = {}
        for timer, steps in pool_steps(setup, result):
            for replica, rows in rows_by_replica(steps):
                own = steps.where(rows)
                tokens, sampled = own["decodes"] + own["prefill_tokens"], own["decodes"] + own["prefill_sequences"]
                per_step = PS_PER_S * np.array([*map(timer.host_seconds, tokens.tolist(), sampled.tolist())])
                ends = np.stack([own["start_ps"], own["start_ps"] + row_durations_ps(own)], axis=1).ravel()
                done = np.repeat(np.concatenate([[0.0], np.cumsum(per_step * own["steps"])]), 2)[1:-1]
                self._done[replica] = ends.astype(float), done

    def host_ps(self, replica: int, begin: int, end: int, *, prompts: bool = False) -> float:
        """Host work of the steps between two times: on the request's replica, or the mean of those for prompts."""
        pools = self._setup.decode is not None and prompts
        replicas = range(self._setup.scenario.replicas.count) if pools else [replica]
        found = [np.diff(np.interp([begin, end], *self._done[r]))[0] for r in replicas if r in self._done]
        return min(float(np.mean(found)), float(end - begin)) if found else 0.0

    def pauses_ps(self, request_id: int, first: int, end: int) -> int:
        """Time after the first token in which no stretch of decoding was under way."""
        decoding = sum(stop - start for start, stop in self._stretches(request_id))
        return max(0, end - first - decoding)

    def transfer_ps(self, one: Mapping[str, int]) -> int:
        """From the first token to the one after it, less an ordinary step, where another replica goes on."""
        if self._setup.decode is None or one["output_tokens"] < 2:
            return 0
        first, end = one["first_token_ps"], one["finish_ps"]
        later = [start for start, _ in self._stretches(one["request_id"]) if start > first]
        gap = min(later, default=first) - first
        return max(0, gap - (end - first - gap) // max(one["output_tokens"] - 2, 1))

    def _stretches(self, request_id: int) -> Iterator[tuple[int, int]]:
        """When each sequence stretch of the request began and ended; of several sequences, the first one's."""
        segments = self._result.segments
        own = segments.where((segments["request_id"] == request_id) & (segments["sequence"] == 0))
        for replica, rows in rows_by_replica(own):
            here, steps = own.where(rows), self._result.steps
            boundaries = _boundaries(steps.where((steps["replica"] == replica) & (steps["decodes"] > 0)))
            stop = boundaries(here["last_step"])
            yield from zip(
                here["start_ps"].tolist(), np.maximum(here["start_ps"], stop).tolist(), strict=True
            )  # fmt: skip


def _boundaries(steps: Table) -> Any:
    """End of decode step n of one replica, for an array of numbers; 0 of none."""
    counts = steps["steps"].astype(np.int64)
    upto = np.cumsum(counts)

    def ends(numbers: Column) -> Column:
        row = np.minimum(np.searchsorted(upto, numbers), max(len(upto) - 1, 0))
        n = numbers - (upto - counts)[row]
        found = steps["start_ps"][row] + n * steps["first_step_ps"][row] + steps["slope_ps"][row] * (n * (n - 1) // 2)
        return np.where(numbers > 0, found, 0)

    return ends


def _front_end_ps(setup: Setup, requests: Table) -> dict[int, int]:
    """How long an API server held each request: it is deterministic, so it is worked out again in order of arrival.

    Of several replicas each has its own; what a request that no row assigns to one of them waited is not known, and 0.
    """
    fronts = setup.front_ends()
    ids, arrivals, prompts = (requests[name].tolist() for name in ("request_id", "arrival_ps", "prompt_tokens"))
    held = dict.fromkeys(ids, 0)
    replicas = [0] * len(ids) if len(fronts) == 1 else requests["replica"].tolist()
    for i in sorted(range(len(ids)), key=lambda i: (arrivals[i], ids[i])):
        if 0 <= replicas[i] < len(fronts):
            request = Request(ids[i], arrivals[i], prompts[i], 1)
            held[ids[i]] = fronts[replicas[i]].delay_ps(request, arrivals[i])
    return held
