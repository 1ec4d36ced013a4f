"""Rows go in, columns come out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sim.engine.recorder import Recorder, Rows
from sim.results import REQUEST_COLUMNS, SEGMENT_COLUMNS, STEP_COLUMNS

COLUMNS = {"id": "q", "count": "i", "flag": "b"}


def test_rows_become_columns_in_order() -> None:
    """Values and order survive, in the narrow types of the columns."""
    rows = Rows(COLUMNS)
    for i in range(10):
        rows.add(rows.pack(i << 40, -i, i % 2))
    table = rows.table()
    assert table["id"].tolist() == [i << 40 for i in range(10)]
    assert table["count"].tolist() == [-i for i in range(10)]
    assert [table[name].dtype for name in COLUMNS] == [np.int64, np.int32, np.int8]


def test_an_empty_table_has_its_columns() -> None:
    """No rows are a table of length zero with the right types, and asking twice is harmless."""
    rows = Rows(COLUMNS)
    assert len(rows.table()) == len(rows.table()) == 0
    assert rows.table()["count"].dtype == np.int32


def test_tidying_in_between_changes_nothing() -> None:
    """However often the buffer is emptied, the table is the same; and rows may follow a look at it."""
    rows, expected = Rows(COLUMNS), []
    for i in range(100_000):
        rows.add(rows.pack(i, i % 1000, i % 3))
        expected.append(i)
        if i % 777 == 0:
            rows.tidy()
        if i == 50_000:
            assert rows.table()["id"].tolist() == expected
    assert rows.table()["id"].tolist() == expected
    assert rows.table()["flag"].tolist() == [i % 3 for i in expected]


def test_a_table_that_outgrows_memory_goes_to_its_file(tmp_path: Path) -> None:
    """Past a million rows the file takes what memory does not keep, and the table reads as if nothing had happened."""
    small, large = (Rows(COLUMNS, tmp_path / "runs" / f"{name}.parquet") for name in ("small", "large"))
    for rows, batches in ((small, 2), (large, 9)):
        for batch in range(batches):
            rows.add(b"".join(rows.pack(i << 40, batch, i % 2) for i in range(1000)) * 140)
            rows.tidy()
    assert not (tmp_path / "runs" / "small.parquet").exists()
    for rows, batches in ((small, 2), (large, 9)):
        table = rows.table()
        assert len(table) == batches * 140_000
        assert (table["id"] == np.tile(np.arange(1000) << 40, 140 * batches)).all()
        assert (table["count"] == np.repeat(np.arange(batches), 140_000)).all()
        assert table["count"].dtype == np.int32
    assert (tmp_path / "runs" / "large.parquet").exists()


def test_the_recorder_has_the_tables_of_a_run() -> None:
    """Requests, steps and segments, with exactly the columns of a saved run."""
    recorder = Recorder()
    recorder.tidy()
    assert list(recorder.requests.table().columns) == list(REQUEST_COLUMNS)
    assert list(recorder.steps.table().columns) == list(STEP_COLUMNS)
    assert list(recorder.segments.table().columns) == list(SEGMENT_COLUMNS)
