"""A recorded trace as columns, whatever file it came from; and what a workload file may do to it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.errors import ConfigError
from sim.units import PS_PER_S, to_ps, to_s
from sim.workloads.arrivals import LATEST_PS

Ints = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.int64] | npt.NDArray[np.float64]
BY_THE_CLOCK = -1


@dataclass(frozen=True)
class Trace:
    """Requests of a trace in order of arrival; time 0 is the first of them.

    Rows of one `session` whose `delay_ps` is not BY_THE_CLOCK arrive so long after the previous row of the session
    has been answered; their `arrival_ps` is that of the session. `counts` says how many rows were dropped or changed
    and why, `notes` what else the user should know.
    """

    format: str
    path: Path
    arrival_ps: Ints
    input_tokens: Ints
    output_tokens: Ints
    rows_read: int
    counts: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    timed: bool = True
    prefix_hashes: npt.NDArray[np.object_] | None = None
    prefix_block_tokens: int = 0
    session: npt.NDArray[np.object_] | None = None
    delay_ps: Ints | None = None

    def __len__(self) -> int:
        return len(self.arrival_ps)

    @property
    def span_s(self) -> float:
        """From time 0 to the last arrival, seconds."""
        return to_s(int(self.arrival_ps.max())) if len(self) else 0.0

    @property
    def mean_rate(self) -> float | None:
        """Arrivals per second of the span; None when there is no span."""
        return len(self) / self.span_s if self.span_s else None

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences for the user: the counts, and what the reader assumed."""
        counted = (
            f"{number:,} row{'s' if number > 1 else ''} {what} (of {self.rows_read:,} in the file)"
            for what, number in self.counts.items()
        )
        untimed = () if self.timed else ("the trace has no arrival times: everything arrives at once",)
        return (*counted, *untimed, *self.notes)

    def untimed(self) -> Trace:
        """The same rows for another arrival process: neither times nor delays of their own count."""
        return replace(self, timed=True, delay_ps=None)

    def where(self, rows: npt.NDArray[Any]) -> Trace:
        """The rows a mask or a list of indices names."""
        return replace(
            self,
            arrival_ps=self.arrival_ps[rows],
            input_tokens=self.input_tokens[rows],
            output_tokens=self.output_tokens[rows],
            prefix_hashes=None if self.prefix_hashes is None else self.prefix_hashes[rows],
            session=None if self.session is None else self.session[rows],
            delay_ps=None if self.delay_ps is None else self.delay_ps[rows],
        )

    def without(self, rows: npt.NDArray[np.bool_], why: str) -> Trace:
        """The trace less some rows, which are counted under `why`."""
        return self.counting(why, rows).where(~rows) if rows.any() else self

    def counting(self, what: str, rows: npt.NDArray[np.bool_]) -> Trace:
        """The same rows, and a count of those marked."""
        number = int(rows.sum())
        return replace(self, counts={**self.counts, what: number}) if number else self


def elapsed_ps(times: Numbers, unit_ps: int, path: Path) -> Ints:
    """Times since the earliest one on the engine's clock. Raises ConfigError beyond LATEST_PS.

    The difference is taken first, in the file's own unit: seconds since 1970 do not fit the clock.
    """
    if not len(times):
        return np.zeros(0, np.int64)
    since = times - times.min()
    if float(since.max()) * unit_ps >= LATEST_PS:
        days = LATEST_PS / PS_PER_S / 86_400
        raise ConfigError(f"spans more than {days:.0f} days, the longest traffic the clock can count", file=path)
    # Whole units stay exact; fractions are rounded to a picosecond once.
    exact: Ints = since * np.int64(unit_ps) if since.dtype == np.int64 else np.rint(since * unit_ps).astype(np.int64)
    return exact


def normalise(trace: Trace, *, empty_answers: str = "count as 1 token") -> Trace:
    """Rows in order of arrival, from time 0, with at least one token each way. Raises ConfigError when none is left.

    A row without prompt tokens is not a request and is dropped. A row without output tokens still cost a prefill, so
    it becomes an answer of one token, unless the format means a failure by it (`empty_answers="drop"`).
    """
    trace = trace.without(trace.input_tokens == 0, "dropped: no prompt tokens")
    silent = trace.output_tokens == 0
    if empty_answers == "drop":
        trace = trace.without(silent, "dropped: no answer (failed requests)")
    else:
        trace = replace(trace.counting("0 output tokens, counted as 1", silent))
        trace = replace(trace, output_tokens=np.maximum(trace.output_tokens, 1))
    if not len(trace):
        raise ConfigError("holds no requests", file=trace.path)
    if np.any(np.diff(trace.arrival_ps) < 0):
        trace = replace(trace, notes=(*trace.notes, "rows were not in order of arrival; sorted"))
        trace = trace.where(np.argsort(trace.arrival_ps, kind="stable"))
    return replace(trace, arrival_ps=trace.arrival_ps - trace.arrival_ps[0])


def window(trace: Trace, start_s: float, end_s: float | None) -> Trace:
    """The arrivals from `start_s` (which becomes time 0) to before `end_s`, seconds after the first request."""
    start, end = to_ps(start_s), LATEST_PS if end_s is None else to_ps(end_s)
    inside = (trace.arrival_ps >= start) & (trace.arrival_ps < end)
    if not inside.any():
        raise ConfigError(f"has no request in this window; it spans {trace.span_s:g} s", file=trace.path, key="start_s")
    cut = trace.where(inside)
    return replace(cut, arrival_ps=cut.arrival_ps - start)


def head(trace: Trace, rows: int | None) -> Trace:
    """The first `rows` requests."""
    return trace if rows is None else trace.where(np.arange(min(rows, len(trace))))


def scale(trace: Trace, time: float, input_factor: float, output_factor: float) -> Trace:
    """Time between arrivals and lengths multiplied; a length stays at least 1."""
    if time != 1:
        if trace.span_s * time >= LATEST_PS / PS_PER_S:
            raise ConfigError("stretches the trace beyond the engine's clock", key="time_scale", value=time)
        trace = replace(trace, arrival_ps=np.rint(trace.arrival_ps * time).astype(np.int64))
    return replace(
        trace,
        input_tokens=_scaled(trace.input_tokens, input_factor),
        output_tokens=_scaled(trace.output_tokens, output_factor),
    )


def fit_context(trace: Trace, max_model_len: int | None, policy: str) -> Trace:
    """What happens to rows with more tokens than the model's context; counted under every policy.

    `clip` keeps the prompt where it leaves room for one token, and cuts the answer to what is left, as a server does
    when the client sets no `max_tokens`.
    """
    if max_model_len is None:
        return trace
    long = trace.input_tokens + trace.output_tokens > max_model_len
    if not long.any():
        return trace
    if policy == "fail":
        longest = int((trace.input_tokens + trace.output_tokens).max())
        count = f"{int(long.sum()):,} of {len(trace):,} rows exceed max_model_len ({max_model_len})"
        problem = f"{count}; the longest has {longest} tokens"
        raise ConfigError(problem, file=trace.path, key="on_too_long", value=policy)
    if policy == "drop":
        return trace.without(long, f"dropped: more than max_model_len ({max_model_len}) tokens")
    if policy == "refuse":
        return trace.counting(f"longer than max_model_len ({max_model_len}), will be refused", long)
    prompts = np.minimum(trace.input_tokens, max_model_len - 1)
    answers = np.minimum(trace.output_tokens, max_model_len - prompts)
    trace = trace.counting(f"clipped to max_model_len ({max_model_len})", long)
    return replace(trace, input_tokens=prompts, output_tokens=answers)


def _scaled(tokens: Ints, factor: float) -> Ints:
    return tokens if factor == 1 else np.clip(np.rint(tokens * factor), 1, 2**31 - 1).astype(np.int64)
