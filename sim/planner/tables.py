"""Rows of plain values as one table: Parquet for programs, CSV for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from sim.results import partial_path

Row = Mapping[str, Any]


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted keys; lists are left out, but for pairs: `intervals.x.low`, `.high`."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif not isinstance(value, (list, tuple)):
            found[name] = value
    return found


def write_table(rows: Sequence[Row], path: Path) -> None:
    """`path` (.parquet) and its twin .csv, each replaced whole; columns in the order in which they first appear.

    A column of whole numbers and fractions becomes fractions, any other mixture text.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: pa.array(_alike([row.get(name) for row in rows])) for name in names})
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, write in ((path, pq.write_table), (path.with_suffix(".csv"), pyarrow.csv.write_csv)):
        write(table, partial_path(target))
        partial_path(target).replace(target)


def _alike(values: Iterable[Any]) -> list[Any]:
    values = list(values)
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int} or kinds <= {bool} or kinds <= {float} or kinds <= {str}:
        return values
    if kinds <= {int, float}:
        return [None if value is None else float(value) for value in values]
    return [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
