"""What a summary says in words and rounded numbers: the rows that the terminal table and the page share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sim.results import RunResult
from sim.units import human_bytes

Row = tuple[str, str]
NOTHING = "-"
LATENCIES: Mapping[str, str] = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
PHASES: Mapping[str, str] = {
    "queue_time": "Waiting for admission",
    "prefill_time": "Prefill (admission to first token)",
    "decode_time": "Decode (first to last token)",
    "preempted_time": "Preempted",
}
CLIENT: Mapping[str, str] = {
    "client_ttft": "TTFT at the client",
    "client_tpot": "TPOT at the client",
    "client_e2el": "E2E at the client",
}
MEMORY_PARTS: Mapping[str, str] = {
    "weight_bytes": "weights",
    "activation_bytes": "activation peak",
    "cuda_graph_bytes": "CUDA graphs",
    "framework_bytes": "framework",
    "kv_bytes": "KV cache",
    "unused_bytes": "left alone",
}
"""Key of `facts.memory` -> what people call it, in order of address."""
STATISTICS: Mapping[str, str] = {"mean": "Mean", "median": "Median", "p90": "P90", "p95": "P95", "p99": "P99"}
KV_USES: Mapping[str, str] = {
    "filled": "filled with tokens",
    "reserved": "reserved for tokens to come",
    "internal_fragmentation": "never filled",
}
"""Key of a summary's `kv`, less `mean_` and `_share_of_used` -> what people call it."""
WHOLE_RUN = "whole run, not a steady state"
TRUST: Mapping[str, str] = {
    "validated": "checked against measurements of a real server",
    "calibrated": "operator times fitted to measurements on this GPU and software stack",
    "extrapolated": "operator times carried over from another software stack or GPU of the same architecture",
    "datasheet": "datasheet limits with default efficiencies; nothing here was measured",
}


@dataclass(frozen=True)
class SloRow:
    """One objective in words; limit and observed value in milliseconds."""

    objective: str
    limit: str
    observed: str
    verdict: str
    met: bool


def number(value: float | None, digits: int = 2) -> str:
    """Thousands separated, a dash for what was not observed."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def milliseconds(value: float | None) -> str:
    """Two decimals as vLLM prints them, fewer where they would say nothing."""
    return NOTHING if value is None else number(value, 2 if value < 1e3 else 1 if value < 1e4 else 0)


def share(value: float | None) -> str:
    """A share of one as a percentage."""
    return NOTHING if value is None else f"{value:.1%}"


def percentile_note(summary: Mapping[str, Any]) -> str:
    """How latency percentiles must be labelled: empty when the run was a steady state."""
    return "" if summary["steady_state"] else WHOLE_RUN


def setting(result: RunResult) -> list[Row]:
    """What was simulated, in the words of the scenario."""
    scenario: Mapping[str, Any] = result.manifest.get("scenario") or {}
    facts, engine = result.facts, scenario.get("engine") or {}
    trust = str(facts.get("trust") or "unknown")
    rows = [
        ("Model", _text(facts.get("model") or scenario.get("model"))),
        ("Hardware", f"{facts.get('gpus', '?')} x {_text(facts.get('hardware') or scenario.get('hardware'))}"),
        ("Replicas", _replicas(scenario, facts)),
        ("Engine", _engine(engine)),
        ("Workload", _workload(scenario, facts)),
        ("Trust", f"{trust}: {TRUST[trust]}" if trust in TRUST else trust),
        ("Runs like this", _envelope(facts.get("envelope"))),
    ]
    return [(label, text) for label, text in rows if text]


def _envelope(cell: Any) -> str:
    """How far runs of the kind were off when their model was left out of the fit; empty where none was measured."""
    if not isinstance(cell, Mapping):
        return ""
    kind = f"{cell['model_class']}, {cell['gpu']}, {cell['engine']}, {cell['traffic']}"
    errors = [
        f"{name} {found['median_pct']:.0f} % (nine in ten within {found['p90_pct']:.0f} %)"
        for name, found in cell["errors"].items()
    ]
    return f"{cell['runs']} of {cell['models']} models ({kind}) were off by {', '.join(errors)}"


def totals(summary: Mapping[str, Any]) -> list[Row]:
    """The rows of vLLM's ` Serving Benchmark Result `, in its order, and ours after them."""
    rows = [
        ("Successful requests", number(summary["completed"], 0)),
        ("Failed requests", number(summary["failed"], 0)),
        *((f"  {reason.replace('_', ' ')}", number(count, 0)) for reason, count in summary["failures"].items()),
        ("Benchmark duration (s)", number(summary["duration"])),
        ("Total input tokens", number(summary["total_input_tokens"], 0)),
        ("Total generated tokens", number(summary["total_output_tokens"], 0)),
        ("Request throughput (req/s)", number(summary["request_throughput"])),
        ("Request goodput (req/s)", number(summary["request_goodput"])),
        ("Output token throughput (tok/s)", number(summary["output_throughput"])),
        ("Peak output token throughput (tok/s)", number(summary["max_output_tokens_per_s"], 0)),
        ("Peak concurrent requests", number(summary["max_concurrent_requests"], 0)),
        ("Total token throughput (tok/s)", number(summary["total_token_throughput"])),
        ("Output token throughput per GPU (tok/s)", number(summary["output_throughput_per_gpu"])),
        ("USD per million output tokens", number(summary["usd_per_million_output_tokens"], 3)),
        ("Unfinished requests", number(summary["unfinished"], 0)),
    ]
    optional = {"Request goodput (req/s)", "USD per million output tokens", "Output token throughput per GPU (tok/s)"}
    dropped = {label for label, text in rows if label in optional and text == NOTHING}
    dropped |= {"Unfinished requests"} if not summary["unfinished"] else set()
    return [row for row in rows if row[0] not in dropped]


def latencies(summary: Mapping[str, Any], metrics: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Metric and its statistics in milliseconds; time spent preempted, and at the client, only where there was any."""
    return [
        (title, [milliseconds(summary[f"{statistic}_{metric}_ms"]) for statistic in STATISTICS])
        for metric, title in metrics.items()
        if f"mean_{metric}_ms" in summary and (metric != "preempted_time" or summary["num_preemptions"])
    ]


def _guesses(summary: Mapping[str, Any]) -> list[Row]:
    if summary.get("spec_decode_acceptance_length") is None:
        return []
    length, rate = summary["spec_decode_acceptance_length"], summary["spec_decode_acceptance_rate"]
    return [("Tokens per verification", number(length)), ("  guesses accepted", share(rate / 100))]


def batching(summary: Mapping[str, Any]) -> list[Row]:
    """How the replicas worked: batches, busy time, KV cache, preemptions."""
    kv, cache = summary["kv"], summary["prefix_cache"]
    return [
        ("Steps", number(summary["num_steps"], 0)),
        ("Mean batch size (sequences)", number(summary["mean_batch_size"])),
        ("Largest batch", number(summary["max_batch_size"], 0)),
        *_guesses(summary),
        ("Time with a step in progress", share(summary["busy_share"])),
        ("KV blocks, all replicas", number(kv["num_blocks"], 0)),
        ("KV blocks in use, mean / peak", f"{share(kv['mean_used_share'])} / {share(kv['peak_used_share'])}"),
        ("KV blocks refused to the queue's head, mean", share(kv["mean_stranded_share"])),
        *([("KV saved by sharing, mean", share(kv["shared_fraction"]))] if kv["shared_fraction"] else []),
        *((f"  of the blocks in use, {what}", share(kv[f"mean_{key}_share_of_used"])) for key, what in KV_USES.items()),
        ("Prompt tokens from the prefix cache", share(cache["token_hit_ratio"])),
        *((f"  loaded from {tier['name']}", share(tier["share_of_prompts"])) for tier in cache["tiers"]),
        ("Preemptions", f"{summary['num_preemptions']:,} ({summary['requests_preempted']:,} requests)"),
        ("Longest wait for admission (ms)", milliseconds(summary["longest_wait_ms"])),
        *_copies(summary),
        *_client(summary.get("client")),
        *_queries(summary.get("queries")),
    ]


def _queries(queries: Mapping[str, Any] | None) -> list[Row]:
    """What became of an application's questions; nothing where every request is one."""
    if queries is None:
        return []
    return [
        ("Questions answered / failed", f"{queries['answered']:,} / {queries['failed']:,}"),
        ("Question to answer, mean (s)", number(queries["mean_latency_s"])),
        ("Question to answer, p50 / p99 (s)",
         f"{number(queries['p50_latency_s'])} / {number(queries['p99_latency_s'])}"),
    ]  # fmt: skip


def _client(client: Mapping[str, Any] | None) -> list[Row]:
    """How answers travelled; nothing where the scenario does not say."""
    if client is None:
        return []
    return [
        (f"Answers by {client['response'].replace('_', ' ')} over {client['protocol']}, messages per request",
         number(client["messages_per_request"], 1)),
        ("Round trips per request", number(client["round_trips_per_request"], 1)),
        ("Bytes on the wire per output token", number(client["wire_bytes_per_output_token"], 1)),
    ]  # fmt: skip


def _copies(summary: Mapping[str, Any]) -> list[Row]:
    """Keys and values that moved between memories, and what each pool did; nothing where nothing could move."""
    rows = [
        (
            f"Time with a step in progress, {pool['name']} ({pool['gpus']} x {pool['hardware']})",
            share(pool["busy_share"]),
        )
        for pool in summary.get("pools") or ()
    ]
    handoff, swap = summary.get("handoff"), summary.get("swap")
    if handoff:
        rows.append(("Keys and values handed over", human_bytes(handoff["copied_bytes"])))
    if swap:
        rows += [
            ("Preemptions swapped / with the host full", f"{swap['swaps']:,} / {swap['host_full']:,}"),
            ("Swapped out", human_bytes(swap["swapped_out_bytes"])),
            ("Stalled by copies, all replicas (s)", number(swap["stalled_s"])),
        ]
    return rows


TENANT_HEADINGS = ("Tenant", "Priority", "Completed", "Output tokens", "TTFT mean", "TTFT p99", "Longest wait")


def tenants(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What each tenant received, times in milliseconds; nothing where there is only one."""
    return [
        (
            line["tenant"],
            str(line["priority"]),
            f"{line['completed']:,} of {line['requests']:,}",
            number(line["output_tokens"], 0),
            *(milliseconds(line[key]) for key in ("mean_ttft_ms", "p99_ttft_ms", "longest_wait_ms")),
        )
        for line in summary["tenants"]
    ]


def memory(result: RunResult) -> list[Row]:
    """One GPU's memory."""
    plan: Mapping[str, Any] = result.facts.get("memory") or {}
    parts = [(f"  {label}", human_bytes(plan[key])) for key, label in MEMORY_PARTS.items() if plan.get(key)]
    return (
        [("Memory of one GPU", human_bytes(plan["total_bytes"])), *parts] if parts and "total_bytes" in plan else parts
    )


def notes(summary: Mapping[str, Any], result: RunResult) -> list[str]:
    """What the reader must know beyond the numbers."""
    cut = (
        [f"The run was interrupted: {summary['unfinished']:,} requests are unfinished."]
        if summary["interrupted"]
        else []
    )
    return [*cut, *(str(note) for note in result.facts.get("notes") or ())]


def intervals(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Metric, the value of this run, and the interval over repetitions; empty without repetitions."""
    stated: Mapping[str, Any] = (summary.get("intervals") or {}).get("metrics") or {}
    return [
        (_metric_name(name), number(summary[name]), number(low), number(high)) for name, (low, high) in stated.items()
    ]


def intervals_title(summary: Mapping[str, Any]) -> str:
    """How the intervals came about; empty without repetitions."""
    stated = summary.get("intervals") or {}
    if not stated:
        return ""
    return f"{stated['level']:.0%} intervals, {stated['repetitions']} repetitions with other seeds and operator times"


def _metric_name(key: str) -> str:
    names = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2E"}
    words = [names.get(word, word) for word in key.split("_")]
    return f"{words[0]} {words[1]} (ms)" if words[-1] == "ms" else " ".join(words)


def attainment(summary: Mapping[str, Any]) -> str:
    """Goodput's share in words; empty when nothing came to an end."""
    reached = summary["slo_attainment"]
    return "" if reached is None else f"{share(reached)} of the requests meet all limits"


def objectives(summary: Mapping[str, Any]) -> list[SloRow]:
    """Each SLO with the verdict, and by how much it was met or missed."""
    rows = []
    for line in summary["slo"]:
        name = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2E", "queue_time": "queue"}[line["metric"]]
        objective = f"{name} {line['statistic']}"
        limit, observed = (milliseconds(line[key]) for key in ("limit_ms", "observed_ms"))
        rows.append(SloRow(objective, limit, observed, _by_how_much(line), line["met"]))
    return rows


def _by_how_much(line: Mapping[str, Any]) -> str:
    if line["observed_ms"] is None:
        return "not met: nothing completed"
    ratio = line["observed_ms"] / line["limit_ms"] if line["limit_ms"] else float("inf")
    if line["met"]:
        return f"met, with {1 - ratio:.0%} to spare"
    return f"missed by {ratio - 1:.0%}" if ratio < 3 else f"missed: {ratio:,.1f} times the limit"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("name") or value.get("kind") or "inline")
    return "" if value is None else str(value)


def _engine(engine: Mapping[str, Any]) -> str:
    parts = [
        _text(engine.get("preset")),
        f"{_text(engine.get('scheduler'))} scheduler" if engine.get("scheduler") else "",
    ]
    kv = engine.get("kv_cache") or {}
    parts.append(f"{_allocator(kv['allocator'])} KV" if kv.get("allocator") else "")
    parts.append(_quantization(engine.get("quantization")))
    for key in ("max_num_seqs", "max_num_batched_tokens"):
        parts.append(f"{key} {engine[key]}" if engine.get(key) else "")
    return ", ".join(part for part in parts if part)


def _allocator(allocator: Any) -> str:
    """The policy and the placement or unit it works with, if it says so."""
    if not isinstance(allocator, Mapping):
        return str(allocator)
    options = [f"{key} {value}" for key, value in allocator.items() if key != "kind"]
    return f"{allocator['kind']} ({', '.join(options)})" if options else str(allocator["kind"])


def _quantization(scheme: Any) -> str:
    if isinstance(scheme, Mapping):
        formats = [_text(value) for value in scheme.values() if value]
        return "/".join(formats if len(set(formats)) > 1 else formats[:1])
    return _text(scheme)


def _replicas(scenario: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    engine, replicas = scenario.get("engine") or {}, scenario.get("replicas")
    sizes = {"TP": "tensor_parallel_size", "PP": "pipeline_parallel_size", "DP": "data_parallel_size"}
    parallel = " ".join(f"{short}{engine[key]}" for short, key in sizes.items() if (engine.get(key) or 1) != 1)
    count = facts.get("replicas", 1)
    router = f", router {_text(replicas['router'])}" if isinstance(replicas, Mapping) and replicas.get("router") else ""
    return f"{count}{f' of {parallel}' if parallel else ''}{router if count != 1 else ''}"


def _workload(scenario: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Name or file, number of requests, arrivals, mean lengths: as far as they are known."""
    said = scenario.get("workload")
    workload = facts.get("workload") or (said if isinstance(said, Mapping) else {})
    count = workload.get("num_requests") or workload.get("rows")
    arrival = workload.get("arrival")
    parts = [
        said if isinstance(said, str) else "",
        _text(workload.get("name")),
        _text(workload.get("file") or workload.get("trace")),
        f"{count:,} requests" if isinstance(count, int) else "",
        _arrivals(arrival) if isinstance(arrival, Mapping) else "",
        "sessions of {mean_turns:.3g} turns that add {mean_tokens_per_turn:,.0f} tokens each".format(**workload)
        if workload.get("mean_turns")
        else "",
        "{kind} of {mean_requests_per_query:.3g} requests per question".format(**workload).replace("_", " ")
        if workload.get("mean_requests_per_query")
        else "",
        f"{workload['mean_rate']:.3g} requests/s" if workload.get("mean_rate") and not arrival else "",
    ]
    if workload.get("mean_input_tokens") and workload.get("mean_output_tokens"):
        means = (workload["mean_input_tokens"], workload["mean_output_tokens"])
        parts.append("mean {:,.0f} input and {:,.0f} output tokens".format(*means))
    return ", ".join(part for part in parts if part)


def _arrivals(arrival: Mapping[str, Any]) -> str:
    kind = str(arrival.get("kind") or "").replace("_", " ")
    shown = [f"{key} {value:g}" for key, value in arrival.items() if isinstance(value, (int, float))]
    details = f" ({', '.join(shown)})" if shown else ""
    return f"{kind} arrivals{details}".strip()
