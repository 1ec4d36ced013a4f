"""Our own saved run: `summary.json` when it is there, otherwise the tables it is computed from.

The summary uses the keys of `vllm bench serve`; every other number in it is kept too, so that two simulated runs
compare in full. One key that both tools write means two things, and vLLM's is not read: `max_concurrent_requests` is
our exact peak, where vLLM counts the requests that touch one second.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sim.errors import ConfigError
from sim.imports.measured import MeasuredRun, dig, finite, number
from sim.imports.source import Source, read_json
from sim.metrics import summarise
from sim.results import RunResult

KIND = "roofserve"
SUMMARY, MANIFEST = "summary.json", "manifest.json"

_OURS = ("regime", "trust")
_SETTINGS = frozenset({"num_prompts", "gpus", "seed"})


def recognises(data: Any) -> bool:
    """A summary: it states the regime of the run and how far its step times may be trusted."""
    return isinstance(data, Mapping) and "request_throughput" in data and all(key in data for key in _OURS)


def read(source: Source) -> MeasuredRun:
    """The run of a `summary.json`, with the set-up from the manifest beside it if there is one."""
    source.refuse_index()
    manifest = source.path.parent / MANIFEST
    return _run(source.path, source.data, read_json(manifest) if manifest.is_file() else {})


def read_tables(directory: Path) -> MeasuredRun:
    """The run of a saved directory that has no summary. Raises ConfigError when it is incomplete or unreadable."""
    result = RunResult.load(directory)
    try:
        summary = summarise(result)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"is not a readable saved run ({type(error).__name__}: {error})", file=directory) from error
    return _run(directory, summary, result.manifest)


def _run(path: Path, summary: Mapping[str, Any], manifest: Any) -> MeasuredRun:
    metrics = {key: value for key, value in finite(summary).items() if key not in _SETTINGS}
    regime = summary.get("regime")
    notes = () if regime in (None, "STABLE") else (f"the run is {regime}: its latencies depend on how long it lasts",)
    folder = path if path.is_dir() else path.resolve().parent
    name = dig(manifest, "scenario", "name")
    return MeasuredRun(str(name or folder.name), KIND, path, metrics, _meta(summary, dig(manifest, "scenario")), notes)


def _meta(summary: Mapping[str, Any], scenario: Any) -> dict[str, Any]:
    arrival = dig(scenario, "workload", "arrival")
    rate = float("inf") if dig(arrival, "kind") == "all_at_once" else number(dig(arrival, "rate"))
    model, hardware = dig(scenario, "model"), dig(scenario, "hardware")
    meta = {
        "model": model if isinstance(model, str) else None,
        "hardware": hardware if isinstance(hardware, str) else None,
        "request_rate": rate,
        "max_concurrency": number(dig(arrival, "concurrency")),
        "num_prompts": number(summary.get("num_prompts")),
        "burstiness": number(dig(arrival, "burstiness")),
    }
    return {key: value for key, value in meta.items() if value is not None}
