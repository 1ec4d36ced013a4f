"""What the readers of all tables share: cells, the traffic of known clients, and the frame of a case."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sim.errors import ConfigError
from sim.rng import stream
from sim.trust import model_class
from sim.validation.serving.case import WHOLE_RUN, Case, Floats, Ints, Part
from sim.validation.serving.servers import Model, engine_keys, find_model, hardware, quantization

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Server:
    """What the tables say about a server, in their own words."""

    gpu: str
    model: str
    engine: str
    version: str
    dtype: str = ""
    tp: int = 1
    pp: int = 1
    dp: int = 1
    """Groups that attend to different sequences."""
    ep: int = 1
    block_scales: bool = False
    """FP8 with a scale per block, as DeepSeek's and Qwen's checkpoints have it."""
    sampling: str = "greedy"
    """What the client asks for: `vllm bench serve`, InferenceX and NVIDIA's tools send temperature 0."""
    kv_dtype: str = ""


def text(row: Row, key: str) -> str:
    """A cell as text; "" when it is empty or missing."""
    value = row.get(key)
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value).strip()


def number(row: Row, key: str, default: float | None = None) -> float:
    """A cell as a number. Raises ConfigError when there is none and no default."""
    try:
        value = float(row.get(key, math.nan))
    except (TypeError, ValueError):
        value = math.nan
    if math.isnan(value):
        if default is None:
            raise ConfigError("has no number", key=key, value=row.get(key))
        return default
    return value


def measured(row: Row, columns: Mapping[str, str]) -> dict[str, float]:
    """Metric -> value of the cells that hold a positive number; `columns` maps columns to metrics."""
    found = {metric: number(row, column, math.nan) for column, metric in columns.items()}
    return {metric: value for metric, value in found.items() if value > 0 and math.isfinite(value)}


def frame(server: Server, tokens: int, path: Path) -> tuple[dict[str, Any], Model]:
    """The scenario of a server without its traffic, and its model. Raises ConfigError for what is not known."""
    model = find_model(server.model, tokens, path.parent)
    engine = engine_keys(server.engine, server.version) | _layout(server, model) | {"sampling": server.sampling}
    scheme = model.scheme or quantization(server.dtype, model.architecture, block=server.block_scales)
    if scheme is not None:
        engine["quantization"] = scheme
    if server.kv_dtype:
        engine["kv_cache_dtype"] = server.kv_dtype
    return {"model": model.name, "hardware": hardware(server.gpu), "engine": engine}, model


def _layout(server: Server, model: Model) -> dict[str, int]:
    keys = {"tensor_parallel_size": server.tp, "pipeline_parallel_size": server.pp}
    if model.architecture.is_moe:
        return keys | {"data_parallel_size": server.dp, "expert_parallel_size": server.ep}
    if server.dp > 1:
        raise ConfigError("attention data parallelism of a dense model", key="dp", value=server.dp)
    return keys


def labels(server: Server, model: Model | None = None) -> dict[str, str]:
    """What reports group by."""
    kind = model_class(model.architecture) if model is not None else "unknown"
    return {
        "gpu": server.gpu,
        "model": server.model,
        "class": kind,
        "engine": f"{server.engine} {server.version}".strip(),
    }


def each(rows: Iterable[tuple[str, Row]], table: str, path: Path, read: Callable[[str, Row], Case]) -> list[Case]:
    """One case per row; what a reader cannot understand about a row becomes the reason that it is not predicted."""
    cases = []
    for name, row in rows:
        try:
            cases.append(read(name, row))
        except ConfigError as error:
            seen = {key: text(row, key) for key in ("gpu", "model", "engine")}
            cases.append(Case(name, table, {"class": "unknown", **seen}, path, problem=str(error)))
    return cases


def one_part(values: Mapping[str, float], requests: int) -> tuple[Part, ...]:
    """The whole run as its only part."""
    return (Part(WHOLE_RUN, 0, requests, values),)


def same(tokens: float, count: int) -> Ints:
    """`count` equal lengths."""
    return np.full(count, max(round(tokens), 1), np.int64)


def uniform(low: float, high: float, count: int, name: str) -> Ints:
    """Lengths drawn evenly from [low, high]."""
    return stream(0, f"validate {name}").integers(
        max(round(low), 1), max(round(high), 1), count, np.int64, endpoint=True
    )


def long_tailed(mean: float, sigma: float, low: int, high: int, count: int, name: str) -> Ints:
    """Lognormal lengths within [low, high], scaled so that their mean after clipping is `mean`."""
    shape = np.exp(stream(0, f"validate {name}").normal(0.0, sigma, count))
    factor = mean / shape.mean()
    for _ in range(30):
        factor *= mean / np.clip(shape * factor, low, high).mean()
    lengths: Ints = np.clip(np.rint(shape * factor), low, high).astype(np.int64)
    return lengths


def poisson(rate: float, count: int, duration_s: float | None = None, name: str = "arrivals") -> Floats:
    """`count` arrival times with exponential gaps, rescaled to fill `duration_s` where the client does that."""
    gaps = stream(0, f"validate {name}").exponential(1.0, count)
    times: Floats = np.cumsum(gaps)
    return times * (duration_s / times[-1] if duration_s is not None else 1.0 / rate)
