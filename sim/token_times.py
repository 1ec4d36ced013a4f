"""When every token came, worked out by column from the step and segment tables (`sim.results` says how they relate).

Nothing here holds one Python object per token, nor one number per step of a run: the step table is read in slices, and
the segments are sorted so that each slice meets its own. Memory grows with the segments and the distinct gaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.request import NUMBER_SHIFT
from sim.results import ROW_GROUP, Column, RunResult, Table

Ints = npt.NDArray[np.int64]
_BOUNDARY_COLUMNS = ("replica", "start_ps", "steps", "first_step_ps", "slope_ps", "decodes")
_SLICE_STEPS = 1 << 18
_SEGMENT_STEPS = ("first_step", "last_step", "tokens")


@dataclass(frozen=True)
class Gaps:
    """Distinct inter-token latencies in picoseconds, ascending, each with the number of times it occurred."""

    gap_ps: Ints
    count: Ints


@dataclass(frozen=True)
class DecodeSlice:
    """Consecutive decode steps of one replica: `ends_ps[i]` is the end of step `first + i - 1`, 0 of no step.

    So the slice's own steps `first .. first + len - 1` end at `ends_ps[1:]`, and `ends_ps[0]` is the end before them.
    """

    replica: int
    first: int
    ends_ps: Ints

    def __len__(self) -> int:
        return len(self.ends_ps) - 1

    def own(self, ascending: Ints) -> slice:
        """Which of some step numbers lie in this slice."""
        return slice(*np.searchsorted(ascending, (self.first, self.first + len(self))).tolist())


def rows_by_replica(table: Table) -> Iterator[tuple[int, Ints]]:
    """Each replica of a table with the numbers of its rows, in the table's order."""
    order = np.argsort(table["replica"], kind="stable")
    sorted_ = table["replica"][order]
    first = np.flatnonzero(np.diff(sorted_)) + 1
    yield from zip(sorted_[[0, *first]].tolist(), np.split(order, first), strict=True) if len(order) else ()


def decode_slices(steps: Table, rows: int = ROW_GROUP, most_steps: int = _SLICE_STEPS) -> Iterator[DecodeSlice]:
    """The ends of all decode steps, in order of time for each replica; slices of several replicas come in any order.

    `rows` of the table are read at a time. A slice has at most `most_steps` steps, or those of one row.
    """
    done: dict[int, tuple[int, int]] = {}
    for batch in steps.batches(_BOUNDARY_COLUMNS, rows):
        decoding = batch.where(batch["decodes"] > 0)
        for replica, own in rows_by_replica(decoding):
            piece = decoding.where(own)
            counts = piece["steps"].astype(np.int64)
            upto = np.cumsum(counts)
            start, first, slope = (piece[name] for name in ("start_ps", "first_step_ps", "slope_ps"))
            begin = 0
            while begin < len(counts):
                limit = most_steps + (upto[begin - 1] if begin else 0)
                some = slice(begin, max(begin + 1, int(np.searchsorted(upto, limit, side="right"))))
                number, last_ps = done.get(replica, (1, 0))
                ends = _ends_of_steps(last_ps, counts[some], start[some], first[some], slope[some])
                yield DecodeSlice(replica, number, ends)
                done[replica] = number + len(ends) - 1, int(ends[-1])
                begin = some.stop


def _ends_of_steps(before_ps: int, counts: Ints, start: Column, first: Column, slope: Column) -> Ints:
    """`before_ps`, then the end of each step j = 1, 2, ... of some rows: start + j * first + slope * j(j - 1)/2."""
    ends = np.empty(int(counts.sum()) + 1, dtype=np.int64)
    ends[0] = before_ps
    j = np.arange(1, len(ends), dtype=np.int64)
    j -= np.repeat(np.cumsum(counts) - counts, counts)
    ends[1:] = np.repeat(start, counts)
    ends[1:] += j * np.repeat(first, counts)
    j *= j - 1
    j >>= 1
    j *= np.repeat(slope, counts)
    ends[1:] += j
    return ends


def decode_boundaries(steps: Table) -> Ints:
    """The end of every decode step of one replica, in picoseconds: one number per step, for runs that fit in memory.

    Entry 0 stands for "before the first decode step" and is never the time of a token; entry d is the end of decode
    step d. `steps` holds the rows of one replica in order of time.
    """
    return np.concatenate([np.zeros(1, dtype=np.int64), *(part.ends_ps[1:] for part in decode_slices(steps))])


def segment_ends(segments: Table, boundaries: Ints) -> Ints:
    """When the last token of each segment came: the end of its last step, or its start when it has no step."""
    stepped = segments["last_step"] > segments["first_step"]
    last = np.where(stepped, segments["last_step"], 0)
    return np.where(stepped, boundaries[last], segments["start_ps"]).astype(np.int64)


def inter_token_gaps(result: RunResult, of_requests: Column | None = None) -> Gaps:
    """Every gap between consecutive tokens of one sequence, pooled over the run.

    `of_requests` (ids) limits it to the tokens of some requests. A gap after a preemption runs from the last token
    before it to the first one after it. Tokens of one step (right guesses) are no time apart.
    """
    segments = result.segments
    if of_requests is not None:
        segments = segments.where(np.isin(segments["request_id"], of_requests))
    gaps = Tally()
    for part, taking in _participation(result.steps, segments):
        seen = taking.on > 0
        gaps.add(np.diff(part.ends_ps)[seen], taking.on[seen])
        # From the first token of a segment (the end of a prefill) to its first decoded one.
        gaps.add(part.ends_ps[taking.joins - part.first + 1] - taking.starts_ps)
    gaps.add(_gaps_across_segments(result.steps, segments))
    extra = sum(int(_guessed(batch).sum()) for batch in segments.batches(_SEGMENT_STEPS))
    if extra:  # tokens that came together with another one
        gaps.add(np.zeros(1, dtype=np.int64), np.array([extra]))
    return Gaps(*gaps.sorted())


def tokens_per_bin(result: RunResult, start_ps: int, width_ps: int, bins: int) -> Ints:
    """Output tokens received by clients in each of `bins` intervals of `width_ps` from `start_ps` on."""
    total = np.zeros(bins, dtype=np.int64)
    for part, taking in _participation(result.steps, result.segments):
        emitted = taking.on + np.bincount(taking.joins - part.first, minlength=len(part))
        total += _binned(part.ends_ps[1:], emitted, start_ps, width_ps, bins)
    for batch in result.segments.batches(["start_ps"]):
        total += _binned(batch["start_ps"], None, start_ps, width_ps, bins)
    for times in _guessed_ps(result):
        total += _binned(times, None, start_ps, width_ps, bins)
    return total


def token_times(result: RunResult, request_ids: Iterable[int] | None = None) -> dict[int, Ints]:
    """The time of every token of some requests (default: all), in picoseconds: for timelines and small runs.

    Requests that received no token are left out. Memory grows with the number of tokens asked for.
    """
    segments = result.segments
    if request_ids is not None:
        segments = segments.where(np.isin(segments["request_id"], np.fromiter(request_ids, dtype=np.int64)))
    step_rows = dict(rows_by_replica(result.steps))
    parts: dict[int, list[Ints]] = {}
    for replica, rows in rows_by_replica(segments):
        own = step_rows.get(replica, np.zeros(0, dtype=np.int64))
        here, boundaries = segments.where(rows), decode_boundaries(result.steps.where(own))
        columns = (here[name].tolist() for name in ("request_id", "start_ps", "first_step", "last_step", "tokens"))
        for request_id, start_ps, first, last, tokens in zip(*columns, strict=True):
            times = np.concatenate([np.array([start_ps], dtype=np.int64), boundaries[first + 1 : last + 1]])
            if tokens > len(times):
                span = (np.array([value]) for value in (first, last, tokens - len(times)))
                times = np.append(times, boundaries[_spread(*span)])
            parts.setdefault(request_id, []).append(times)
    return {request_id: np.sort(np.concatenate(times)) for request_id, times in sorted(parts.items())}


class Tally:
    """Distinct values and how often each occurred, from parts that are not kept."""

    def __init__(self) -> None:
        self._values: list[Ints] = []
        self._counts: list[Ints] = []
        self._settled = 0

    def add(self, values: Ints, counts: Ints | None = None) -> None:
        """More values, each once or `counts` times."""
        if not len(values):
            return
        values, counts = _distinct(values, counts)
        self._values.append(values)
        self._counts.append(counts)
        # Growing by half between two merges keeps their number logarithmic in the distinct values.
        if sum(map(len, self._values)) > 1.5 * self._settled + _SLICE_STEPS:
            self._merge()

    def sorted(self) -> tuple[Ints, Ints]:
        """The values, ascending, and their counts."""
        self._merge()
        return self._values[0], self._counts[0]

    def _merge(self) -> None:
        values = np.concatenate([np.zeros(0, dtype=np.int64), *self._values])
        counts = np.concatenate([np.zeros(0, dtype=np.int64), *self._counts])
        values, counts = _distinct(values, counts)
        self._values, self._counts, self._settled = [values], [counts], len(values)


def _distinct(values: Ints, counts: Ints | None) -> tuple[Ints, Ints]:
    """Ascending values without repetition, with the sums of their counts."""
    if counts is None:
        values = np.sort(values)
    else:
        order = np.argsort(values, kind="stable")
        values, counts = values[order], counts[order]
    first = np.flatnonzero(np.concatenate([np.ones(min(1, len(values)), dtype=bool), values[1:] != values[:-1]]))
    if counts is None:
        return values[first], np.diff(first, append=len(values))
    return values[first], np.add.reduceat(counts, first) if len(first) else counts


@dataclass(frozen=True)
class _Stretches:
    """Segments of one replica with at least one decode step, in the two orders in which the steps meet them."""

    joins: Ints
    """The first decode step of each, ascending."""
    starts_ps: Ints
    """Their `start_ps`, in the order of `joins`."""
    leaves: Ints
    """The step after the last of each, ascending."""


@dataclass(frozen=True)
class _Taking:
    """Who takes part in the steps of a slice."""

    on: Ints
    """For each step, the sequences that have decoded in the step before as well."""
    joins: Ints
    """The first decode step of each segment that joins in this slice, ascending."""
    starts_ps: Ints
    """When those segments got their first token."""


def _participation(steps: Table, segments: Table) -> Iterator[tuple[DecodeSlice, _Taking]]:
    """Slices of decode steps, each with who takes part."""
    stretches = _stretches(segments)
    for part in decode_slices(steps):
        own = stretches.get(part.replica)
        if own is None:
            continue
        joining, leaving = part.own(own.joins), part.own(own.leaves)
        joins, leaves = own.joins[joining], own.leaves[leaving]
        # A segment takes part from its first step to its last; it is "on" from the step after its first.
        change = np.bincount(joins - part.first + 1, minlength=len(part) + 1)[: len(part)]
        change -= np.bincount(leaves - part.first, minlength=len(part))
        change[0] += _before(own, part.first)
        yield part, _Taking(np.cumsum(change), joins, own.starts_ps[joining])


def _before(own: _Stretches, step: int) -> int:
    """Segments that have joined before a step and whose leaving was before it too, taken off."""
    return int(np.searchsorted(own.joins, step) - np.searchsorted(own.leaves, step))


def _stretches(segments: Table) -> dict[int, _Stretches]:
    replica, first, last = (segments[name] for name in ("replica", "first_step", "last_step"))
    stepped = last > first
    if not stepped.all():
        replica, first, last = replica[stepped], first[stepped], last[stepped]
    by_last = np.lexsort((last, replica))
    last = last[by_last] + 1
    del by_last
    by_first = np.lexsort((first, replica))
    first = first[by_first] + 1
    starts = segments["start_ps"][stepped][by_first]
    replica = replica[by_first]
    if not len(replica):
        return {}
    cuts = np.flatnonzero(np.diff(replica)) + 1
    parts = (np.split(column, cuts) for column in (first, starts, last))
    return {int(r): _Stretches(*own) for r, *own in zip(replica[[0, *cuts]], *parts, strict=True)}


def _gaps_across_segments(steps: Table, segments: Table) -> Ints:
    """From the last token of a segment to the first of the same sequence's next one."""
    ids: Ints = np.sort(_sequence_ids(segments))
    several: Ints = ids[1:][ids[1:] == ids[:-1]]
    if not len(several):
        return several
    segments = segments.where(np.isin(_sequence_ids(segments), several))
    ends = _last_tokens_ps(steps, segments)
    ids, starts = _sequence_ids(segments), segments["start_ps"]
    order = np.lexsort((starts, ids))
    ids, starts, ends = ids[order], starts[order], ends[order]
    gaps: Ints = (starts[1:] - ends[:-1])[ids[1:] == ids[:-1]]
    return gaps


def _sequence_ids(segments: Table) -> Ints:
    """One number per sequence of each request."""
    ids: Ints = segments["sequence"].astype(np.int64)
    ids <<= NUMBER_SHIFT
    ids += segments["request_id"]
    return ids


def _last_tokens_ps(steps: Table, segments: Table) -> Ints:
    """When the last token of each segment came: the end of its last step, or its start when it has no step."""
    ends = segments["start_ps"].copy()
    last, stepped = segments["last_step"], segments["last_step"] > segments["first_step"]
    due = {}
    for replica, rows in rows_by_replica(segments):
        rows = rows[stepped[rows]]
        rows = rows[np.argsort(last[rows], kind="stable")]
        due[replica] = rows, last[rows]
    for part in decode_slices(steps):
        if part.replica in due:
            rows, numbers = due[part.replica]
            here = part.own(numbers)
            ends[rows[here]] = part.ends_ps[numbers[here] - part.first + 1]
    return ends


def _guessed(segments: Table) -> Ints:
    """Tokens of each segment beyond one per step: right guesses, which come together with another token."""
    extra: Ints = segments["tokens"] - (segments["last_step"] - segments["first_step"] + 1)
    return extra


def _spread(first: Ints, last: Ints, extra: Ints) -> Ints:
    """The steps of right guesses. How many each step had is not recorded: as evenly as they go into the segment."""
    number = np.arange(int(extra.sum())) - np.repeat(np.cumsum(extra) - extra, extra)
    steps, guesses = np.repeat(last - first, extra), np.repeat(extra, extra)
    found: Ints = np.repeat(first, extra) + 1 + (2 * number + 1) * steps // (2 * guesses)
    return found


def _guessed_ps(result: RunResult) -> Iterator[Ints]:
    """When the right guesses of each replica came."""
    segments = result.segments
    if not any(bool((_guessed(batch) > 0).any()) for batch in segments.batches(_SEGMENT_STEPS)):
        return
    guessing = segments.where(_guessed(segments) > 0)
    due = {}
    for replica, rows in rows_by_replica(guessing):
        own = guessing.where(rows)
        due[replica] = np.sort(_spread(own["first_step"], own["last_step"], _guessed(own)))
    for part in decode_slices(result.steps):
        if part.replica in due:
            numbers = due[part.replica]
            yield part.ends_ps[numbers[part.own(numbers)] - part.first + 1]


def _binned(times_ps: Column, weights: Column | None, start_ps: int, width_ps: int, bins: int) -> Ints:
    index = np.clip((times_ps - start_ps) // width_ps, 0, bins - 1)
    counted: Ints = np.bincount(index, weights=weights, minlength=bins).astype(np.int64)
    return counted
