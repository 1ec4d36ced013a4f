"""Append-only rows. It computes nothing; metrics read the tables afterwards."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

import numpy as np

from sim.results import REQUEST_COLUMNS, SEGMENT_COLUMNS, STEP_COLUMNS, Column, Table

_BUFFERED_ROWS = 1 << 15


class Rows:
    """One table under construction: rows are packed into a buffer, which becomes columns now and then.

    `rows.add(rows.pack(...))` adds a row, its integers in the order of the columns. Packing is the fastest way that
    Python has to store a row, and keeps millions of them small.
    """

    __slots__ = ("_buffer", "_dtype", "_full", "_parts", "add", "pack")

    def __init__(self, columns: Mapping[str, str]) -> None:
        layout = struct.Struct("=" + "".join(columns.values()))
        self._dtype = np.dtype(list(columns.items()))
        self._buffer = bytearray()
        self._full = _BUFFERED_ROWS * layout.size
        self._parts: dict[str, list[Column]] = {name: [] for name in columns}
        self.pack = layout.pack
        self.add = self._buffer.extend

    def tidy(self) -> None:
        """Move the buffered rows into columns once there are enough of them."""
        if len(self._buffer) >= self._full:
            self._flush()

    def _flush(self) -> None:
        rows = np.frombuffer(bytes(self._buffer), dtype=self._dtype)
        for name, parts in self._parts.items():
            parts.append(np.ascontiguousarray(rows[name]))
        self._buffer.clear()

    def table(self) -> Table:
        """All rows so far."""
        if self._buffer or not next(iter(self._parts.values())):
            self._flush()
        columns = {}
        for name, parts in self._parts.items():
            columns[name] = whole = np.concatenate(parts)
            parts[:] = [whole]
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
