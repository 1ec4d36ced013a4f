"""From measured tables to a profile's `calibration:` block: fit each cell, then score it on what was left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from sim.cost.calibration import CLASSES, Entry, Kernel, Key
from sim.cost.kernels.chip import Chip
from sim.validation.families.all import families
from sim.validation.families.base import US, Family, Floats
from sim.validation.fit import Range, Score, fit_params, folds, score
from sim.validation.residual_fit import array_factor, fit_residual
from sim.validation.tables import is_gpu

FOLDS = 5
FEWEST_ROWS = 12
_SHAPES_THINNED, _FEW = 3, 200
_QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Cell:
    """The measurements that one set of constants is fitted to."""

    key: Key
    family: Family
    rows: pd.DataFrame

    @property
    def measured_s(self) -> Floats:
        """Measured seconds."""
        return np.asarray(self.rows.latency_us.to_numpy(float) * US)

    def part(self, mask: Any) -> Cell:
        """The cell with some of its rows."""
        return replace(self, rows=self.rows[mask])


@dataclass(frozen=True)
class Fitted:
    """A fitted cell with its left-out predictions, row by row (NaN where a row was never left out)."""

    cell: Cell
    kernel: Kernel
    left_out_points_s: Floats
    left_out_shapes_s: Floats

    def scores(self) -> dict[str, Score]:
        """Statistics on training rows, left-out points and left-out shapes."""
        measured, trained = self.cell.measured_s, price(self.cell.family, self.kernel, self.cell.rows)
        predictions = {
            "train": trained,
            "left_out_points": self.left_out_points_s,
            "left_out_shapes": self.left_out_shapes_s,
        }
        known = {how: ~np.isnan(values) for how, values in predictions.items()}
        return {how: score(values[known[how]], measured[known[how]]) for how, values in predictions.items()}

    def entry(self) -> Entry:
        """What the profile keeps of it."""
        points, shapes = (self._log_errors(values) for values in (self.left_out_points_s, self.left_out_shapes_s))
        errors = {how: _rounded(stats) for how, stats in self.scores().items() if stats.n}
        for how, unseen in (("left_out_points", points), ("left_out_shapes", shapes)):
            if len(unseen):
                errors[how]["in_90_pct"] = round(_held(points, shapes, unseen), 1)
        quantiles = _quantiles(points, shapes) if len(points) else {}
        return Entry(self.kernel, _source(self.cell), errors, quantiles)

    def _log_errors(self, predicted_s: Floats) -> Floats:
        known = ~np.isnan(predicted_s)
        return np.asarray(np.log(self.cell.measured_s[known] / predicted_s[known]))


def _quantiles(points: Floats, shapes: Floats) -> dict[float, float]:
    """Quantiles of the errors to expect: most new sizes belong to known shapes, some to shapes never measured.

    Few rows say little about the tails, so that the distribution of a small cell is stretched.
    """
    mixed = np.concatenate([points, shapes[::_SHAPES_THINNED]])
    stretch = 1 + 3 / np.sqrt(len(mixed)) if len(mixed) < _FEW else 1.0
    return {q: round(float(stretch * np.quantile(mixed, q)), 4) for q in _QUANTILES}


def _held(points: Floats, shapes: Floats, unseen: Floats) -> float:
    """Per cent of log errors within the 90 % interval of the other half of the rows."""
    held = []
    for half, other in ((0, 1), (1, 0)):
        known = _quantiles(points[half::2], shapes[half::2])
        part = unseen[other::2]
        held.append(float(np.mean((part >= known[0.05]) & (part <= known[0.95]))) if len(part) else 1.0)
    return 100 * sum(held) / 2


def cells(tables: Mapping[str, pd.DataFrame], profile: str) -> Iterator[Cell]:
    """The cells that the rows of one GPU fall into, rows of several tables together."""
    for family in families():
        for table in family.tables:
            rows = tables.get(table)
            if rows is None:
                continue
            mine = rows[[is_gpu(label, profile) for label in rows.gpu]]
            keys = pd.Series(family.keys(table, mine), index=mine.index, dtype=object)
            for key in sorted({k for k in keys if k is not None}):
                yield Cell(key, family, family.prepare(mine[[k == key for k in keys]]))


def fit_cell(cell: Cell, chip: Chip, start: Kernel | None = None) -> Kernel | None:
    """The kernel that prices the cell best; None when the format is unknown or the rows are too few.

    `start` is a kernel to begin the search at; folds begin where the whole cell ended.
    """
    if len(cell.rows) < FEWEST_ROWS:
        return None
    options = cell.family.formats(cell.key, chip) if start is None else (start.format,)
    fitted = [_fit_parameters(cell, chip, fmt, start) for fmt in options]
    if not fitted:
        return None
    bare = min(fitted, key=lambda kernel: _misfit(cell, kernel))
    ratio = np.log(cell.measured_s / cell.family.formula(bare, cell.rows))
    plan = cell.family.residual_plan(cell.key, chip)
    table = fit_residual(plan, cell.family.sizes(bare, cell.rows), ratio, cell.family.shrink)
    return replace(bare, residual=table)


def _fit_parameters(cell: Cell, chip: Chip, fmt: Any, start: Kernel | None) -> Kernel:
    kind = CLASSES[cell.key.op_class]
    empty = kind.kernel(chip, fmt, _neutral(kind.params))
    ranges = cell.family.ranges(empty, cell.rows)
    first = start.params if start is not None else replace(empty.params, **{n: r.start for n, r in ranges.items()})
    free = _free(ranges, start)

    def times(params: Any) -> Floats:
        return cell.family.formula(replace(empty, params=params), cell.rows)

    fitted = fit_params(first, free, times, cell.measured_s, restart=start is None)
    neutral = asdict(empty.params)
    idle = {name: neutral[name] for name in ranges if _is_idle(fitted, name, neutral[name], times)}
    kernel: Kernel = replace(empty, params=replace(fitted, **idle))
    return kernel


def _is_idle(params: Any, name: str, neutral: float, times: Callable[[Any], Floats]) -> bool:
    """Whether the data say nothing about a parameter (odd row counts never measured, say): it is then left out."""
    value, as_it_is = getattr(params, name), times(params)
    others = (times(replace(params, **{name: other})) for other in (neutral, 1.3 * value))
    return value != neutral and all(np.allclose(seconds, as_it_is, rtol=1e-6, atol=0) for seconds in others)


def _neutral(params: type[Any]) -> Any:
    return params(**{f.name: 1e-6 for f in fields(params) if f.default is MISSING})


def _free(ranges: Mapping[str, Range], start: Kernel | None) -> dict[str, Range]:
    """All parameters, or those that did not end at a limit in the fit one starts from."""
    if start is None:
        return dict(ranges)
    values = asdict(start.params)
    return {n: r for n, r in ranges.items() if r.low < values[n] < r.high and r.settled(values[n]) is None}


def _misfit(cell: Cell, kernel: Kernel) -> float:
    return float(np.abs(np.log(cell.family.formula(kernel, cell.rows) / cell.measured_s)).mean())


def price(family: Family, kernel: Kernel, rows: pd.DataFrame) -> Floats:
    """Seconds of every row, residual table included."""
    factor = array_factor(kernel.residual, family.sizes(kernel, rows)) if kernel.residual.sheets else 1.0
    return np.asarray(family.formula(kernel, rows) * factor)


def cross_validate(cell: Cell, chip: Chip, kernel: Kernel, columns: Sequence[str], count: int = FOLDS) -> Floats:
    """Each row as predicted by a fit that has not seen it, nor any other row with the same values in `columns`."""
    predicted = np.full(len(cell.rows), np.nan)
    if not columns:
        return predicted
    keys = list(cell.rows[list(columns)].itertuples(index=False, name=None))
    for train, left_out in folds(keys, count):
        fold = fit_cell(cell.part(train), chip, kernel)
        if fold is not None:
            predicted[left_out] = price(cell.family, fold, cell.rows[left_out])
    return predicted


def fit_and_score(cell: Cell, chip: Chip, *, validate: bool = True, start: Kernel | None = None) -> Fitted | None:
    """A fitted cell with its cross-validation; None when it cannot be fitted."""
    kernel = fit_cell(cell, chip, start)
    if kernel is None:
        return None
    nothing = np.full(len(cell.rows), np.nan)
    if not validate:
        return Fitted(cell, kernel, nothing, nothing)
    points = cross_validate(cell, chip, kernel, cell.family.point_columns)
    shapes = cross_validate(cell, chip, kernel, shape_columns(cell), 2 * FOLDS)
    return Fitted(cell, kernel, points, shapes)


def shape_columns(cell: Cell) -> Sequence[str]:
    """What is left out as a whole: a weight shape, a head layout, a model."""
    return ("model",) if "model" in cell.rows.columns else cell.family.shape_columns


def _source(cell: Cell) -> str:
    versions = ", ".join(sorted(set(cell.rows.source)))
    return f"{versions}, {len(cell.rows)} points"


def _rounded(stats: Score) -> dict[str, float]:
    return {name: value if name == "n" else round(value, 2) for name, value in asdict(stats).items()}
