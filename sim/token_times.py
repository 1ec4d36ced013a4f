"""When every token came, worked out by column from the step and segment tables (`sim.results` says how they relate).

Nothing here holds one Python object per token; a run of tens of millions of steps is handled one replica at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.results import Column, RunResult, Table

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Gaps:
    """Inter-token latencies in picoseconds, each with the number of times it occurred."""

    gap_ps: Ints
    count: Ints


def rows_by_replica(table: Table) -> Iterator[tuple[int, Ints]]:
    """Each replica of a table with the numbers of its rows, in the table's order."""
    order = np.argsort(table["replica"], kind="stable")
    replicas, first = np.unique(table["replica"][order], return_index=True)
    yield from zip(replicas.tolist(), np.split(order, first[1:]) if len(replicas) else [], strict=True)


def decode_boundaries(steps: Table) -> Ints:
    """The end of every decode step of one replica, in picoseconds.

    Entry 0 stands for "before the first decode step" and is never the time of a token; entry d is the end of decode
    step d. `steps` holds the rows of one replica in order of time.
    """
    rows = steps.where(steps["decodes"] > 0)
    counts = rows["steps"].astype(np.int64)
    boundaries = np.zeros(int(counts.sum()) + 1, dtype=np.int64)
    row = np.repeat(np.arange(len(rows)), counts)
    before = np.cumsum(counts) - counts
    j = np.arange(1, len(boundaries), dtype=np.int64) - before[row]
    first, slope, start = (rows[name].astype(np.int64) for name in ("first_step_ps", "slope_ps", "start_ps"))
    boundaries[1:] = start[row] + j * first[row] + slope[row] * (j * (j - 1) // 2)
    return boundaries


def segment_ends(segments: Table, boundaries: Ints) -> Ints:
    """When the last token of each segment came: the end of its last step, or its start when it has no step."""
    stepped = segments["last_step"] > segments["first_step"]
    last = np.where(stepped, segments["last_step"], 0)
    return np.where(stepped, boundaries[last], segments["start_ps"]).astype(np.int64)


def inter_token_gaps(result: RunResult, of_requests: Column | None = None) -> Gaps:
    """Every gap between consecutive tokens of one request, pooled over the run.

    `of_requests` (ids) limits it to the tokens of some requests. A gap after a preemption runs from the last token
    before it to the first one after it.
    """
    segments = result.segments
    if of_requests is not None:
        segments = segments.where(np.isin(segments["request_id"], of_requests))
    ends = np.zeros(len(segments), dtype=np.int64)
    gaps, counts = [], []
    for rows, here, boundaries in _replicas(result.steps, segments):
        ends[rows] = segment_ends(here, boundaries)
        for gap, count in (_gaps_between_steps(here, boundaries), _first_gaps(here, boundaries)):
            gaps.append(gap)
            counts.append(count)
    across = _gaps_across_segments(segments, ends)
    return Gaps(
        np.concatenate([*gaps, across]).astype(np.int64),
        np.concatenate([*counts, np.ones(len(across), dtype=np.int64)]).astype(np.int64),
    )


def tokens_per_bin(result: RunResult, start_ps: int, width_ps: int, bins: int) -> Ints:
    """Output tokens received by clients in each of `bins` intervals of `width_ps` from `start_ps` on."""
    total = np.zeros(bins, dtype=np.int64)
    segments = result.segments
    for _, here, boundaries in _replicas(result.steps, segments):
        emitted = _coverage(here["first_step"] + 1, here["last_step"], len(boundaries))
        total += _binned(boundaries[1:], emitted[1:], start_ps, width_ps, bins)
    ones = np.ones(len(segments), dtype=np.int64)
    return total + _binned(segments["start_ps"], ones, start_ps, width_ps, bins)


def token_times(result: RunResult, request_ids: Iterable[int] | None = None) -> dict[int, Ints]:
    """The time of every token of some requests (default: all), in picoseconds: for timelines and small runs.

    Requests that received no token are left out. Memory grows with the number of tokens asked for.
    """
    segments = result.segments
    if request_ids is not None:
        segments = segments.where(np.isin(segments["request_id"], np.fromiter(request_ids, dtype=np.int64)))
    parts: dict[int, list[Ints]] = {}
    for _, here, boundaries in _replicas(result.steps, segments):
        columns = (here[name].tolist() for name in ("request_id", "start_ps", "first_step", "last_step"))
        for request_id, start_ps, first, last in zip(*columns, strict=True):
            times = np.concatenate([np.array([start_ps], dtype=np.int64), boundaries[first + 1 : last + 1]])
            parts.setdefault(request_id, []).append(times)
    return {request_id: np.sort(np.concatenate(times)) for request_id, times in sorted(parts.items())}


def _replicas(steps: Table, segments: Table) -> Iterator[tuple[Ints, Table, Ints]]:
    """Replica by replica: which rows of `segments` are its own, those rows, and the ends of its decode steps."""
    step_rows = dict(rows_by_replica(steps))
    for replica, rows in rows_by_replica(segments):
        own = step_rows.get(replica, np.zeros(0, dtype=np.int64))
        yield rows, segments.where(rows), decode_boundaries(steps.where(own))


def _coverage(first: Column, last: Column, size: int) -> Ints:
    """How many of the closed intervals [first, last] contain each index below `size`; empty intervals count nowhere."""
    real = last >= first
    change = np.zeros(size + 1, dtype=np.int64)
    np.add.at(change, first[real], 1)
    np.add.at(change, last[real] + 1, -1)
    count: Ints = np.cumsum(change)[:size]
    return count


def _gaps_between_steps(segments: Table, boundaries: Ints) -> tuple[Ints, Ints]:
    """Gaps between the ends of consecutive decode steps, as often as a sequence decoded through both."""
    count = _coverage(segments["first_step"] + 2, segments["last_step"], len(boundaries))[1:]
    seen = count > 0
    return np.diff(boundaries)[seen], count[seen]


def _first_gaps(segments: Table, boundaries: Ints) -> tuple[Ints, Ints]:
    """From the first token of a segment (the end of a prefill) to its first decoded one."""
    stepped = segments.where(segments["last_step"] > segments["first_step"])
    gaps = boundaries[stepped["first_step"] + 1] - stepped["start_ps"]
    return gaps, np.ones(len(gaps), dtype=np.int64)


def _gaps_across_segments(segments: Table, ends: Ints) -> Ints:
    order = np.lexsort((segments["start_ps"], segments["request_id"]))
    ids, starts, ends = segments["request_id"][order], segments["start_ps"][order], ends[order]
    gaps: Ints = (starts[1:] - ends[:-1])[ids[1:] == ids[:-1]]
    return gaps


def _binned(times_ps: Column, weights: Column, start_ps: int, width_ps: int, bins: int) -> Ints:
    index = np.clip((times_ps - start_ps) // width_ps, 0, bins - 1)
    counted: Ints = np.bincount(index, weights=weights, minlength=bins).astype(np.int64)
    return counted
