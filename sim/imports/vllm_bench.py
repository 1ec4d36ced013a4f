"""The JSON of `vllm bench serve --save-result`, whose keys are the canonical ones.

Keys and definitions: vLLM `vllm/benchmarks/serve.py`, flat object, latencies in milliseconds. With `--save-detailed`
the file also has one entry per request (`ttfts`, `itls`, `output_lens`, in seconds), from which statistics that were
not asked for at the time are computed here. `--append-result` writes one object per line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sim.errors import ConfigError
from sim.imports.measured import MeasuredRun, finite, is_canonical, latency_statistics, number
from sim.imports.source import Source

KIND = "vllm-bench"


def recognises(data: Any) -> bool:
    """A flat object with a throughput and a latency under vLLM's keys, or several of them, one per line."""
    if isinstance(data, list):
        return bool(data) and all(recognises(item) for item in data)
    return (
        isinstance(data, Mapping)
        and "request_throughput" in data
        and any(
            number(data.get(key)) is not None
            for key in ("request_throughput", "mean_ttft_ms", "mean_e2el_ms", "completed")
        )
    )


def read(source: Source) -> MeasuredRun:
    """The run in a result file; one of several lines is chosen as `FILE#index`.

    Raises ConfigError when several are there and none was chosen, or the arrays do not fit together.
    """
    runs = source.data if isinstance(source.data, list) else [source.data]
    data = source.choose(runs, [_name(run) for run in runs])
    metrics = _metrics(data)
    extra, notes = _from_details(source.path, data, metrics)
    return MeasuredRun(
        str(data.get("label") or source.path.stem), KIND, source.path, metrics | extra, _meta(data), notes
    )


def _name(run: Mapping[str, Any]) -> str:
    return f"{run.get('model_id', 'run')} at {run.get('request_rate', '?')} req/s"


def _metrics(data: Mapping[str, Any]) -> dict[str, float]:
    # Some releases wrote the key with the colon of the printed report ("request_goodput:").
    numbers = {k: v for k, v in finite({k.rstrip(":"): v for k, v in data.items()}).items() if is_canonical(k)}
    for key in [k for k in numbers if k.startswith("p50_")]:
        numbers.setdefault(key.replace("p50_", "median_", 1), numbers.pop(key))
    return numbers


def _meta(data: Mapping[str, Any]) -> dict[str, Any]:
    rate = data.get("request_rate")
    meta = {
        "model": data.get("model_id") or data.get("model"),
        "request_rate": float("inf") if rate == "inf" else rate,
        "max_concurrency": data.get("max_concurrency"),
        "num_prompts": data.get("num_prompts"),
        "burstiness": data.get("burstiness"),
    }
    return {key: value for key, value in meta.items() if value is not None}


def _from_details(
    path: Path, data: Mapping[str, Any], known: Mapping[str, float]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Statistics missing from `known` that follow from the arrays of `--save-detailed`, and a note saying which."""
    ttfts, itls = data.get("ttfts"), data.get("itls")
    if not isinstance(ttfts, list) or not isinstance(itls, list) or len(ttfts) != len(itls):
        return {}, ()
    try:
        computed = _detailed_statistics(data, ttfts, itls)
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"ttfts, itls and output_lens do not fit together ({reason})", file=path) from None
    extra = {key: value for key, value in computed.items() if key not in known}
    note = f"{len(extra)} statistics that the file does not state were computed from its ttfts and itls"
    return extra, (note,) if extra else ()


def _detailed_statistics(data: Mapping[str, Any], ttfts: list[Any], itls: list[Any]) -> dict[str, float]:
    errors = data.get("errors") or [""] * len(ttfts)
    lengths = data.get("output_lens") or [len(gaps) + 1 for gaps in itls]
    done = [i for i in range(len(ttfts)) if not errors[i] and lengths[i] > 0]
    decode_s = {i: sum(itls[i]) for i in done}
    values_s = {
        "ttft": [ttfts[i] for i in done],
        "tpot": [decode_s[i] / (lengths[i] - 1) for i in done if lengths[i] > 1],
        "itl": [gap for i in done for gap in itls[i]],
        "e2el": [ttfts[i] + decode_s[i] for i in done],
    }
    statistics: dict[str, float] = {}
    for name, values in values_s.items():
        statistics |= latency_statistics(name, [1e3 * value for value in values])
    return statistics
