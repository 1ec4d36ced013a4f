"""Measurements as lines of JSON, written one by one as they are taken, and read back as tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.errors import ConfigError
from sim.validation.measure.problems import Problem, Size

if TYPE_CHECKING:
    import pandas as pd

STACK = "roofserve-kernels"
VERSION = "1"
"""Of the kernels and of how they are timed; measurements of other versions are another source."""
_US = 1e6


@dataclass(frozen=True)
class Measurement:
    """One kernel at one size: its time, or why there is none. `clocks` holds what the GPU said of itself meanwhile."""

    table: str
    sizes: Mapping[str, Size]
    latency_us: float | None = None
    spread: float = 0.0
    repeats: int = 0
    clocks: Mapping[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def key(self) -> str:
        """The problem's key."""
        return Problem(self.table, tuple(self.sizes.items())).key


@dataclass
class Record:
    """A file of measurements: first the environment, then one line per measurement, appended as it is taken."""

    path: Path

    def open(self, environment: Mapping[str, Any]) -> list[Measurement]:
        """Start the file, or go on with it: what it holds already.

        A line that an interruption cut short is dropped. Raises ConfigError when the file is of another GPU.
        """
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append({"environment": dict(environment)})
            return []
        head, found = read_record(self.path)
        if head.get("gpu_name") != environment.get("gpu_name"):
            raise ConfigError(f"holds measurements of {head.get('gpu_name')}, not of {environment.get('gpu_name')}",
                              file=self.path)  # fmt: skip
        text = self.path.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):
            self.path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
        return found

    def append(self, measurement: Measurement) -> None:
        """Add a measurement; it is in the file when this returns."""
        self._append(asdict(measurement))

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_record(path: Path) -> tuple[dict[str, Any], list[Measurement]]:
    """The environment and the measurements of a file. Raises ConfigError naming the line that is not one."""
    environment: dict[str, Any] = {}
    found = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            written = json.loads(line)
            if "environment" in written:
                environment = written["environment"]
            else:
                found.append(Measurement(**written))
        except (ValueError, TypeError) as error:
            if number == len(lines):
                break  # cut short: there is no newline behind it
            raise ConfigError(f"is no measurement ({error})", file=path, line=number) from error
    return environment, found


def rows(measurements: Iterable[Measurement], gpu: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(table, row) of every measurement that succeeded, in the columns of the measurement tables."""
    for one in measurements:
        if one.latency_us:
            labels = {"gpu": gpu, "source": f"{STACK}-{VERSION}", "latency_us": one.latency_us}
            yield one.table, {**one.sizes, **labels}


def tables(measurements: Iterable[Measurement], gpu: str) -> dict[str, pd.DataFrame]:
    """Measurements as one table per kind, labelled with the profile's name; a size measured twice counts twice."""
    import pandas as pd

    collected: dict[str, list[dict[str, Any]]] = {}
    for table, row in rows(measurements, gpu):
        collected.setdefault(table, []).append(row)
    return {table: pd.DataFrame(found) for table, found in collected.items()}


def from_seconds(
    problem: Problem, seconds: float, spread: float, repeats: int, clocks: Mapping[str, float]
) -> Measurement:
    """A measurement that succeeded."""
    return Measurement(problem.table, problem.columns, round(seconds * _US, 4), round(spread, 4), repeats, clocks)
