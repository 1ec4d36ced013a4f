"""An explanation as titled tables of text: the rows that the terminal and the page share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.explain.request_time import PARTS
from sim.report.rows import NOTHING, milliseconds, number, share

_MOST_OPERATORS = 12
_BOUND_WORDS: Mapping[str, str] = {"memory": "HBM"}
_TOO_SHORT = "These runs end before a steady state: a bigger --requests will find less, the ratios change little."
METRICS: Mapping[str, str] = {"ttft": "TTFT", "e2el": "E2E", "tpot": "TPOT"}


@dataclass(frozen=True)
class TextTable:
    """A table ready to be shown; the first `words` columns are text, the others figures."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1


def explanation_tables(found: Mapping[str, Any]) -> Iterator[TextTable]:
    """The tables of an explained run (`Explanation.as_dict()`)."""
    yield _phases(found["phases"])
    yield _operators(found["operators"])
    if found["latency"]:
        yield _latency(found["latency"])
    yield _bounds(found["bound"]["shares"])
    if found["changes"]:
        yield _changes(found["changes"])


def _phases(rows: Sequence[Mapping[str, Any]]) -> TextTable:
    headings = ("Phase", "bound by", "s", "share", "TFLOP", "GB", "FLOP/byte", "MFU", "MBU")
    cells = [
        (row["phase"], _bound(row), number(row["seconds"]), share(row["share"]), _amount(row["tflop"]),
         _amount(row["gigabytes"]), _amount(row["flops_per_byte"]), share(row["compute_utilisation"]),
         share(row["bandwidth_utilisation"]))
        for row in rows
    ]  # fmt: skip
    return TextTable("Phases, one GPU of each replica", headings, cells, words=2)


def _operators(rows: Sequence[Mapping[str, Any]]) -> TextTable:
    headings = ("Phase", "Operator", "bound by", "s", "share", "TFLOP", "GB", "FLOP/byte")
    largest = sorted(rows, key=lambda row: -row["seconds"])[:_MOST_OPERATORS]
    cells = [
        (row["phase"], row["operator"], _bound(row), number(row["seconds"]), share(row["share"]),
         _amount(row["tflop"]), _amount(row["gigabytes"]), _amount(row["flops_per_byte"]))
        for row in largest
    ]  # fmt: skip
    rest = sum(row["share"] for row in rows) - sum(row["share"] for row in largest)
    title = "Operators by time" + (
        f" ({len(rows) - len(largest)} more: {rest:.1%})" if len(rows) > len(largest) else ""
    )
    return TextTable(title, headings, cells, words=3)


def _amount(value: float | None) -> str:
    return NOTHING if not value else number(value, 0 if value >= 1000 else 1)


def _bound(row: Mapping[str, Any]) -> str:
    return _BOUND_WORDS.get(row["bound"], row["bound"])


def _latency(rows: Sequence[Mapping[str, Any]]) -> TextTable:
    shown = [part for part in PARTS if any(row[part] > 0 for row in rows)]
    cells = [
        (f"{METRICS[row['metric']]} p{row['percentile']}", milliseconds(row["seconds"] * 1e3),
         *(milliseconds(row[part] * 1e3) for part in shown), f"{row['prompt_tokens']:,}", f"{row['output_tokens']:,}")
        for row in rows
    ]  # fmt: skip
    return TextTable("Single requests (ms)", ("Request at", "latency", *shown, "prompt", "output"), cells)


def _bounds(shares: Mapping[str, float]) -> TextTable:
    words = {
        "compute": "compute", "hbm": "HBM", "interconnect": "interconnect", "host": "host", "launch": "kernel launch",
        "idle": "idle", "kv_capacity": "somebody waits for KV blocks", "queue": "somebody waits for a seat",
    }  # fmt: skip
    cells = [(words[name], share(value)) for name, value in shares.items()]
    return TextTable("Time by what it waited for", ("", "share"), cells)


def _changes(rows: Sequence[Mapping[str, Any]]) -> TextTable:
    headings = ("Change", "GPUs", "req/s", "gain", "per cost", "TTFT now", "TPOT now")
    cells = []
    for row in rows:
        if "skipped" not in row:
            cells.append((
                row["change"], str(row["gpus"]), number(row["requests_per_s"]), times(row["gain"]),
                times(row["gain_per_cost"]), milliseconds(row["p99_ttft_ms"]), milliseconds(row["p99_tpot_ms"]),
            ))  # fmt: skip
    return TextTable(
        "Changes, simulated: most requests/s within the objectives, and p99 (ms) at this load (now)", headings, cells
    )


def times(gain: float | None) -> str:
    """A gain as people say it."""
    return NOTHING if gain is None else f"{gain:.2f}x"


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What an explained run says in short."""
    served, best = found["served_within_objectives"], found["next_best_change"]
    lines = [f"Bound by {found['bound']['verdict']}."]
    if served is not None:
        objectives = ", ".join(f"{line['key']} {line['limit_ms']:g}" for line in found["slo"])
        assumed = " (assumed: the scenario states none)" if found["objectives_assumed"] else ""
        most = (
            f"serves {served['requests_per_s']:,.2f} requests/s, {served['times_this_load']:.2f} times this load"
            if served["requests_per_s"]
            else "meets its objectives under no load"
        )
        lines.append(f"As it is, the system {most}; objectives: {objectives}{assumed}.")
        lines += [] if served["steady_state"] else [_TOO_SHORT]
    if found["changes"]:
        lines.append(f"Next best change: {_best(best)}." if best else "No change that was tried helps.")
    return lines


def _best(best: Mapping[str, Any]) -> str:
    settings = " ".join(f"--set {_setting(key, value)}" for key, value in best["settings"].items())
    gain = "meets the objectives" if best["gain"] is None else f"{times(best['gain'])} the traffic"
    cost = best["gain_per_cost"]
    spent = f", {times(cost)} for the same money" if cost is not None and abs(cost / best["gain"] - 1) > 0.01 else ""
    return f"{best['change']} ({settings}): {gain}{spent}"


def _setting(key: str, value: Any) -> str:
    """As it may be typed."""
    if not isinstance(value, Mapping):
        return f"{key}={value}"
    return f"'{key}={{{', '.join(f'{name}: {part}' for name, part in value.items())}}}'"


def skipped_lines(found: Mapping[str, Any]) -> list[str]:
    """Changes or techniques that were not tried, and why."""
    skipped = found.get("skipped")
    if skipped is None:
        skipped = {row["change"]: row["skipped"] for row in found["changes"] if "skipped" in row}
    return [f"{name}: {reason}" for name, reason in skipped.items()]


def waterfall_tables(found: Mapping[str, Any]) -> Iterator[TextTable]:
    """The tables of a waterfall (`Waterfall.as_dict()`)."""
    headings = ("Technique", "req/s", "gain", "TTFT p99", "TPOT p99", "TTFT now", "TPOT now")
    yield TextTable(
        "One technique more each: p99 (ms) at the most that meets the objectives, and at this load (now)", headings,
        [(_plus(row, i), number(row["requests_per_s"]), times(row["gain"]), *_step_cells(row))
         for i, row in enumerate(found["steps"])],
    )  # fmt: skip
    yield TextTable(
        "Everything on but one", ("Technique off", "req/s", "of the best", *headings[3:]),
        [(row["name"], number(row["requests_per_s"]), share(row["share_of_best"]), *_step_cells(row))
         for row in found["without"]],
    )  # fmt: skip


def _plus(row: Mapping[str, Any], i: int) -> str:
    return f"+ {row['name']}" if i else str(row["name"])


def _step_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    now = row["at_this_load"]
    return (
        milliseconds(row["p99_ttft_ms"]), milliseconds(row["p99_tpot_ms"]),
        milliseconds(now["p99_ttft_ms"]), milliseconds(now["p99_tpot_ms"]),
    )  # fmt: skip


def waterfall_sentences(found: Mapping[str, Any]) -> list[str]:
    """What a waterfall says in short."""
    objectives = ", ".join(f"{key} {limit:g}" for key, limit in found["objectives"].items())
    assumed = " (assumed: the scenario states none)" if found["objectives_assumed"] else ""
    best = found["steps"][-1]["requests_per_s"]
    worth = [row for row in found["without"] if row["share_of_best"] is not None]
    lines = [
        f"Objectives: {objectives}{assumed}; max_model_len {found['max_model_len']:,}.",
        f"Everything on serves {best:,.2f} requests/s within them." if best else "Nothing meets them.",
    ]
    lines += [] if found["steady_state"] else [_TOO_SHORT]
    if worth:
        most = min(worth, key=lambda row: row["share_of_best"])
        lines.append(f"Worth most where all others are on: {most['name']} ({most['share_of_best']:.0%} without it).")
    return lines
