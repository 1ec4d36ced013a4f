"""A recorded trace as traffic: at its own times, or its lengths under another arrival process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, count, repeat
from typing import Any

import numpy as np

from sim.request import NO_TRAITS, Request, Traits
from sim.units import ceil_div
from sim.workloads.arrivals import CHUNK
from sim.workloads.sizes import Columns, Row
from sim.workloads.trace_table import BY_THE_CLOCK, Ints, Trace
from sim.workloads.traces import sha256


class TraceRows:
    """The lengths and traits of a trace's requests, in its order; the seed has no part in them."""

    def __init__(self, trace: Trace, max_output_tokens: int | None = None) -> None:
        self.trace, self.max_output_tokens = trace, max_output_tokens
        self._prompts = trace.input_tokens
        most = np.iinfo(np.int64).max if max_output_tokens is None else max_output_tokens
        self._answers: Ints = np.minimum(trace.output_tokens, most)
        cut = int((trace.output_tokens > most).sum())
        self.has_prefixes = trace.prefix_hashes is not None
        self.notes = (*trace.remarks, *([f"{cut} answers cut at max_output_tokens ({most})"] if cut else []))

    def __len__(self) -> int:
        return len(self.trace)

    def rows(self, seed: int) -> Iterator[Row]:
        """The last four arguments of `Request` for every row."""
        return zip(*self.columns(seed), strict=False)

    def columns(self, seed: int) -> Columns:
        """The same as four iterators; the first ends with the trace."""
        return self.part(0, len(self))

    def part(self, start: int, end: int) -> Columns:
        """The columns of rows `start` to before `end`."""
        plain = self.trace.prefix_hashes is None and self.trace.session is None
        traits = repeat(NO_TRAITS) if plain else map(self.traits, range(start, min(end, len(self))))
        return _flat(self._prompts[start:end]), _flat(self._answers[start:end]), repeat(self.max_output_tokens), traits

    def traits(self, row: int) -> Traits:
        """What the trace says about a request besides its lengths."""
        trace = self.trace
        # A prompt that was clipped or scaled down has fewer blocks than the trace gives hashes for.
        blocks = ceil_div(int(self._prompts[row]), trace.prefix_block_tokens or 1)
        return Traits(
            session="" if trace.session is None else trace.session[row],
            prefix_hashes=() if trace.prefix_hashes is None else trace.prefix_hashes[row][:blocks],
            prefix_block_tokens=trace.prefix_block_tokens,
        )

    def describe(self) -> dict[str, Any]:
        """Format, file name and hash of the trace, rows read, kept, dropped and changed, and mean lengths in tokens."""
        trace = self.trace
        return {
            "kind": "trace",
            "format": trace.format,
            "file": trace.path.name,
            "sha256": sha256(trace.path),
            "rows_read": trace.rows_read,
            "rows": len(trace),
            "counts": dict(trace.counts),
            "mean_input_tokens": float(self._prompts.mean()),
            "mean_output_tokens": float(self._answers.mean()),
            "max_output_tokens": self.max_output_tokens,
        }


class TraceReplay:
    """The requests of a trace at its own times; later turns of a session when the turn before has ended.

    Requests that wait for no other have ids 0, 1, 2, ... in order of arrival; those that follow another one have the
    ids after these, in the order of the trace.
    """

    def __init__(self, trace: Trace, max_output_tokens: int | None = None) -> None:
        previous = _previous_turns(trace)
        follows = previous >= 0
        order = np.concatenate([np.flatnonzero(~follows), np.flatnonzero(follows)])
        new_id = np.argsort(order)
        self.trace = trace.where(order)
        self.rows = TraceRows(self.trace, max_output_tokens)
        self.notes: tuple[str, ...] = self.rows.notes
        self.has_prefixes = self.rows.has_prefixes
        self.num_requests = len(trace)
        self._firsts = int((~follows).sum())
        self._next = {int(new_id[previous[row]]): int(new_id[row]) for row in np.flatnonzero(follows)}

    def __iter__(self) -> Iterator[Request]:
        times = _flat(self.trace.arrival_ps[: self._firsts])
        return map(Request, count(), times, *self.rows.columns(0))

    def on_finish(self, request: Request, now_ps: int) -> Iterable[Request]:
        """The next turn of the session, after the delay the trace gives."""
        number = self._next.get(request.id)
        if number is None or self.trace.delay_ps is None:
            return []
        times = repeat(now_ps + int(self.trace.delay_ps[number]))
        return list(map(Request, count(number), times, *self.rows.part(number, number + 1)))

    def describe(self) -> dict[str, Any]:
        """What `TraceRows` says, with the span in seconds and the mean rate in requests per second."""
        return {**self.rows.describe(), "span_s": self.trace.span_s, "mean_rate": self.trace.mean_rate}


def _previous_turns(trace: Trace) -> Ints:
    """For every row the row it waits for, or -1: the row before it of the same session, if it has a delay."""
    previous = np.full(len(trace), -1, np.int64)
    if trace.delay_ps is None or trace.session is None:
        return previous
    last: dict[str, int] = {}
    for row, session in enumerate(trace.session):
        if trace.delay_ps[row] != BY_THE_CLOCK:
            previous[row] = last.get(session, -1)
        last[session] = row
    return previous


def _flat(column: Ints) -> Iterator[int]:
    """Python integers, a chunk at a time."""
    return chain.from_iterable(column[start : start + CHUNK].tolist() for start in range(0, len(column), CHUNK))
