"""Requests -> a trace file in one of the field's formats."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from sim.errors import ConfigError
from sim.request import Request
from sim.units import PS_PER_S, ceil_div
from sim.workloads.base import Workload
from sim.workloads.closed_loop import ClosedLoopClients
from sim.workloads.queries import Queries
from sim.workloads.sessions import Sessions
from sim.workloads.trace_csv import PS_PER_MS, PS_PER_NS
from sim.workloads.trace_table import BY_THE_CLOCK, Trace

_AZURE_DAY = datetime(2000, 1, 1)
_FIRST_OWN_HASH = 2**40


class Record(NamedTuple):
    """One row of a trace: `delay_ps` is BY_THE_CLOCK, or the time after the answer to the session's previous row."""

    number: int
    arrival_ps: int
    input_tokens: int
    output_tokens: int
    prefix_hashes: tuple[int, ...] = ()
    prefix_block_tokens: int = 0
    session: str = ""
    delay_ps: int = BY_THE_CLOCK


@dataclass(frozen=True)
class TraceWriter:
    """How one format spells a record. `line_end` is that of the original files."""

    line: Callable[[Record], str]
    header: str = ""
    line_end: str = "\n"
    has_sessions: bool = False


def records_of_trace(trace: Trace) -> Iterator[Record]:
    """The rows of a trace in its order."""
    for row in range(len(trace)):
        yield Record(
            row,
            int(trace.arrival_ps[row]),
            int(trace.input_tokens[row]),
            int(trace.output_tokens[row]),
            () if trace.prefix_hashes is None else trace.prefix_hashes[row],
            trace.prefix_block_tokens,
            "" if trace.session is None else trace.session[row],
            BY_THE_CLOCK if trace.delay_ps is None else int(trace.delay_ps[row]),
        )


def records_of_workload(workload: Workload) -> Iterator[Record]:
    """The requests of open-loop traffic. Raises ConfigError when the answers decide when requests are sent."""
    if isinstance(workload, ClosedLoopClients):
        raise ConfigError("has no arrival times before a server answers", key="arrival.kind", value="closed_loop")
    if isinstance(workload, Sessions):
        raise ConfigError("have no arrival times before a server answers", key="sessions")
    if isinstance(workload, Queries):
        raise ConfigError("has no arrival times before a server answers", key="application")
    return map(_record, workload)


def write_trace(records: Iterable[Record], out: Path, form: str) -> int:
    """Write `out` in a format of WRITERS and return the number of rows; on any error `out` stays as it was."""
    writer, rows = WRITERS[form], 0
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            file.write(writer.header + writer.line_end if writer.header else "")
            for record in records:
                _check(record, writer, form)
                file.write(writer.line(record) + writer.line_end)
                rows += 1
        unfinished.replace(out)
    except OSError as error:
        raise ConfigError(f"cannot be written ({error.strerror})", file=out) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return rows


def _record(request: Request) -> Record:
    traits = request.traits
    # The true length is hidden from policies; here the traffic itself is written down.
    return Record(
        request.id, request.arrival_ps, request.prompt_tokens, request._output_tokens,
        traits.prefix_hashes, traits.prefix_block_tokens, traits.session,
    )  # fmt: skip


def _check(record: Record, writer: TraceWriter, form: str) -> None:
    if record.delay_ps != BY_THE_CLOCK and not writer.has_sessions:
        able = [name for name, other in WRITERS.items() if other.has_sessions]
        raise ConfigError("cannot say that a turn waits for an answer", key="--to", value=form, choices=able)


def _mooncake(record: Record) -> str:
    row: dict[str, Any] = {"timestamp": _units(record.arrival_ps, PS_PER_MS)}
    if record.delay_ps != BY_THE_CLOCK:
        row = {"delay": _units(record.delay_ps, PS_PER_MS)}
    if record.session:
        row = {"session_id": record.session, **row}
    row |= {"input_length": record.input_tokens, "output_length": record.output_tokens}
    if record.prefix_block_tokens:
        row["hash_ids"] = list(_all_blocks(record))
    return json.dumps(row)


def _all_blocks(record: Record) -> tuple[int, ...]:
    """One hash per block of the prompt: what follows a shared beginning is nobody else's."""
    own = ceil_div(record.input_tokens, record.prefix_block_tokens) - len(record.prefix_hashes)
    start = _FIRST_OWN_HASH + record.number * 2**20
    return record.prefix_hashes + tuple(range(start, start + own))


def _llmservingsim(record: Record) -> str:
    arrival = round(record.arrival_ps / PS_PER_NS)
    row = {"input_toks": record.input_tokens, "output_toks": record.output_tokens, "arrival_time_ns": arrival}
    return json.dumps(row)


def _azure(record: Record) -> str:
    """Wall-clock time from an arbitrary midnight, with the 7 digits (100 ns) of the originals."""
    ticks = round(record.arrival_ps / 10**5)
    day = _AZURE_DAY + timedelta(seconds=ticks // 10**7)
    return f"{day:%Y-%m-%d %H:%M:%S}.{ticks % 10**7:07d},{record.input_tokens},{record.output_tokens}"


def _seconds(record: Record) -> str:
    whole, part = divmod(record.arrival_ps, PS_PER_S)
    return f"{whole}.{part:012d}".rstrip("0").rstrip(".") if part else str(whole)


def _units(picoseconds: int, unit_ps: int) -> int | float:
    return picoseconds / unit_ps if picoseconds % unit_ps else picoseconds // unit_ps


WRITERS: Mapping[str, TraceWriter] = {
    "plain": TraceWriter(
        lambda r: f"{_seconds(r)},{r.input_tokens},{r.output_tokens}", "arrival_s,input_tokens,output_tokens"
    ),
    "mooncake": TraceWriter(_mooncake, has_sessions=True),
    "azure": TraceWriter(_azure, "TIMESTAMP,ContextTokens,GeneratedTokens", line_end="\r\n"),
    "vidur": TraceWriter(
        lambda r: f"{_seconds(r)},{r.input_tokens},{r.output_tokens}", "arrived_at,num_prefill_tokens,num_decode_tokens"
    ),
    "splitwise-sim": TraceWriter(
        lambda r: f"{r.number},2,0,{_seconds(r)},1,{r.input_tokens},{r.output_tokens}",
        "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size",
    ),
    "llmservingsim": TraceWriter(_llmservingsim),
}
