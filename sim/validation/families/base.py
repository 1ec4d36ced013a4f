"""What fitting and scoring need to know about one operator class, beside its cost formula."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from sim.cost.calibration import Key
from sim.cost.kernels.chip import Chip
from sim.validation.fit import Range
from sim.validation.residual_fit import Axes

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
US = 1e-6


class Traffic(NamedTuple):
    """Useful work of each row: what a datasheet roofline sees."""

    flops: Floats
    bytes_moved: Floats
    multiply: str


class Family(ABC):
    """One operator class: which rows of which table, and how to price an array of them.

    `point_columns` identify a point, `shape_columns` the weight shape or head layout that is left out as a whole.
    """

    op_class: str
    tables: Sequence[str]
    point_columns: Sequence[str]
    shape_columns: Sequence[str] = ()

    @abstractmethod
    def keys(self, table: str, rows: pd.DataFrame) -> list[Key | None]:
        """The constants that price each row; None for rows of another class."""

    def prepare(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows with the columns that the formula needs, whatever table they came from."""
        return rows

    @abstractmethod
    def formats(self, key: Key, chip: Chip) -> Sequence[Any]:
        """What is known of the library beforehand: usually one format record; the best of several is kept."""

    @abstractmethod
    def formula(self, kernel: Any, rows: pd.DataFrame) -> Floats:
        """Seconds of each row by the bare formula, under the conditions of the benchmark (L2-hot where it was)."""

    @abstractmethod
    def sizes(self, kernel: Any, rows: pd.DataFrame) -> Mapping[str, Floats]:
        """The sizes that residual tables of this class are laid out by."""

    @abstractmethod
    def traffic(self, kernel: Any, rows: pd.DataFrame) -> Traffic:
        """Work of each row for the datasheet comparison."""

    @abstractmethod
    def ranges(self, kernel: Any, rows: pd.DataFrame) -> Mapping[str, Range]:
        """The parameters to fit and their physical limits."""

    @abstractmethod
    def residual_plan(self, key: Key, chip: Chip) -> Sequence[Axes]:
        """Axes of the residual sheets, about 100 values together."""

    shrink: float = 0.5
    """Rows' worth of evidence that moves a residual value half of the way."""


def integers(rows: pd.DataFrame, *columns: str) -> list[Integers]:
    """Columns as arrays of whole numbers."""
    return [rows[column].to_numpy(np.int64) for column in columns]


def floats(sizes: Mapping[str, Any]) -> dict[str, Floats]:
    """Sizes as arrays of floats."""
    return {name: np.asarray(values, float) for name, values in sizes.items()}


def datasheet_s(traffic: Traffic, chip: Chip) -> Floats:
    """The classic roofline: the larger of FLOPs over the dense peak and bytes over the HBM peak; nothing calibrated."""
    return np.maximum(traffic.flops / chip.peak(traffic.multiply), traffic.bytes_moved / chip.hbm_bytes_per_s)
