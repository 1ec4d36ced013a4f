"""The tables of a plan: as plain values for Parquet and CSV, and as rounded words for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.planner.plan import Plan
from sim.planner.search import Candidate
from sim.planner.study import Study
from sim.report.rows import NOTHING, milliseconds, number, share

Row = dict[str, Any]
BOUNDS: Mapping[str, str] = {
    "memory": "memory bandwidth", "compute": "compute", "link": "links", "launch": "kernel launches",
    "host": "engine on the CPU",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column for people: `show` makes a cell's text of a row, `sort` the number that it is ordered by."""

    title: str
    show: Callable[[Row], str]
    sort: str = ""
    """Key of the row; empty: text."""


def plan_rows(plan: Plan) -> list[Row]:
    """One row per studied fleet, cheapest first."""
    return [_row(plan, key, one) for key, one in ordered(plan)]


def ordered(plan: Plan) -> list[tuple[str, Study]]:
    """The studies, cheapest first, those without a price last; then by GPUs."""

    def rank(item: tuple[str, Study]) -> tuple[float, int]:
        usd = plan.costs[item[0]].usd_per_hour
        return float("inf") if usd is None else usd[1], item[1].gpus

    return sorted(plan.studies.items(), key=rank)


def _row(plan: Plan, key: str, one: Study) -> Row:
    costs, option, anatomy = plan.costs[key], one.candidate.option, one.anatomy
    told = one.observed[0].summary
    usd = costs.usd_per_hour or (None, None, None)
    row: Row = {
        "name": key, "hardware": option.hardware, "configuration": option.label, "replicas": one.replicas,
        "spare_replicas": one.spare, "gpus": one.gpus, "gpus_per_replica": one.candidate.survey.gpus,
        "usd_per_hour": usd[1], "usd_per_hour_low": usd[0], "usd_per_hour_high": usd[2],
        "price_source": option.price.source if option.price else None,
        "usd_per_million_input_tokens": costs.usd_per_million_input_tokens,
        "usd_per_million_output_tokens": costs.usd_per_million_output_tokens,
        "usd_per_million_tokens": costs.usd_per_million_tokens,
        "watts_at_most": costs.watts, "joules_per_output_token_at_most": costs.joules_per_output_token,
        "carbon_g_per_hour": costs.carbon_g_per_hour,
        "output_tokens_per_s_per_gpu": costs.output_tokens_per_s_per_gpu,
        "highest_rate": one.capacity, "confidence": one.confidence,
    }  # fmt: skip
    row |= _ends("highest_rate", one.capacity_interval())
    row |= _ends("replicas", one.least_replicas_interval())
    for name in ("p99_ttft_ms", "p99_tpot_ms", "mean_ttft_ms", "mean_tpot_ms", "p99_e2el_ms"):
        row[name] = told[name]
        row |= _ends(name, one.interval(name))
    if any(key.startswith("e2e") for key in plan.slo):
        ends = {f"e2e_objective_s{end}": row[f"p99_e2el_ms{end}"] for end in ("", "_low", "_high")}
        row |= {key: None if value is None else value / 1e3 for key, value in ends.items()}
    row |= {
        "kv_peak_share": max(o.summary["kv"]["peak_used_share"] for o in one.observed),
        "kv_tokens_per_replica": anatomy.num_kv_tokens, "weight_bytes_per_gpu": anatomy.memory["weight_bytes"],
        "kv_bytes_per_gpu": anatomy.memory["kv_bytes"], "busy_share": told["busy_share"], "regime": told["regime"],
        "trust": one.observed[0].trust, "communication_share": anatomy.communication,
        **{f"bound_by_{name}": anatomy.bounds.get(name, 0.0) for name in BOUNDS},
    }  # fmt: skip
    return row


def _ends(name: str, interval: tuple[float, float | None] | None) -> Row:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def candidate_rows(plan: Plan) -> list[Row]:
    """One row per configuration that was looked at, in the order of preference."""
    return [_candidate(c) for c in plan.found.candidates]


def _candidate(candidate: Candidate) -> Row:
    option, survey, sizing = candidate.option, candidate.survey, candidate.sizing
    outcome = "cannot be built" if survey.problem else "pruned" if sizing is None else "simulated"
    return {
        "hardware": option.hardware, "configuration": option.label,
        **option.settings,
        "outcome": outcome, "gpus": candidate.gpus, "replicas": None if sizing is None else sizing.replicas,
        "gpus_per_replica": survey.gpus or None, "least_gpus_by_bound": survey.least_replicas * survey.gpus or None,
        "usd_per_hour": candidate.usd_per_hour, "kv_blocks": survey.num_blocks or None, "trust": survey.trust or None,
        "why_not": candidate.why_not or None, "simulations": 0 if sizing is None else sizing.simulations,
    }  # fmt: skip


def curve_rows(plan: Plan) -> list[Row]:
    """One row per fleet, rate and seed of the curves."""
    return [
        {
            "name": key, "rate": point.rate, "seed": outcome.seed, "replicas": outcome.replicas,
            "gpus": outcome.summary["gpus"], "holds": outcome.holds, "why_not": outcome.why_not or None,
            "tokens_per_s_per_user": _per_user(outcome.summary),
            "kv_peak_share": outcome.summary["kv"]["peak_used_share"],
            "kv_mean_share": outcome.summary["kv"]["mean_used_share"],
            **{name: outcome.summary[name] for name in (
                "p99_ttft_ms", "p99_tpot_ms", "mean_ttft_ms", "mean_tpot_ms", "output_throughput",
                "output_throughput_per_gpu", "regime")},
        }
        for key, one in ordered(plan) for point in one.curve for outcome in point.outcomes
    ]  # fmt: skip


def _per_user(told: Mapping[str, Any]) -> float | None:
    """Tokens per second that one user sees: 1 / mean TPOT."""
    mean_ms = told["mean_tpot_ms"]
    return None if not mean_ms else 1e3 / mean_ms


def equal_rows(plan: Plan) -> list[Row]:
    """One row per option: a replica at the rate per GPU that all of them share; ranges span the seeds."""
    if plan.equal_load is None:
        return []
    rows = []
    for key, one in ordered(plan):
        gpus = one.candidate.survey.gpus
        row: Row = {"name": key, "hardware": one.candidate.option.hardware, "configuration": one.candidate.option.label,
                    "gpus": gpus, "rate": plan.equal_load.rate_per_gpu * gpus}  # fmt: skip
        for name in ("mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "p99_tpot_ms"):
            values = [float(o.summary[name] or 0.0) for o in plan.equal_load.outcomes[key]]
            row |= {name: values[0], f"{name}_low": min(values), f"{name}_high": max(values)}
        rows.append(row)
    return rows


def day_rows(plan: Plan) -> list[Row]:
    """Replicas needed in each part of the day, from the highest rate that the winner holds; spare ones included."""
    day, winner = plan.traffic.day, plan.winner
    if day is None or winner is None or winner.capacity is None:
        return []
    each = winner.capacity / (winner.replicas - winner.spare) / (1 + plan.request.headroom)
    most = winner.replicas
    return [
        {"from_s": i * day.part_s, "rate": rate, "replicas": min(most, max(1, -int(-rate // each)) + winner.spare)}
        for i, rate in enumerate(day.rates)
    ]


def interval_text(row: Row, name: str, show: Callable[[float], str]) -> str:
    """A number with its interval: `312 (290 to 355)`."""
    value, low, high = row.get(name), row.get(f"{name}_low"), row.get(f"{name}_high")
    if value is None:
        return NOTHING
    if low is None or low == high == value:
        return show(value)
    upper = "more than twice" if high is None else show(high)
    return f"{show(value)} ({show(low)} to {upper})"


def usd(value: float | None) -> str:
    """Dollars with as many digits as people read."""
    return NOTHING if value is None else f"${value:,.2f}" if value >= 0.995 else f"${value:.3f}"


def count(value: float) -> str:
    """A whole number."""
    return f"{value:,.0f}"


def limits_of(row: Row) -> str:
    """What the busy time goes into, the two largest shares first."""
    shares = sorted(((row[f"bound_by_{name}"], words) for name, words in BOUNDS.items()), reverse=True)
    return ", ".join(f"{words} {part:.0%}" for part, words in shares[:2] if part >= 0.005)


PLAN_COLUMNS = (
    Column("GPU", lambda r: r["hardware"]),
    Column("Configuration", lambda r: r["configuration"]),
    Column("Replicas", lambda r: interval_text(r, "replicas", count), "replicas"),
    Column("GPUs", lambda r: count(r["gpus"]), "gpus"),
    Column("USD per hour", lambda r: interval_text(r, "usd_per_hour", usd), "usd_per_hour"),
    Column("Holds up to (req/s)", lambda r: interval_text(r, "highest_rate", lambda v: f"{v:.3g}"), "highest_rate"),
    Column("TTFT p99 (ms)", lambda r: interval_text(r, "p99_ttft_ms", milliseconds_short), "p99_ttft_ms"),
    Column("TPOT p99 (ms)", lambda r: interval_text(r, "p99_tpot_ms", milliseconds_short), "p99_tpot_ms"),
    Column("E2E p99 (s)", lambda r: interval_text(r, "e2e_objective_s", lambda v: f"{v:,.3g}"), "e2e_objective_s"),
    Column("Confidence", lambda r: NOTHING if r["confidence"] is None else f"{r['confidence']:.0%}", "confidence"),
    Column("Trust", lambda r: r["trust"]),
)
COST_COLUMNS = (
    Column("GPU", lambda r: r["hardware"]),
    Column("USD per million input tokens", lambda r: _priced(r, "usd_per_million_input_tokens"),
           "usd_per_million_input_tokens"),
    Column("USD per million output tokens", lambda r: _priced(r, "usd_per_million_output_tokens"),
           "usd_per_million_output_tokens"),
    Column("Power, at most (W)", lambda r: count(r["watts_at_most"]), "watts_at_most"),
    Column("J per output token, at most", lambda r: number(r["joules_per_output_token_at_most"], 2),
           "joules_per_output_token_at_most"),
    Column("gCO2 per hour, at most", lambda r: number(r["carbon_g_per_hour"], 0), "carbon_g_per_hour"),
    Column("Output tokens/s per GPU", lambda r: count(r["output_tokens_per_s_per_gpu"]), "output_tokens_per_s_per_gpu"),
)  # fmt: skip
LIMIT_COLUMNS = (
    Column("GPU", lambda r: r["hardware"]),
    Column("Configuration", lambda r: r["configuration"]),
    Column("Time goes into", limits_of),
    Column("Communication", lambda r: share(r["communication_share"]), "communication_share"),
    Column("KV cache at peak", lambda r: share(r["kv_peak_share"]), "kv_peak_share"),
    Column("KV cache (tokens per replica)", lambda r: count(r["kv_tokens_per_replica"]), "kv_tokens_per_replica"),
    Column("Weights per GPU (GB)", lambda r: number(r["weight_bytes_per_gpu"] / 1e9, 1), "weight_bytes_per_gpu"),
    Column("Busy", lambda r: share(r["busy_share"]), "busy_share"),
    Column("Regime", lambda r: r["regime"]),
)
EQUAL_COLUMNS = (
    Column("GPU", lambda r: r["hardware"]),
    Column("Configuration", lambda r: r["configuration"]),
    Column("GPUs", lambda r: count(r["gpus"]), "gpus"),
    Column("Requests/s", lambda r: f"{r['rate']:.3g}", "rate"),
    *(
        Column(title, lambda r, name=name: interval_text(r, name, milliseconds_short), name)  # type: ignore[misc]
        for name, title in (
            ("mean_ttft_ms", "TTFT mean (ms)"), ("p99_ttft_ms", "TTFT p99 (ms)"),
            ("mean_tpot_ms", "TPOT mean (ms)"), ("p99_tpot_ms", "TPOT p99 (ms)"),
        )
    ),
)  # fmt: skip
CANDIDATE_COLUMNS = (
    Column("GPU", lambda r: r["hardware"]),
    Column("Configuration", lambda r: r["configuration"]),
    Column("Outcome", lambda r: r["outcome"]),
    Column("GPUs", lambda r: NOTHING if r["gpus"] is None else count(r["gpus"]), "gpus"),
    Column("GPUs, at least", lambda r: NOTHING if r["least_gpus_by_bound"] is None else count(r["least_gpus_by_bound"]),
           "least_gpus_by_bound"),
    Column("Why not", lambda r: r["why_not"] or ""),
)  # fmt: skip


def milliseconds_short(value: float) -> str:
    """Three digits: there is an interval beside it."""
    return milliseconds(value) if value < 0.1 else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _priced(row: Row, key: str) -> str:
    """A price per token, and its range over the market's prices per hour."""
    value, mid = row[key], row["usd_per_hour"]
    if value is None or not mid:
        return NOTHING
    low, high = (value * row[f"usd_per_hour_{end}"] / mid for end in ("low", "high"))
    return f"{usd(value)} ({usd(low)} to {usd(high)})" if high > low else usd(value)


def told(columns: Iterable[Column], rows: Sequence[Row]) -> tuple[Column, ...]:
    """The columns that say anything about these rows."""
    return tuple(column for column in columns if any(column.show(row) != NOTHING for row in rows))


def cells(columns: Iterable[Column], rows: Iterable[Row]) -> list[list[tuple[str, Any]]]:
    """Text and sorting value of every cell."""
    columns = tuple(columns)
    return [[(column.show(row), row.get(column.sort) if column.sort else None) for column in columns] for row in rows]
