"""What a run leaves behind: append-only tables and a manifest. Metrics, figures and reports are computed from these.

    requests   one row per request, in the order in which they ended
    steps      one row per run of like steps: step i of a row lasts `first_step_ps + i * slope_ps`, i = 0 .. steps - 1
    segments   one row per stretch of uninterrupted decoding of a sequence: most requests are one, number 0

A replica numbers its *decode steps* (steps in which sequences that decode take part: rows of `steps` with
`decodes` > 0) 1, 2, 3, ... in order of time. A segment says: the sequence's first token of this stretch came at
`start_ps` (the end of its prefill, or of its recomputation after a preemption), and one more token at the end of each
decode step `first_step + 1 .. last_step` of that replica. So every token's time follows from `steps` and `segments`.
Where guesses are verified, a step gives a sequence one token or more: `tokens` counts those of the stretch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sim.errors import ConfigError

Column = npt.NDArray[Any]
Columns = dict[str, Column]
ROW_GROUP = 1 << 17
"""Rows that are written, or looked at, together."""

# column -> type code of `array.array` (h int16, i int32, q int64); the order is that of the files
REQUEST_COLUMNS: Mapping[str, str] = {
    "request_id": "q",
    "replica": "h",  # -1: refused before it reached one
    "state": "b",  # sim.request.State
    "reason": "b",  # sim.request.Reason
    "arrival_ps": "q",
    "scheduled_ps": "q",  # first admitted to a batch; -1 never
    "first_token_ps": "q",  # -1 never
    "finish_ps": "q",  # completed, aborted, rejected, or where the run stopped
    "prompt_tokens": "i",
    "output_tokens": "i",  # tokens the client received, those of all sequences
    "cached_tokens": "i",  # prompt tokens served by the prefix cache at the first admission
    "preemptions": "i",
    "preempted_ps": "q",  # total time between being preempted and being admitted again; the longest of all sequences
    "kv_unused_tokens": "i",  # room it held in the KV cache when it ended and had never filled
    "tenant": "h",  # its number among those of the workload
    "sibling_tokens": "i",  # of output_tokens, those that are not of the request's longest sequence
}
STEP_COLUMNS: Mapping[str, str] = {
    "replica": "h",
    "start_ps": "q",
    "steps": "i",
    "first_step_ps": "q",
    "slope_ps": "q",
    "decodes": "i",  # sequences that take part with one token each
    "context_tokens": "q",  # sum of their cached tokens at the row's first step
    "prefill_tokens": "i",
    "prefill_sequences": "i",
    "prefill_pairs": "q",  # query-key pairs of the chunks: sum of n * cached + n * (n + 1) / 2
    "kv_blocks": "i",  # blocks in use when the row begins, room for its chunks included
    "kv_tokens": "q",  # tokens that have room in them; what is left of the blocks is waste
    "waiting": "i",  # requests (after a fork: sequences) in the queue when the run was planned that the row belongs to
    "running": "i",  # requests admitted by then
    "kv_stranded_blocks": "i",  # free blocks that the head of the queue had been refused by then
    "kv_shared_blocks": "i",  # blocks more that would be in use if sequences and requests shared none
}
SEGMENT_COLUMNS: Mapping[str, str] = {
    "request_id": "q",
    "replica": "h",
    "start_ps": "q",
    "first_step": "q",
    "last_step": "q",
    "sequence": "i",  # its number within the request
    "tokens": "i",  # emitted in this stretch, the first one included
}


class FileColumns(Mapping[str, Column]):
    """The columns of a Parquet file, each read when it is asked for and not kept: tables larger than memory."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:  # pyarrow's own error for a missing file does not name it
            metadata = pq.read_metadata(file)
        self.path, self.rows = path, int(metadata.num_rows)
        schema = metadata.schema.to_arrow_schema()
        self._types = {name: np.dtype(str(kind)) for name, kind in zip(schema.names, schema.types, strict=True)}

    def __getitem__(self, name: str) -> Column:
        column, filled = np.empty(self.rows, self._types[name]), 0
        for part in self.batches([name], ROW_GROUP):
            column[filled : filled + len(part[name])] = part[name]
            filled += len(part[name])
        return column

    def __iter__(self) -> Iterator[str]:
        return iter(self._types)

    def __len__(self) -> int:
        return len(self._types)

    def batches(self, names: Sequence[str], rows: int) -> Iterator[Columns]:
        """Some columns, at most so many rows at a time."""
        # One row group after the other, in one thread and without read-ahead: all else holds more than is looked at.
        with pq.ParquetFile(self.path, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(rows, row_groups=[group], columns=list(names), use_threads=False):
                    yield {name: self._numpy(name, batch.column(name)) for name in names}

    def _numpy(self, name: str, array: pa.Array) -> Column:
        # `to_numpy` would do the same, but it imports pandas: 40 MiB.
        size = self._types[name].itemsize
        return np.frombuffer(array.buffers()[1], self._types[name], len(array), array.offset * size)


class _ChosenColumns(Mapping[str, Column]):
    """Some rows of another table's columns, picked when a column is asked for."""

    def __init__(self, base: Table, chosen: Column) -> None:
        self._base, self._chosen = base, chosen
        self.rows = int(np.count_nonzero(chosen)) if chosen.dtype == bool else len(chosen)

    def __getitem__(self, name: str) -> Column:
        return self._base[name][self._chosen]

    def __iter__(self) -> Iterator[str]:
        return iter(self._base.columns)

    def __len__(self) -> int:
        return len(self._base.columns)

    def batches(self, names: Sequence[str], rows: int) -> Iterator[Columns]:
        """Some columns, at most so many rows at a time; rows picked by number are fetched whole, a column at a time."""
        if self._chosen.dtype != bool:
            yield from _slices({name: self[name] for name in names}, rows)
            return
        passed = 0
        for part in self._base.batches(names, rows):
            here = self._chosen[passed : passed + len(part)]
            passed += len(part)
            if here.any():
                yield {name: part[name][here] for name in names}


def _slices(columns: Columns, rows: int) -> Iterator[Columns]:
    for start in range(0, len(next(iter(columns.values()))), rows):
        yield {name: column[start : start + rows] for name, column in columns.items()}


@dataclass(frozen=True)
class Table:
    """Named columns of equal length, as numpy arrays. `table["arrival_ps"]` is a column, `len(table)` its rows."""

    columns: Mapping[str, Column]

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    def __len__(self) -> int:
        if isinstance(self.columns, (FileColumns, _ChosenColumns)):
            return self.columns.rows
        return len(next(iter(self.columns.values())))

    def where(self, chosen: Column) -> Table:
        """The rows for which a mask is true, or the rows of these numbers. Columns are picked when they are read."""
        return Table(_ChosenColumns(self, np.asarray(chosen)))

    def batches(self, names: Sequence[str], rows: int = ROW_GROUP) -> Iterator[Table]:
        """Some columns of the table in order, at most `rows` rows at a time: for tables larger than memory.

        What is computed batch by batch must not depend on where one ends. No batch is empty.
        """
        if isinstance(self.columns, (FileColumns, _ChosenColumns)):
            yield from map(Table, self.columns.batches(names, rows))
        else:
            yield from map(Table, _slices({name: self.columns[name] for name in names}, rows))


@dataclass(frozen=True)
class RunResult:
    """The tables of one simulated run, and the manifest that says how they came about.

    `manifest` holds the resolved scenario, seed, versions, hashes, and `facts` the run needed (KV blocks per replica,
    block size, GPUs, trust label, notes to the reader). It has no wall-clock time, so that equal runs are equal bytes.
    """

    requests: Table
    steps: Table
    segments: Table
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the run knew beyond the scenario: sizes in bytes and blocks, trust, notes."""
        facts: Mapping[str, Any] = self.manifest.get("facts", {})
        return facts

    def save(self, directory: str | Path) -> None:
        """Write the three tables as Parquet, and `manifest.json`; each file appears whole or not at all."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, table in (("requests", self.requests), ("steps", self.steps), ("segments", self.segments)):
            _save_table(table, directory / f"{name}.parquet")
        replace_text(directory / "manifest.json", json.dumps(self.manifest, indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> RunResult:
        """Read a saved run back. Raises ConfigError when the directory is not one."""
        directory = Path(directory)
        try:
            manifest = json.loads((directory / "manifest.json").read_text())
            requests, steps, segments = (
                Table(FileColumns(directory / f"{name}.parquet")) for name in ("requests", "steps", "segments")
            )
        except FileNotFoundError as error:
            missing = Path(str(error.filename)).name
            raise ConfigError(f"is not a saved run ({missing} is missing)", file=directory) from error
        except (json.JSONDecodeError, pa.ArrowInvalid) as error:
            raise ConfigError(f"is not a readable saved run ({error})", file=directory) from error
        return cls(requests, steps, segments, manifest)


def parquet_schema(columns: Mapping[str, Any]) -> pa.Schema:
    """The file schema of columns given by type codes, or anything else that numpy takes for a type."""
    return pa.schema([(name, pa.from_numpy_dtype(np.dtype(code))) for name, code in columns.items()])


def partial_path(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(f".{path.name}.partial")


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or an interruption, never meets half of it."""
    partial = partial_path(path)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _save_table(table: Table, path: Path) -> None:
    partial = partial_path(path)
    if isinstance(table.columns, FileColumns):
        if table.columns.path == partial:  # the run has written it already
            partial.replace(path)
            table.columns.path = path
            return
        shutil.copyfile(table.columns.path, partial)
    else:
        _write_parquet(table, partial)
    partial.replace(path)


def _write_parquet(table: Table, path: Path) -> None:
    """In row groups, so that a table of millions of rows is never copied whole."""
    schema = parquet_schema({name: column.dtype for name, column in table.columns.items()})
    with parquet_writer(path, schema) as writer:
        for part in table.batches(list(table.columns)):
            writer.write_batch(arrow_batch(part.columns, schema))


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A file for batches of rows, each of which becomes a row group."""
    # Times and counters grow or hover: their differences take half the room of the values, and half the time.
    deltas = {field.name: "DELTA_BINARY_PACKED" for field in schema if field.type.bit_width >= 32}
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False, column_encoding=deltas)


def arrow_batch(columns: Mapping[str, Column], schema: pa.Schema) -> pa.RecordBatch:
    """Columns as Arrow sees them, not copied."""
    # `pa.array` would do the same, but it imports pandas to ask whether this is a Series.
    whole = ((field.type, np.ascontiguousarray(columns[field.name])) for field in schema)
    arrays = [pa.Array.from_buffers(kind, len(data), [None, pa.py_buffer(data)]) for kind, data in whole]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
