"""ServeGen client files (arXiv 2505.09999): per ten-minute window a rate and a law of gaps, per period pdfs of lengths.

A pair `X-trace.csv` (no header: window_start_s, rate, cv, pattern, shape, scale) and `X-dataset.json`.
"""

from __future__ import annotations

import ast
import csv
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.documents import parse_json
from sim.errors import ConfigError
from sim.rng import stream
from sim.units import PS_PER_S
from sim.workloads.arrivals import Gamma, Renewal, Weibull
from sim.workloads.lengths import Empirical, Tokens
from sim.workloads.trace_jsonl import read_text
from sim.workloads.trace_table import Trace, normalise

_DEFAULT_WINDOW_S = 600.0
_TRACE, _DATASET = "trace.csv", "dataset.json"


@dataclass(frozen=True)
class _Window:
    start_s: float
    length_s: float
    rate: float
    gaps: Renewal


def is_pair(path: Path) -> bool:
    """Whether the file is one of a ServeGen pair."""
    return any(path.name.endswith(end) for end in (_TRACE, _DATASET)) and all(
        _sibling(path, end).is_file() for end in (_TRACE, _DATASET)
    )


def read_servegen(path: Path, seed: int) -> Trace:
    """One draw of the client's traffic: exactly as many requests in each window as its rate says.

    The gaps follow the window's law, stretched so that they fill the window: a bursty law drawn freely would start
    with a burst in every window and give more requests than were measured. Time 0 is the first request.
    """
    windows, lengths = _windows(_sibling(path, _TRACE)), _lengths(_sibling(path, _DATASET))
    times: list[npt.NDArray[np.float64]] = []
    prompts: list[Tokens] = []
    answers: list[Tokens] = []
    for number, window in enumerate(windows):
        size = round(window.rate * window.length_s)
        gaps = window.gaps.unit_gaps(stream(seed, "servegen_gaps", number), size + 1)
        times.append(window.start_s + np.cumsum(gaps)[:size] * (window.length_s / gaps.sum()))
        period = max(start for start in lengths if start <= window.start_s)
        for name, drawn in (("input_tokens", prompts), ("output_tokens", answers)):
            law = lengths[period].get(name)
            if law is None:
                raise ConfigError(
                    "has no lengths for a period with traffic", file=_sibling(path, _DATASET), key=f"{period:g}.{name}"
                )
            drawn.append(law.draw(stream(seed, f"servegen_{name}", number), size))
    if not times:
        raise ConfigError("holds no requests", file=path)
    trace = Trace(
        format="servegen",
        path=_sibling(path, _TRACE),
        arrival_ps=np.rint(np.concatenate(times) * PS_PER_S).astype(np.int64),
        input_tokens=np.concatenate(prompts),
        output_tokens=np.concatenate(answers),
        rows_read=sum(map(len, times)),
        notes=(f"drawn from the rates and pdfs of {len(windows)} windows with seed {seed}, not recorded",),
    )
    return normalise(trace)


def _sibling(path: Path, end: str) -> Path:
    for known in (_TRACE, _DATASET):
        if path.name.endswith(known):
            return path.with_name(path.name.removesuffix(known) + end)
    return path


def _windows(path: Path) -> list[_Window]:
    rows = [(n, row) for n, row in enumerate(csv.reader(read_text(path).splitlines()), start=1) if row]
    starts = [_number(path, n, row, 0) for n, row in rows]
    steps = [later - earlier for earlier, later in pairwise(starts)]
    windows = []
    for (n, row), start, step in zip(rows, starts, [*steps, steps[-1] if steps else _DEFAULT_WINDOW_S], strict=True):
        rate = _number(path, n, row, 1)
        if rate > 0:
            windows.append(_Window(start, step, rate, _gaps(path, n, row)))
    return windows


def _gaps(path: Path, line: int, row: list[str]) -> Renewal:
    pattern, shape = row[3].strip().lower() if len(row) > 3 else "", _number(path, line, row, 4)
    if pattern == "gamma" and shape > 0:
        return Gamma(rate=1.0, burstiness=shape)
    if pattern == "weibull" and shape >= 0.05:
        return Weibull(rate=1.0, shape=shape)
    raise ConfigError(
        "is not a law of gaps with a positive shape", file=path, line=line, key="pattern", value=",".join(row[3:5]),
        choices=("Gamma", "Weibull"),
    )  # fmt: skip


def _number(path: Path, line: int, row: list[str], column: int) -> float:
    names = ("window_start_s", "rate", "cv", "pattern", "shape", "scale")
    try:
        value = float(row[column])
    except IndexError:
        raise ConfigError("is required but missing", file=path, line=line, key=names[column]) from None
    except ValueError:
        raise ConfigError("is not a number", file=path, line=line, key=names[column], value=row[column]) from None
    if not 0 <= value < float("inf"):
        raise ConfigError("is not a finite number of at least 0", file=path, line=line, key=names[column], value=value)
    return value


def _lengths(path: Path) -> dict[float, dict[str, Empirical]]:
    try:
        data = parse_json(read_text(path), path)
        periods = {float(start): pdfs for start, pdfs in data.items()}
        return {start: {k: _pdf(v) for k, v in pdfs.items() if k.endswith("_tokens") and v.strip() != "{}"}
                for start, pdfs in periods.items()}  # fmt: skip
    except (AttributeError, ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        problem = str(error).splitlines()[0]
        raise ConfigError(f"is not a ServeGen dataset of {{start: {{name: pdf}}}} ({problem})", file=path) from error


def _pdf(text: str) -> Empirical:
    """A pdf is a string that holds a Python dict of {length: probability}."""
    pdf: dict[Any, float] = ast.literal_eval(text)
    return Empirical(values=tuple(max(1, int(k)) for k in pdf), weights=tuple(float(p) for p in pdf.values()))
