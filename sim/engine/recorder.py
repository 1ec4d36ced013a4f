"""Append-only rows. It computes nothing; metrics read the tables afterwards."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping

import numpy as np

from sim.results import REQUEST_COLUMNS, SEGMENT_COLUMNS, STEP_COLUMNS, Column, Table

_BUFFERED_ROWS = 1 << 15


class Rows:
    """One table under construction: rows go into a flat buffer, which is turned into narrow columns now and then.

    A flat buffer takes a whole row in one call; narrow columns keep a run of millions of requests in memory.
    """

    __slots__ = ("_buffer", "_full", "_parts", "_types", "append")

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._types = columns
        self._buffer = array("q")
        self._full = _BUFFERED_ROWS * len(columns)
        self._parts: list[list[Column]] = [[] for _ in columns]
        self.append = self._buffer.extend
        """Add a row: its integers, in the order of the columns."""

    def tidy(self) -> None:
        """Move the buffered rows into columns once there are enough of them."""
        if len(self._buffer) >= self._full:
            self._flush()

    def _flush(self) -> None:
        rows = np.frombuffer(self._buffer, dtype=np.int64).reshape(-1, len(self._types))
        for parts, column, code in zip(self._parts, rows.T, self._types.values(), strict=True):
            parts.append(column.astype(code))
        del rows, column  # the buffer cannot be emptied while numpy looks at it
        del self._buffer[:]

    def table(self) -> Table:
        """All rows so far."""
        if self._buffer:
            self._flush()
        columns = {}
        for (name, code), parts in zip(self._types.items(), self._parts, strict=True):
            whole = np.concatenate(parts) if parts else np.empty(0, dtype=code)
            parts[:] = [whole]
            columns[name] = whole
        return Table(columns)


class Recorder:
    """The three tables of a run (`sim.results` says what each column means)."""

    __slots__ = ("requests", "segments", "steps")

    def __init__(self) -> None:
        self.requests = Rows(REQUEST_COLUMNS)
        self.steps = Rows(STEP_COLUMNS)
        self.segments = Rows(SEGMENT_COLUMNS)

    def tidy(self) -> None:
        """Called now and then by the engine, between events."""
        for rows in self._all():
            rows.tidy()

    def _all(self) -> Iterable[Rows]:
        return (self.requests, self.steps, self.segments)
