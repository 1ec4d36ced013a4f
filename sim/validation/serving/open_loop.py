"""serving_runs.json and .csv: open-loop runs of vLLM in stages of constant rate, some with every request's times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sim.documents import parse_json
from sim.errors import ConfigError
from sim.rng import stream
from sim.validation.serving.case import WHOLE_RUN, Case, Floats, Ints, Part, Traffic
from sim.validation.serving.table import Row, Server, frame, labels, number, poisson, text

COLUMNS = ("stage", "workload", "rate_req_s", "max_num_batched_tokens", "n_fail")
_STATISTICS = ("mean", "p50", "p90", "p95", "p99")
_LATENCIES = ("ttft", "tpot", "e2e")
_TIMEOUT_S = 300.0
"""After which the inference-perf client gives up."""
_PAUSE_S = 2.0
"""Between stages (1.6 to 6 s in the runs with request times)."""
_WARM_UP_REQUESTS = 100
_PROMPTS = 100
_TEMPLATE_GROWTH = 1.045
"""Tokens of a prompt over those asked for (591.6 for 100 + 466, and alike in the other profiles)."""
_GAVE_UP_SHARE, _WAITING_SHARE = 0.05, 0.25


@dataclass(frozen=True)
class _Profile:
    """A traffic profile of these runs, where a table only names it."""

    prompt: int
    answer: int
    duration_s: float


_PROFILES = {
    "codegen": _Profile(592, 247, 600),
    "general": _Profile(575, 248, 600),
    "roleplay": _Profile(785, 251, 1200),
    "reasoning": _Profile(1080, 1448, 1200),
}


@dataclass(frozen=True)
class _Requests:
    """Requests of a run in order of arrival; `ok` and the two times only where they were published."""

    arrival_s: Floats
    prompt: Ints
    answer: Ints
    prompt_id: Ints | None
    stage: Ints
    ok: Ints | None = None
    ttft_ms: Floats | None = None
    e2e_ms: Floats | None = None


def read_json(path: Path) -> list[Case]:
    """The runs of serving_runs.json; requests are found beside it. Raises ConfigError when it is not JSON."""
    try:
        runs = parse_json(path.read_text(encoding="utf-8"), path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"is not readable JSON ({error})", file=path) from error
    runs = runs.get("runs", []) if isinstance(runs, Mapping) else runs
    return [_guarded(run, path) for run in runs if isinstance(run, Mapping)]


def read_csv_rows(rows: Sequence[tuple[str, Row]], path: Path) -> list[Case]:
    """The same runs from the flat table, whose profiles are known by name only."""
    grouped: dict[str, list[Row]] = {}
    for name, row in rows:
        grouped.setdefault(name, []).append(row)
    return [_guarded(_nested(name, group), path) for name, group in grouped.items()]


def _guarded(run: Mapping[str, Any], path: Path) -> Case:
    name = str(run.get("id", "?"))
    try:
        return _case(name, run, path)
    except (ConfigError, KeyError, TypeError, ValueError, OSError) as error:
        problem = str(error) if isinstance(error, ConfigError) else f"not understood: {error!r}"
        seen = {key: str(run.get(key, "")) for key in ("gpu", "model")}
        return Case(name, path.stem, {"class": "unknown", "engine": "", **seen}, path, problem=problem)


def _case(name: str, run: Mapping[str, Any], path: Path) -> Case:
    engine, work = run["engine"], run["workload"]
    requests = _requests(name, work, path)
    tp, dp = int(run.get("tp") or 1), int(run.get("dp") or 1)
    server = Server(
        str(run["gpu"]), str(run["model"]), str(engine["name"]), str(engine.get("version") or ""),
        str(run.get("dtype") or ""), tp, dp=dp, ep=_expert_groups(run, tp * dp),
        kv_dtype=_kv_dtype(run.get("kv_dtype")), sampling="auto",
    )  # fmt: skip
    scenario, model = frame(server, int((requests.prompt + requests.answer).max()), path)
    scenario["engine"] |= _engine(engine)
    return Case(
        name, path.stem, labels(server, model) | {"workload": str(work.get("kind", ""))}, path, scenario,
        Traffic(requests.prompt, requests.answer, "trace", requests.arrival_s, prompt_id=requests.prompt_id,
                timeout_s=_TIMEOUT_S), model.config, _parts(run.get("measured") or {}, requests),
        overloaded=_overloaded(run.get("flags") or [], run.get("measured") or {}),
    )  # fmt: skip


def _engine(engine: Mapping[str, Any]) -> dict[str, Any]:
    keys: dict[str, Any] = {
        key: int(engine[key]) for key in ("max_num_batched_tokens", "max_num_seqs") if engine.get(key)
    }
    keys["gpu_memory_utilization"] = float(engine.get("gpu_memory_utilization") or 0.9)
    cache = {"enable_prefix_caching": bool(engine.get("prefix_caching", True))}
    keys["kv_cache"] = cache | ({"block_size": int(engine["block_size"])} if engine.get("block_size") else {})
    if engine.get("max_model_len"):
        keys["max_model_len"] = int(engine["max_model_len"])
    if engine.get("kv_blocks_gpu"):
        keys["num_gpu_blocks_override"] = int(engine["kv_blocks_gpu"])
    return keys


def _expert_groups(run: Mapping[str, Any], gpus: int) -> int:
    """`ep` is a number, or words that say that vLLM's expert parallelism is on."""
    given = str(run.get("ep") or "1")
    return int(float(given)) if given.replace(".", "").isdigit() else gpus


def _kv_dtype(given: Any) -> str:
    return "fp8" if str(given or "").lower().startswith("fp8") else ""


def _overloaded(flags: Sequence[str], measured: Mapping[str, Any]) -> bool:
    """Whether the publisher says so, clients gave up, or the mean request waited a quarter of its time to begin."""
    summary = measured.get("summary") or {}
    failed, served = float(summary.get("n_fail") or 0), float(summary.get("n_ok") or 0)
    ttft, e2e = (float((summary.get(key) or {}).get("mean") or 0) for key in ("ttft_ms", "e2e_ms"))
    waited = e2e > 0 and ttft > _WAITING_SHARE * e2e
    return "overload" in flags or failed > _GAVE_UP_SHARE * max(failed + served, 1) or waited


# the requests


def _requests(name: str, work: Mapping[str, Any], path: Path) -> _Requests:
    given = work.get("requests_file")
    file = path.parent / str(given) if given else path.parent / "requests" / f"{name}.csv.gz"
    counts = [round(float(s["rate_req_s"]) * float(s["duration_s"])) for s in work.get("stages") or []]
    if file.is_file():
        return _recorded(file, work, counts)
    if not counts:
        raise ConfigError("has neither stages nor a file of requests", file=path, key=name)
    return _drawn(work, counts)


def _recorded(file: Path, work: Mapping[str, Any], counts: Sequence[int]) -> _Requests:
    import pandas as pd

    table = pd.read_csv(file).sort_values("arrival_s", kind="stable")
    asked = table["in_tok"].fillna(0)
    usual = asked[asked > 1].groupby(table["prompt_id"]).median()  # failed requests report no tokens
    prompt = asked.where(asked > 1, table["prompt_id"].map(usual)).fillna(usual.median()).clip(lower=1)
    answer = table["out_tok"] if "out_tok" in table else work["output_len_generated"]
    repeated = table["prompt_id"].nunique() < len(table)
    order = np.arange(len(table))
    return _Requests(
        table["arrival_s"].to_numpy(float), prompt.round().to_numpy(np.int64),
        np.broadcast_to(np.asarray(answer, np.int64), len(table)).copy(),
        table["prompt_id"].to_numpy(np.int64) if repeated else None,
        np.searchsorted(np.cumsum(counts), order, side="right") if len(counts) else np.zeros(len(table), np.int64),
        np.asarray(table["error"] == 0, np.int64), table["ttft_ms"].to_numpy(float), table["e2e_ms"].to_numpy(float),
    )  # fmt: skip


def _drawn(work: Mapping[str, Any], counts: Sequence[int]) -> _Requests:
    start, times = 0.0, []
    for number_, (stage, count) in enumerate(zip(work["stages"], counts, strict=True)):
        duration = float(stage["duration_s"])
        times.append(start + poisson(float(stage["rate_req_s"]), count, duration, f"stage {number_}"))
        start += duration + _PAUSE_S
    total, profile = sum(counts), _PROFILES.get(str(work.get("kind", "")).removesuffix("-lite"))
    asked = float(work.get("system_prompt_len") or 0) + float(work.get("question_len") or 0)
    mean = float((work.get("input_len") or {}).get("mean") or 0)
    centre = profile.prompt if profile else round(mean or asked * _TEMPLATE_GROWTH)
    answer = int(work.get("output_len_generated") or (profile.answer if profile else 0))
    distinct = int(work.get("distinct_prompts") or _PROMPTS)
    lengths = stream(0, "validate prompts").integers(max(centre - 15, 1), centre + 15, distinct)
    prompts = np.arange(total) % distinct
    return _Requests(
        np.concatenate(times), lengths[prompts], np.full(total, answer, np.int64), prompts,
        np.repeat(np.arange(len(counts)), counts),
    )  # fmt: skip


# what was measured


def _parts(measured: Mapping[str, Any], requests: _Requests) -> tuple[Part, ...]:
    found = [Part(WHOLE_RUN, 0, len(requests.stage), _metrics(measured.get("summary") or {}))]
    for number_, stage in enumerate(measured.get("stages") or []):
        at = int(stage.get("stage", number_))
        first, last = np.searchsorted(requests.stage, [at, at + 1])
        found.append(Part(at, int(first), int(last), _metrics(stage)))
    return tuple(_without_warm_up(part, requests) for part in found if part.measured)


def _metrics(block: Mapping[str, Any]) -> dict[str, float]:
    values = {
        f"{of}_{statistic}": block[f"{of}_ms"][statistic]
        for of in _LATENCIES
        for statistic in _STATISTICS
        if isinstance(block.get(f"{of}_ms"), Mapping) and block[f"{of}_ms"].get(statistic)
    }
    values |= {"req_s": block.get("req_s"), "out_tok_s": block.get("out_tok_s_generated")}
    return {metric: float(value) for metric, value in values.items() if value is not None and float(value) > 0}


def _without_warm_up(part: Part, requests: _Requests) -> Part:
    """Tails from request 100 on, on both sides, where the times of every request are known."""
    ok, e2e, ttft = requests.ok, requests.e2e_ms, requests.ttft_ms
    if ok is None or e2e is None or ttft is None or part.first >= _WARM_UP_REQUESTS:
        return part
    steady = np.zeros(len(ok), bool)
    steady[_WARM_UP_REQUESTS : part.last] = ok[_WARM_UP_REQUESTS : part.last] > 0
    if not steady.any():
        return part
    gaps = np.maximum(requests.answer - 1, 1)
    columns = {"ttft": ttft, "e2e": e2e, "tpot": (e2e - ttft) / gaps}
    tails = {
        f"{name}_p{q}": float(np.percentile(values[steady], q))
        for name, values in columns.items()
        for q in (95, 99)
        if f"{name}_p{q}" in part.measured
    }
    return Part(part.stage, part.first, part.last, {**part.measured, **tails}, _WARM_UP_REQUESTS)


# the flat table


def _nested(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Rows of serving_runs.csv as an entry of serving_runs.json, with vLLM's defaults for what it does not say."""
    first, staged = rows[0], [row for row in rows if number(row, "stage", WHOLE_RUN) >= 0]
    kind = text(first, "workload")
    profile = _PROFILES.get(kind.removesuffix("-lite"))
    if profile is None and not staged:
        stages: list[dict[str, float]] = []
    else:
        duration = profile.duration_s if profile else 600.0
        stages = [{"rate_req_s": number(row, "rate_req_s", 0), "duration_s": duration} for row in staged]
    flags = [flag for flag in text(first, "flags").replace(";", ",").split(",") if flag]
    return {
        "id": name, "gpu": text(first, "gpu"), "model": text(first, "model"), "dtype": text(first, "dtype"),
        "tp": int(number(first, "tp", 1)), "dp": int(number(first, "dp", 1)), "flags": [f.strip() for f in flags],
        "engine": {"name": "vLLM", "version": "0.15.1", "max_num_seqs": 128,
                   "max_num_batched_tokens": int(number(first, "max_num_batched_tokens", 2048))},
        "workload": {"kind": kind, "stages": stages, "distinct_prompts": _PROMPTS,
                     "output_len_generated": profile.answer if profile else None},
        "measured": {
            "summary": next((_block(row) for row in rows if number(row, "stage", WHOLE_RUN) < 0), {}),
            "stages": [{"stage": int(number(row, "stage")), **_block(row)} for row in staged],
        },
    }  # fmt: skip


def _block(row: Row) -> dict[str, Any]:
    block: dict[str, Any] = {
        f"{of}_ms": {s: value for s in _STATISTICS if (value := number(row, f"{of}_{s}_ms", 0)) > 0}
        for of in _LATENCIES
    }
    block |= {key: number(row, key, 0) for key in ("req_s", "n_ok", "n_fail")}
    return block | {"out_tok_s_generated": number(row, "out_tok_s", 0)}
