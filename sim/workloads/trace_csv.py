"""Traces with a header line and one request per row. A format is one entry of FORMATS: which column means what."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sim.errors import ConfigError
from sim.units import PS_PER_S
from sim.workloads.lengths import MOST_TOKENS
from sim.workloads.trace_table import Ints, Numbers, Trace, elapsed_ps, normalise

if TYPE_CHECKING:
    import pandas as pd  # otherwise where it is used: commands that read no trace answer without it

PS_PER_NS, PS_PER_MS = 10**3, 10**9


@dataclass(frozen=True)
class CsvFormat:
    """Spellings of the three columns that matter, without case, spaces and underscores."""

    name: str
    time: tuple[str, ...]
    prompt: tuple[str, ...]
    answer: tuple[str, ...]
    unit_ps: int = PS_PER_S
    untimed: bool = False
    empty_answers: str = "count as 1 token"
    note: str = ""


FORMATS = (
    # Azure/AzurePublicDataset, 2023 and 2024 LLM inference traces; 2025 adds NumImages
    CsvFormat("azure", ("timestamp",), ("contexttokens",), ("generatedtokens",)),
    # HPMLL/BurstGPT, v1 and v2 have these three columns in common
    CsvFormat("burstgpt", ("timestamp",), ("requesttokens",), ("responsetokens",), empty_answers="drop"),
    # microsoft/vidur, data/processed_traces
    CsvFormat("vidur", ("arrivedat",), ("numprefilltokens",), ("numdecodetokens",), untimed=True),
    # mutinifni/splitwise-sim, traces/
    CsvFormat("splitwise-sim", ("arrivaltimestamp",), ("promptsize",), ("tokensize",)),
    CsvFormat(
        "plain",
        ("arrivals", "arrivaltimes", "arrival", "arrivaltime", "timestamps", "timestamp", "times"),
        ("inputtokens", "prompttokens", "inputlength", "inputlen", "promptlength", "promptlen"),
        ("outputtokens", "completiontokens", "generatedtokens", "outputlength", "outputlen"),
    ),
    CsvFormat("plain", ("arrivalms", "timestampms"), ("inputtokens",), ("outputtokens",), unit_ps=PS_PER_MS),
)


def read_csv(path: Path) -> Trace:
    """A CSV trace of any of FORMATS. Raises ConfigError naming file, line, column and value of the first bad row."""
    header = [str(name) for name in _frame(path, nrows=0).columns]
    form, columns = _recognise(path, header)
    frame = _frame(path)
    frame = frame[(frame != "").any(axis=1)]
    time, prompt, answer = columns
    trace = Trace(
        format=form.name,
        path=path,
        arrival_ps=np.zeros(len(frame), np.int64) if time is None else _times(path, frame[time], form.unit_ps),
        input_tokens=_tokens(path, frame[str(prompt)]),
        output_tokens=_tokens(path, frame[str(answer)]),
        rows_read=len(frame),
        timed=time is not None,
        notes=("images are ignored: only text tokens are replayed",) if "NumImages" in header else (),
    )
    return normalise(trace, empty_answers=form.empty_answers)


def _frame(path: Path, nrows: int | None = None) -> pd.DataFrame:
    """All cells as text, one frame row per line of the file, so that an error can name its line."""
    import pandas as pd

    try:
        frame = pd.read_csv(
            path, dtype=str, encoding="utf-8-sig", nrows=nrows,
            skip_blank_lines=False, keep_default_na=False, na_filter=False,
        )  # fmt: skip
    except pd.errors.EmptyDataError as error:
        raise ConfigError("is empty", file=path) from error
    except pd.errors.ParserError as error:
        found = re.search(r"line (\d+)", str(error))
        line = int(found[1]) if found else None
        raise ConfigError(f"is not a table ({str(error).split('error:')[-1]})", file=path, line=line) from error
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise ConfigError(f"cannot be read ({error})", file=path) from error
    if not isinstance(frame.index, pd.RangeIndex):
        raise ConfigError("has more fields than its header", file=path, line=2)
    return frame.fillna("")


def _recognise(path: Path, header: list[str]) -> tuple[CsvFormat, tuple[str | None, str | None, str | None]]:
    """The first format that has all its columns; with none, the error names what the nearest one lacks."""
    spelled = {re.sub(r"[\s_\-]", "", name).lower(): name for name in header}
    nearest: tuple[int, str, tuple[str, ...]] = (-1, "", ())
    for form in FORMATS:
        roles = {"arrival times": form.time, "prompt tokens": form.prompt, "output tokens": form.answer}
        found = {role: next((spelled[s] for s in known if s in spelled), None) for role, known in roles.items()}
        lacking = [role for role, name in found.items() if name is None]
        if not lacking or (form.untimed and lacking == ["arrival times"]):
            return form, (found["arrival times"], found["prompt tokens"], found["output tokens"])
        if len(roles) - len(lacking) > nearest[0]:
            nearest = (len(roles) - len(lacking), f"{form.name}: no column with the {lacking[0]}", roles[lacking[0]])
    if nearest[0] <= 0:
        raise ConfigError("is in no known trace format", file=path, line=1, key="header", value=",".join(header))
    raise ConfigError(
        f"looks like format {nearest[1]}", file=path, line=1, key="header", value=",".join(header), choices=nearest[2]
    )


def _times(path: Path, cells: pd.Series[str], unit_ps: int) -> Ints:
    """Numbers in the format's unit, or dates with or without time zone."""
    if not len(cells) or _is_number(cells.iloc[0]):
        return elapsed_ps(_numbers(path, cells), unit_ps, path)
    import pandas as pd

    dates = pd.to_datetime(cells, format="ISO8601", utc=True, errors="coerce")
    _refuse_first(path, cells, dates.isna().to_numpy(), "is neither a number nor a date")
    nanoseconds = dates.dt.tz_convert(None).to_numpy("datetime64[ns]").astype(np.int64)
    return elapsed_ps(nanoseconds, PS_PER_NS, path)


def _tokens(path: Path, cells: pd.Series[str]) -> Ints:
    numbers = _numbers(path, cells)
    _refuse_first(path, cells, numbers < 0, "is negative")
    _refuse_first(path, cells, numbers != np.floor(numbers), "is not a whole number of tokens")
    _refuse_first(path, cells, numbers > MOST_TOKENS, "is more tokens than can be counted")
    return numbers.astype(np.int64)


def _numbers(path: Path, cells: pd.Series[str]) -> Numbers:
    import pandas as pd

    numbers = pd.to_numeric(cells, errors="coerce").to_numpy()
    if numbers.dtype != np.int64:
        numbers = numbers.astype(np.float64)
        _refuse_first(path, cells, ~np.isfinite(numbers), "is not a number")
    return numbers


def _refuse_first(path: Path, cells: pd.Series[str], bad: npt.NDArray[np.bool_], problem: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        line = int(cells.index[row]) + 2
        raise ConfigError(problem, file=path, line=line, key=str(cells.name), value=cells.iloc[row])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
