"""Append-only rows. It computes nothing; metrics read the tables afterwards."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from sim.results import (
    REQUEST_COLUMNS,
    ROW_GROUP,
    SEGMENT_COLUMNS,
    STEP_COLUMNS,
    Column,
    FileColumns,
    Table,
    arrow_batch,
    parquet_schema,
    parquet_writer,
    partial_path,
)


class Rows:
    """One table under construction: rows are packed into a buffer, which becomes columns whenever it is full.

    `rows.add(rows.pack(...))` adds a row, its integers in the order of the columns. Packing is the fastest way that
    Python has to store a row, and keeps millions of them small. With a `file`, a table that outgrows the buffer is
    written to it in row groups while the run goes on.
    """

    def __init__(self, columns: Mapping[str, str], file: Path | None = None) -> None:
        layout = struct.Struct("=" + "".join(columns.values()))
        self._codes, self._dtype = columns, np.dtype(list(columns.items()))
        self._buffer = bytearray()
        self._full = ROW_GROUP * layout.size
        self._parts: list[dict[str, Column]] = []
        self._file, self._writer = file, None
        self.pack = layout.pack
        self.add = self._buffer.extend

    _writer: pq.ParquetWriter | None

    def tidy(self) -> None:
        """Move the buffered rows into columns once there are enough of them, and those into the file."""
        if len(self._buffer) < self._full:
            return
        self._flush()
        if self._file is not None:
            self._spill(self._file)

    def table(self) -> Table:
        """All rows so far; after this the file, if there is one, is closed."""
        self._flush()
        if self._file is not None and self._writer is not None:
            self._spill(self._file)
            self._writer.close()
            return Table(FileColumns(self._file))
        columns: dict[str, Column] = {}
        for name, code in self._codes.items():
            found = [part.pop(name) for part in self._parts]
            columns[name] = np.concatenate(found) if found else np.empty(0, code)
        self._parts = [dict(columns)]
        return Table(columns)

    def _flush(self) -> None:
        if self._buffer:
            rows = np.frombuffer(self._buffer, dtype=self._dtype)
            self._parts.append({name: rows[name].copy() for name in self._codes})
            del rows  # a buffer that is looked at cannot be cleared
            self._buffer.clear()

    def _spill(self, file: Path) -> None:
        schema = parquet_schema(self._codes)
        if self._writer is None:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._writer = parquet_writer(file, schema)
        for part in self._parts:
            self._writer.write_batch(arrow_batch(part, schema))
        self._parts.clear()


class Recorder:
    """The three tables of a run (`sim.results` says what each column means).

    `directory` is where the run will be saved; tables that outgrow memory are written there as the run goes on.
    """

    __slots__ = ("requests", "segments", "steps")

    def __init__(self, directory: Path | None = None) -> None:
        self.requests = Rows(REQUEST_COLUMNS, _partial(directory, "requests"))
        self.steps = Rows(STEP_COLUMNS, _partial(directory, "steps"))
        self.segments = Rows(SEGMENT_COLUMNS, _partial(directory, "segments"))

    def tidy(self) -> None:
        """Called now and then by the engine, between events."""
        for rows in self._all():
            rows.tidy()

    def _all(self) -> Iterable[Rows]:
        return (self.requests, self.steps, self.segments)


def _partial(directory: Path | None, name: str) -> Path | None:
    return None if directory is None else partial_path(directory / f"{name}.parquet")
