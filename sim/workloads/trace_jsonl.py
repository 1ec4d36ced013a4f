"""Traces with one JSON object per line: Mooncake, Qwen-Bailian and LLMServingSim."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sim.documents import parse_json
from sim.errors import ConfigError
from sim.units import PS_PER_S, ceil_div
from sim.workloads.arrivals import LATEST_PS
from sim.workloads.lengths import MOST_TOKENS
from sim.workloads.trace_csv import PS_PER_MS, PS_PER_NS
from sim.workloads.trace_table import BY_THE_CLOCK, Trace, elapsed_ps, normalise

_LARGEST = 2**63 - 1
_BLOCK_SIZES = (512, 64, 16)


@dataclass
class _Line:
    """One JSON object and where it stands, with checked access to its numbers."""

    path: Path
    number: int
    data: dict[str, Any]

    def tokens(self, key: str) -> int:
        """A token count. Raises ConfigError naming file, line and key when it is none."""
        value = self.amount(key)
        if value != int(value):
            raise self.error("is not a whole number of tokens", key)
        if value > MOST_TOKENS:
            raise self.error("is more tokens than can be counted", key)
        return int(value)

    def amount(self, key: str) -> int | float:
        """A number. Raises ConfigError naming file, line and key when it is none."""
        if key not in self.data:
            raise ConfigError("is required but missing", file=self.path, line=self.number, key=key)
        value = self.data[key]
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or value != value
            or abs(value) == float("inf")
        ):
            raise self.error("is not a number", key)
        if value < 0:
            raise self.error("is negative", key)
        if value > _LARGEST:
            raise self.error("is too large", key)
        return value

    def delay_ps(self, key: str, unit_ps: int) -> int:
        delay = round(self.amount(key) * unit_ps)
        if delay > LATEST_PS:
            raise self.error("is longer than the clock can count", key)
        return delay

    def error(self, problem: str, key: str) -> ConfigError:
        return ConfigError(problem, file=self.path, line=self.number, key=key, value=self.data[key])


@dataclass
class _Rows:
    """Rows while they are read; times in the file's own unit."""

    times: list[int | float] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    hashes: list[tuple[int, ...]] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    delays: list[int] = field(default_factory=list)

    def add(self, time: int | float, prompt: int, answer: int, session: str = "", delay_ps: int = BY_THE_CLOCK) -> None:
        """One request: its time in the file's unit, its lengths in tokens, and whom it follows."""
        self.times.append(time)
        self.prompts.append(prompt)
        self.answers.append(answer)
        self.sessions.append(session)
        self.delays.append(delay_ps)

    def trace(self, form: str, path: Path, unit_ps: int) -> Trace:
        """The trace, not yet normalised."""
        delays = np.array(self.delays, np.int64)
        chained = bool((delays != BY_THE_CLOCK).any())
        return Trace(
            format=form,
            path=path,
            arrival_ps=elapsed_ps(_exact(self.times), unit_ps, path),
            input_tokens=np.array(self.prompts, np.int64),
            output_tokens=np.array(self.answers, np.int64),
            rows_read=len(self.times),
            session=_objects(self.sessions) if any(self.sessions) else None,
            delay_ps=delays if chained else None,
            notes=("later turns of a session are sent after the answer to the one before",) if chained else (),
        )


def read_jsonl(path: Path) -> Trace:
    """A JSONL trace; the keys of its first line say which. Raises ConfigError naming file, line, key and value."""
    lines = list(_lines(path))
    if not lines:
        raise ConfigError("is empty", file=path)
    keys = lines[0].data
    if "sub_requests" in keys or "input_toks" in keys:
        return _llmservingsim(path, lines)
    if "chat_id" in keys:
        return _hashed(path, lines, "qwen-bailian", PS_PER_S)
    if "input_length" in keys:
        return _hashed(path, lines, "mooncake", PS_PER_MS)
    raise ConfigError(
        "is in no known JSONL trace format", file=path, line=lines[0].number, key="keys", value=",".join(keys),
        choices=("input_length (Mooncake)", "input_toks (LLMServingSim)", "chat_id (Qwen-Bailian)"),
    )  # fmt: skip


def _lines(path: Path) -> Iterator[_Line]:
    for number, text in enumerate(read_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        data = parse_json(text, path, number)
        if not isinstance(data, dict):
            raise ConfigError("is not a JSON object", file=path, line=number)
        yield _Line(path, number, data)


def read_text(path: Path) -> str:
    """The whole file, unpacked when its name ends in .gz. Raises ConfigError when it is unreadable."""
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        reason = (
            "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None) or error
        )
        raise ConfigError(f"cannot be read ({reason})", file=path) from error


def _hashed(path: Path, lines: list[_Line], form: str, unit_ps: int) -> Trace:
    """Mooncake (milliseconds) and Qwen-Bailian (seconds): lengths and the identity of every block of the prompt.

    In the extended Mooncake form a line with `session_id` and `delay` arrives that long after the previous line of its
    session was answered.
    """
    rows, last_of_session = _Rows(), dict[str, int | float]()
    for line in lines:
        session = str(line.data.get("session_id") or line.data.get("chat_id", ""))
        waits = "session_id" in line.data and session in last_of_session and "delay" in line.data
        time = last_of_session[session] if waits else line.amount("timestamp") if "timestamp" in line.data else 0
        if "timestamp" not in line.data and "session_id" not in line.data:
            line.amount("timestamp")
        last_of_session[session] = time
        rows.add(time, line.tokens("input_length"), line.tokens("output_length"),
                 session, line.delay_ps("delay", unit_ps) if waits else BY_THE_CLOCK)  # fmt: skip
        rows.hashes.append(_hash_ids(line))
    return normalise(_with_prefixes(rows.trace(form, path, unit_ps), rows))


def _hash_ids(line: _Line) -> tuple[int, ...]:
    hashes = line.data.get("hash_ids") or []
    if not isinstance(hashes, list) or not all(type(h) is int for h in hashes):
        raise line.error("is not a list of whole numbers", "hash_ids")
    return tuple(hashes)


def _with_prefixes(trace: Trace, rows: _Rows) -> Trace:
    """The block size is the one for which every row has as many hashes as its prompt has blocks."""
    if not any(rows.hashes):
        return trace
    for size in _BLOCK_SIZES:
        if all(len(h) in (ceil_div(n, size), n // size) for h, n in zip(rows.hashes, rows.prompts, strict=True)):
            return replace(trace, prefix_hashes=_objects(rows.hashes), prefix_block_tokens=size)
    sizes = ", ".join(map(str, _BLOCK_SIZES))
    note = f"hash_ids ignored: their number fits no block size ({sizes} tokens) on every row"
    return replace(trace, notes=(*trace.notes, note))


def _llmservingsim(path: Path, lines: list[_Line]) -> Trace:
    """LLMServingSim (nanoseconds): flat rows, and agents that call tools between their sub-requests."""
    rows = _Rows()
    for line in lines:
        time = line.amount("arrival_time_ns")
        if "sub_requests" not in line.data:
            rows.add(time, line.tokens("input_toks"), line.tokens("output_toks"))
            continue
        delay = BY_THE_CLOCK
        for call in _calls(line):
            session = str(line.data.get("session_id", f"line {line.number}"))
            rows.add(time, call.tokens("input_toks"), call.tokens("output_toks"), session, delay)
            delay = call.delay_ps("tool_duration_ns", PS_PER_NS) if "tool_duration_ns" in call.data else 0
    return normalise(rows.trace("llmservingsim", path, PS_PER_NS))


def _calls(line: _Line) -> list[_Line]:
    calls = line.data["sub_requests"]
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise line.error("is not a list of sub-requests", "sub_requests")
    return [_Line(line.path, line.number, call) for call in calls]


def _exact(times: list[int | float]) -> Any:
    return np.array(times, np.int64 if all(isinstance(t, int) for t in times) else np.float64)


def _objects(items: list[Any]) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    """One object per row, also when all rows are tuples of one length (which numpy would make a matrix)."""
    column = np.empty(len(items), object)
    column[:] = items
    return column
