"""Predicted against measured kernel times: one line per class and format, the datasheet's roofline beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sim.cost.calibration import Calibration, Entry
from sim.validation.calibrate import price
from sim.validation.families.all import families
from sim.validation.families.base import US, Family, Floats, Traffic, datasheet_s
from sim.validation.fit import Score, score
from sim.validation.tables import format_column, is_gpu

_INTERVAL = (0.05, 0.95)


class Priced(NamedTuple):
    """The rows of one table, GPU and format: measured, predicted and datasheet seconds (NaN where there is no price).

    `low_s` and `high_s` bound the stated 90 % interval; `traffic` is the useful work.
    """

    table: str
    gpu: str
    number_format: str
    rows: pd.DataFrame
    measured_s: Floats
    predicted_s: Floats
    datasheet_s: Floats
    low_s: Floats
    high_s: Floats
    traffic: Traffic


@dataclass(frozen=True)
class Line:
    """One line of the report; errors in per cent. `coverage_pct`: measurements within the stated 90 % interval."""

    table: str
    gpu: str
    number_format: str
    n: int
    priced: int
    score: Score
    datasheet: Score
    coverage_pct: float

    def as_json(self) -> dict[str, Any]:
        """The line in the keys of the JSON report."""
        return {
            "table": self.table,
            "gpu": self.gpu,
            "scheme_or_kv_dtype": self.number_format,
            "n": self.n,
            "priced": self.priced,
            "mape": self._shown(self.score.mape_pct),
            "median": self._shown(self.score.median_pct),
            "p90": self._shown(self.score.p90_pct),
            "bias": self._shown(self.score.bias_pct),
        }

    def _shown(self, per_cent: float) -> float | None:
        return round(per_cent, 3) if self.priced else None


def price_tables(tables: Mapping[str, pd.DataFrame], calibration: Calibration) -> Iterator[Priced]:
    """Every row of this GPU priced by the constants of its class, format and stack (another stack's if need be)."""
    known = {table for family in families() for table in family.tables}
    for table, rows in ((table, rows) for table, rows in tables.items() if table in known):
        mine = rows[[is_gpu(label, calibration.chip.name) for label in rows.gpu]].reset_index(drop=True)
        if mine.empty:
            continue
        columns, multiply = _price_rows(table, mine, calibration)
        for (gpu, name), part in mine.groupby(["gpu", format_column(table)], sort=True):
            at = part.index.to_numpy()
            measured, predicted, datasheet, low, high, flops, moved = (column[at] for column in columns)
            work = Traffic(flops, moved, str(multiply[at[0]]))
            yield Priced(table, str(gpu), str(name), part, measured, predicted, datasheet, low, high, work)


def _price_rows(table: str, rows: pd.DataFrame, calibration: Calibration) -> tuple[list[Floats], list[str]]:
    """Columns (measured, predicted, datasheet, low, high, FLOPs, bytes) and the format each row multiplies in."""
    found = [np.full(len(rows), np.nan) for _ in range(6)]
    multiply = [""] * len(rows)
    for family in families():
        if table not in family.tables:
            continue
        keys = family.keys(table, rows)
        for key in {k for k in keys if k is not None}:
            entry = calibration.find(*key)
            if entry is None:
                continue
            at = np.flatnonzero([k == key for k in keys])
            values, name = _price_part(family, entry, rows.iloc[at], calibration)
            for column, part in zip(found, values, strict=True):
                column[at] = part
            for i in at:
                multiply[i] = name
    return [rows.latency_us.to_numpy(float) * US, *found], multiply


def _price_part(
    family: Family, entry: Entry, rows: pd.DataFrame, calibration: Calibration
) -> tuple[tuple[Floats, ...], str]:
    ready = family.prepare(rows)
    seconds = price(family, entry.kernel, ready)
    work = family.traffic(entry.kernel, ready)
    low, high = (np.exp(entry.log_error_quantiles.get(q, 0.0)) for q in _INTERVAL)
    roof = datasheet_s(work, calibration.chip)
    return (seconds, roof, seconds * low, seconds * high, work.flops, work.bytes_moved), work.multiply


def report_line(part: Priced) -> Line:
    """Statistics over the rows that have a price."""
    known = ~np.isnan(part.predicted_s)
    measured = part.measured_s[known]
    inside = (measured >= part.low_s[known]) & (measured <= part.high_s[known])
    return Line(
        part.table,
        part.gpu,
        part.number_format,
        len(part.measured_s),
        int(known.sum()),
        score(part.predicted_s[known], measured),
        score(np.maximum(part.datasheet_s[known], 1e-12), measured),
        float(100 * inside.mean()) if known.any() else 0.0,
    )


def unpriced(parts: Sequence[Priced]) -> dict[str, int]:
    """Rows without a price by table, format and source, so that nothing is skipped silently."""
    missing: dict[str, int] = {}
    for part in parts:
        without = part.rows[np.isnan(part.predicted_s)]
        for source, count in without.groupby("source").size().items():
            missing[f"{part.table} {part.number_format} ({source})"] = int(count)
    return missing
