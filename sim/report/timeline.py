"""A run as a Chrome trace, for ui.perfetto.dev: steps and counters per replica, phases per request.

Format: "Trace Event Format" (Chromium project), JSON object form; times are microseconds since the first arrival.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from sim.request import Reason, State
from sim.results import Column, RunResult, Table
from sim.series import row_durations_ps, run_window_ps
from sim.token_times import decode_boundaries, rows_by_replica, segment_ends

Event = dict[str, Any]
MOST_EVENTS = 200_000
"""Perfetto slows down beyond a few hundred megabytes; longer runs are drawn coarser, never cut off."""
_COUNTERS = 3
_EVENTS_PER_REQUEST = 8
_PS_PER_US = 1e6


def timeline_bytes(result: RunResult, most_events: int = MOST_EVENTS) -> bytes:
    """The gzipped trace; the same run gives the same bytes. About half of the events are steps, half requests."""
    events = list(timeline_events(result, most_events))
    drawn = sum(1 for event in events if event["ph"] == "b" and event["name"] == "request")
    other = {"requests_drawn": drawn, "requests": len(result.requests)}
    document = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as file:
        file.write(json.dumps(document, separators=(",", ":"), allow_nan=False).encode())
    return buffer.getvalue()


def timeline_events(result: RunResult, most_events: int = MOST_EVENTS) -> Iterator[Event]:
    """Trace events: names of the tracks, step slices and counters by replica, phases by request, failures."""
    start_ps, _ = run_window_ps(result.requests)
    yield from _names(result)
    for replica, rows in rows_by_replica(result.steps):
        steps = result.steps.where(rows)
        budget = max(1, most_events // 2 * len(rows) // len(result.steps) // (1 + _COUNTERS))
        yield from _step_events(replica, steps, start_ps, budget)
    yield from _request_events(result, start_ps, most_events // 2)


def _names(result: RunResult) -> Iterator[Event]:
    scenario = result.manifest.get("scenario") or {}
    for replica in range(int(result.facts.get("replicas") or 1)):
        name = f"replica {replica} ({scenario.get('hardware', 'GPU')})"
        yield {"ph": "M", "name": "process_name", "pid": replica, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": replica, "args": {"sort_index": replica}}
        yield {"ph": "M", "name": "thread_name", "pid": replica, "tid": 0, "args": {"name": "steps"}}


def _us(time_ps: Any, start_ps: int) -> float:
    return round(int(time_ps - start_ps) / _PS_PER_US, 6)


def _step_events(replica: int, steps: Table, start_ps: int, most: int) -> Iterator[Event]:
    """One slice and three counters per row, or per group of neighbouring rows when there are too many."""
    ends = steps["start_ps"] + row_durations_ps(steps)
    group = -(-len(steps) // most)
    lanes: list[int] = []
    for first in range(0, len(steps), group):
        rows = slice(first, min(first + group, len(steps)))
        begin, end = int(steps["start_ps"][first]), int(ends[rows].max())
        # Slices of one track must not overlap; steps do when several are in flight.
        lane = next((i for i, busy_until in enumerate(lanes) if busy_until <= begin), len(lanes))
        lanes[lane : lane + 1] = [end]
        shape = {"ts": _us(begin, start_ps), "dur": _us(end, begin), "pid": replica, "tid": lane}
        yield {"ph": "X", "cat": "step", "name": _step_name(steps, rows), **shape, "args": _step_args(steps, rows)}
        for counter in ("running", "waiting", "kv_blocks"):
            level = {counter: int(steps[counter][first])}
            yield {"ph": "C", "name": counter, "pid": replica, "ts": shape["ts"], "args": level}
    if len(steps):
        for counter in ("running", "waiting", "kv_blocks"):
            yield {"ph": "C", "name": counter, "pid": replica, "ts": _us(ends.max(), start_ps), "args": {counter: 0}}


def _step_name(steps: Table, rows: slice) -> str:
    prefill, decodes = int(steps["prefill_tokens"][rows].sum()), int(steps["decodes"][rows].max())
    count = int(steps["steps"][rows].sum())
    times = f" x {count}" if count > 1 else ""
    if prefill and decodes:
        return f"mixed{times} b={decodes} +{prefill} tokens"
    return f"prefill{times} {prefill} tokens" if prefill else f"decode{times} b={decodes}"


def _step_args(steps: Table, rows: slice) -> dict[str, int]:
    return {
        "steps": int(steps["steps"][rows].sum()),
        "decodes": int(steps["decodes"][rows.start]),
        "context_tokens": int(steps["context_tokens"][rows.start]),
        "prefill_tokens": int(steps["prefill_tokens"][rows].sum()),
        "prefill_sequences": int(steps["prefill_sequences"][rows].sum()),
        "kv_blocks": int(steps["kv_blocks"][rows.start]),
    }


def _request_events(result: RunResult, start_ps: int, most: int) -> Iterator[Event]:
    """Nested async slices for evenly chosen requests: the request, and in it queued, prefill, decode, preempted."""
    requests = result.requests
    every = max(1, -(-len(requests) * _EVENTS_PER_REQUEST // max(most, 1)))
    chosen = requests.where(np.argsort(requests["arrival_ps"], kind="stable")[::every])
    stretches = _stretches(result, chosen["request_id"])
    for row in range(len(chosen)):
        one = {name: int(column[row]) for name, column in chosen.columns.items()}
        track = {"cat": "request", "id": one["request_id"], "pid": max(one["replica"], 0), "tid": 0}
        state = State(one["state"])
        args: dict[str, Any] = {"state": state.name.lower()}
        args |= {name: one[name] for name in ("prompt_tokens", "output_tokens", "cached_tokens", "preemptions")}
        yield {"ph": "b", "name": "request", **track, "ts": _us(one["arrival_ps"], start_ps), "args": args}
        for name, begin, end in _phases(one, stretches.get(one["request_id"], [])):
            yield {"ph": "b", "name": name, **track, "ts": _us(begin, start_ps)}
            yield {"ph": "e", "name": name, **track, "ts": _us(end, start_ps)}
        yield {"ph": "e", "name": "request", **track, "ts": _us(one["finish_ps"], start_ps)}
        if state in (State.ABORTED, State.REJECTED):
            name = f"{state.name.lower()}: {Reason(one['reason']).name.lower()}"
            yield {
                "ph": "i",
                "s": "p",
                "name": name,
                "pid": track["pid"],
                "tid": 0,
                "ts": _us(one["finish_ps"], start_ps),
            }


def _phases(one: dict[str, int], decoding: list[tuple[int, int]]) -> Iterator[tuple[str, int, int]]:
    """Name, begin and end of what happened to a request, in order."""
    never = one["scheduled_ps"] < 0
    yield "queued", one["arrival_ps"], one["finish_ps"] if never else one["scheduled_ps"]
    if never:
        return
    yield "prefill", one["scheduled_ps"], one["first_token_ps"] if one["first_token_ps"] >= 0 else one["finish_ps"]
    for i, (begin, end) in enumerate(decoding):
        if i:
            yield "preempted", decoding[i - 1][1], begin
        if end > begin:
            yield "decode", begin, end


def _stretches(result: RunResult, request_ids: Column) -> dict[int, list[tuple[int, int]]]:
    """When each of some requests decoded without interruption."""
    segments = result.segments.where(np.isin(result.segments["request_id"], request_ids))
    step_rows = dict(rows_by_replica(result.steps))
    stretches: dict[int, list[tuple[int, int]]] = {}
    for replica, rows in rows_by_replica(segments):
        here = segments.where(rows)
        own = step_rows.get(replica, np.zeros(0, dtype=np.int64))
        ends = segment_ends(here, decode_boundaries(result.steps.where(own)))
        for request_id, begin, end in zip(
            here["request_id"].tolist(), here["start_ps"].tolist(), ends.tolist(), strict=True
        ):
            stretches.setdefault(request_id, []).append((begin, end))
    return {request_id: sorted(spans) for request_id, spans in stretches.items()}
