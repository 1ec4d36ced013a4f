"""The report directory of inference-perf: a summary, one file per load stage, optionally one row per request.

Times are seconds. `time_per_output_token` is defined as our TPOT, `inter_token_latency` as our ITL, the median is named
`median` and the other percentiles `p90`, `p99`. In published runs against vLLM 0.15.1
(github.com/inference-sim/training) each event of the response stream was counted twice: TPOT came out at half its value
and the percentiles of ITL mean nothing. So TPOT is held against the E2E latency, TTFT and output length of the same
file, and where they contradict each other the reported TPOT and ITL are not used. The output length counts tokens of
the re-tokenised text, which can be fewer than were generated. Field names partly from memory of the tool's 2025
releases.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from sim.documents import load_yaml
from sim.errors import ConfigError
from sim.imports.measured import MeasuredRun, dig, finite, latency_statistics, number
from sim.imports.source import Source, read_json

KIND = "inference-perf"
SUMMARY = "summary_lifecycle_metrics.json"

_PER_REQUEST = "per_request_lifecycle_metrics.json"
_STATISTICS = {"mean": "mean", "median": "median", "p50": "median", "std": "std", "min": "min", "max": "max"}
_LATENCIES = {
    "request_latency": "e2el",
    "time_to_first_token": "ttft",
    "time_per_output_token": "tpot",
    "inter_token_latency": "itl",
}
_AGREES = (0.67, 1.5)  # a mean of ratios is not the ratio of means: only a gross contradiction counts


def recognises(data: Any) -> bool:
    """An object with `successes` that has `latency`, of a whole run or of one stage."""
    return isinstance(dig(data, "successes", "latency"), Mapping)


def read(source: Source) -> MeasuredRun:
    """A report directory's summary, or the stage meant by `DIRECTORY#N` (`stage_N_lifecycle_metrics.json`).

    Rows of single requests complete what the summary leaves out; they are not told apart by stage, so a chosen stage
    does without. Raises ConfigError when the stage does not exist.
    """
    directory, path, data = source.path.parent, source.path, source.data
    stages = sorted(directory.glob("stage_*_lifecycle_metrics.json"))
    whole = source.index is None and source.path.name == SUMMARY
    if source.index is not None:
        path = _stage_file(source, stages)
        data = read_json(path)
        if not recognises(data):
            raise ConfigError("is not a stage report of inference-perf (no successes.latency)", file=path)
    metrics, notes = _metrics(data), []
    details = _per_request(directory / _PER_REQUEST, number(metrics.get("completed"))) if whole else {}
    if _contradicts(metrics, data):
        metrics = {key: value for key, value in metrics.items() if not key.endswith(("_tpot_ms", "_itl_ms"))}
        notes.append(_distrust(computed="mean_tpot_ms" in details))
        details = {key: value for key, value in details.items() if not key.endswith("_itl_ms")}
    if added := {key: value for key, value in details.items() if key not in metrics}:
        notes.append(f"{len(added)} statistics were computed from {_PER_REQUEST}")
    if whole and len(stages) > 1:
        notes.append(f"pools {len(stages)} load stages; compare one as {directory.name}#0 .. #{len(stages) - 1}")
    meta = _meta(data, directory, source.index if source.index is not None else _stage_number(path))
    return MeasuredRun(directory.name, KIND, path, details | metrics, meta, tuple(notes))


def _distrust(*, computed: bool) -> str:
    found = "TPOT was computed from the single requests" if computed else "TPOT and ITL are left out"
    return (
        "the reported time_per_output_token contradicts request_latency, time_to_first_token and output_len (events of "
        f"the response stream counted as tokens): {found}"
    )


def _stage_file(source: Source, stages: list[Path]) -> Path:
    for path in stages:
        if _stage_number(path) == source.index:
            return path
    numbers = ", ".join(f"#{_stage_number(path)}" for path in stages) or "none"
    raise ConfigError(f"has no stage #{source.index}; stages: {numbers}", file=source.path.parent)


def _stage_number(path: Path) -> int | None:
    part = path.name.removeprefix("stage_").split("_")[0]
    return int(part) if part.isdigit() else None


def _metrics(data: Mapping[str, Any]) -> dict[str, float]:
    successes = data["successes"]
    count, rates = number(successes.get("count")), successes.get("throughput")
    per_s = number(dig(rates, "requests_per_sec"))
    totals = {
        "completed": count,
        "failed": dig(data, "failures", "count"),
        # The tool divides by the time from the first start to the last end, which it does not state.
        "duration": count / per_s if count is not None and per_s else None,
        "request_throughput": per_s,
        "output_throughput": dig(rates, "output_tokens_per_sec"),
        "total_token_throughput": dig(rates, "total_tokens_per_sec"),
        "request_goodput": dig(data, "goodput_metrics", "request_goodput"),
        "total_input_tokens": _total(successes, "prompt_len"),
        "total_output_tokens": _total(successes, "output_len"),
    }
    return finite(totals) | _latencies(successes["latency"])


def _total(successes: Mapping[str, Any], name: str) -> float | None:
    mean, count = number(dig(successes, name, "mean")), number(successes.get("count"))
    return mean * count if mean is not None and count is not None else None


def _latencies(latency: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for theirs, ours in _LATENCIES.items():
        statistics = latency.get(theirs)
        for key, value in finite(statistics if isinstance(statistics, Mapping) else {}).items():
            name = _STATISTICS.get(key) or (key if key[:1] == "p" and key[1:].replace(".", "", 1).isdigit() else None)
            if name:
                found[f"{name}_{ours}_ms"] = 1e3 * value
    return found


def _contradicts(metrics: Mapping[str, float], data: Mapping[str, Any]) -> bool:
    """Whether mean TPOT is far from (mean E2E - mean TTFT) / (mean output length - 1)."""
    length = number(dig(data, "successes", "output_len", "mean"))
    e2el, ttft, tpot = (metrics.get(f"mean_{name}_ms") for name in ("e2el", "ttft", "tpot"))
    if length is None or length <= 1 or e2el is None or ttft is None or tpot is None or e2el <= ttft:
        return False
    ratio = tpot * (length - 1) / (e2el - ttft)
    return not _AGREES[0] <= ratio <= _AGREES[1]


def _per_request(path: Path, completed: float | None) -> dict[str, float]:
    """Statistics from rows {start_time, end_time, error, info: {output_tokens, output_token_times}}, seconds.

    Nothing when the rows are not those of all completed requests: one table must not mix two samples. No ITL when
    there are far more events than tokens.
    """
    rows = read_json(path) if path.is_file() else []
    timed = [_Timed.of(row) for row in rows if isinstance(row, Mapping) and not row.get("error")]
    done = [row for row in timed if row is not None]
    if len(done) != completed or len(timed) != completed:
        return {}
    found = latency_statistics("ttft", [1e3 * (row.times_s[0] - row.start_s) for row in done])
    found |= latency_statistics("e2el", [1e3 * (row.end_s - row.start_s) for row in done])
    decoding = [row for row in done if row.tokens > 1]
    tpot_s = [(row.times_s[-1] - row.times_s[0]) / (row.tokens - 1) for row in decoding]
    found |= latency_statistics("tpot", [1e3 * value for value in tpot_s])
    if sum(len(row.times_s) for row in done) > _AGREES[1] * sum(row.tokens for row in done):
        return found
    gaps_s = [later - earlier for row in done for earlier, later in pairwise(row.times_s)]
    return found | latency_statistics("itl", [1e3 * gap for gap in gaps_s])


class _Timed(NamedTuple):
    start_s: float
    end_s: float
    tokens: float
    times_s: list[float]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> _Timed | None:
        """A row in which everything is stated, None for any other."""
        start, end = number(row.get("start_time")), number(row.get("end_time"))
        listed = dig(row, "info", "output_token_times")
        times = [number(time) for time in listed] if isinstance(listed, list) else []
        complete = [time for time in times if time is not None]
        if start is None or end is None or not times or len(complete) < len(times):
            return None
        return cls(start, end, number(dig(row, "info", "output_tokens")) or len(times), complete)


def _meta(data: Mapping[str, Any], directory: Path, stage: int | None) -> dict[str, Any]:
    config = load_yaml(directory / "config.yaml").data if (directory / "config.yaml").is_file() else {}
    stages = dig(config, "load", "stages")
    rates = [dig(entry, "rate") for entry in stages] if isinstance(stages, list) else []
    planned = rates[stage] if stage is not None and stage < len(rates) else rates[0] if len(rates) == 1 else None
    requested = number(dig(data, "load_summary", "requested_rate"))
    meta = {
        "model": dig(config, "server", "model_name"),
        "request_rate": requested if requested is not None else number(planned),
        "max_concurrency": number(dig(data, "load_summary", "concurrency")),
        "num_prompts": number(dig(data, "load_summary", "count")),
    }
    return {key: value for key, value in meta.items() if value is not None}
