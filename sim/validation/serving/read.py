"""Tables of measured serving runs, told apart by their columns, as cases to simulate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sim.errors import ConfigError
from sim.validation.serving import bench, closed_loop, offline, online, open_loop, quantisation
from sim.validation.serving.case import Case
from sim.validation.serving.table import Row, each, text

_ENOUGH_FIGURES = 6
"""So many that agree by chance never do."""


@dataclass(frozen=True)
class Format:
    """A kind of table: the columns by which it is known, and the reader of one row."""

    name: str
    columns: Sequence[str]
    read_row: Callable[[str, Row, Path], Case]
    doubt: Callable[[Sequence[Case]], list[Case]] = list
    """What only the table as a whole gives away."""


FORMATS = (
    Format("closed loop", closed_loop.COLUMNS, closed_loop.read_row, closed_loop.beyond_silicon),
    Format("vllm bench serve", bench.COLUMNS, bench.read_row),
    Format("offline throughput", offline.COLUMNS, offline.read_row),
    Format("request rates", online.COLUMNS, online.read_row),
    Format("quantisation", quantisation.COLUMNS, quantisation.read_row),
)


def read_cases(paths: Iterable[Path]) -> list[Case]:
    """The cases of files, and of all tables in folders. Raises ConfigError for a file that is none of the formats.

    In a folder, a CSV beside a JSON file of the same name holds the same runs with less detail and is skipped.
    """
    cases: list[Case] = []
    for path in paths:
        if path.is_dir():
            for file in _tables(path):
                cases += read_table(file)
        else:
            cases += read_table(path)
    if not cases:
        raise ConfigError("no table of serving runs is here", key="--runs", value=", ".join(map(str, paths)))
    return cases


def read_table(path: Path) -> list[Case]:
    """The cases of one file. Raises ConfigError for one that is none of the formats."""
    if path.suffix == ".json":
        return open_loop.read_json(path)
    rows, columns = _rows(path)
    if set(open_loop.COLUMNS) <= columns:
        return open_loop.read_csv_rows(rows, path)
    for form in FORMATS:
        if set(form.columns) <= columns:
            return form.doubt(_without_copies(each(rows, path.stem, path, partial(_read, form, path))))
    kinds = ["open loop (serving_runs)", *(form.name for form in FORMATS)]
    raise ConfigError("its columns are none of the known tables of serving runs", file=path, choices=kinds)


def _without_copies(cases: Sequence[Case]) -> list[Case]:
    """Figures that agree to the last digit on different GPUs were measured on one of them, and no one says on which."""
    gpus: dict[tuple[float, ...], set[str]] = {}
    for case in cases:
        gpus.setdefault(_figures(case), set()).add(case.labels.get("gpu", ""))
    copied = {figures for figures, found in gpus.items() if len(found) > 1 and len(figures) >= _ENOUGH_FIGURES}
    return [
        replace(case, doubt="the same figures stand under another GPU") if _figures(case) in copied else case
        for case in cases
    ]


def _figures(case: Case) -> tuple[float, ...]:
    return tuple(value for part in case.parts for value in part.measured.values())


def _read(form: Format, path: Path, name: str, row: Row) -> Case:
    return form.read_row(name, row, path)


def _tables(folder: Path) -> list[Path]:
    """Files of a folder that are tables of runs; others, such as facts about models, are passed over."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json" and path.name != "models.json":
            found.append(path)
        elif path.suffix == ".csv" and not path.with_suffix(".json").is_file():
            columns = set(path.read_text(encoding="utf-8-sig").split("\n", 1)[0].strip().split(","))
            if any(set(known) <= columns for known in (open_loop.COLUMNS, *(form.columns for form in FORMATS))):
                found.append(path)
    return found


def _rows(path: Path) -> tuple[list[tuple[str, Row]], set[str]]:
    """Rows with their names: the `id` column, else the line of the file."""
    import pandas as pd

    try:
        table = pd.read_csv(path, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigError(f"is not a readable CSV table ({error})", file=path) from error
    rows: list[Row] = [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]
    named = [(text(row, "id") or f"line {line}", row) for line, row in enumerate(rows, start=2)]
    return named, set(map(str, table.columns))
