"""A path a person wrote -> the run it holds; the tool that wrote it is told from the content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sim.errors import ConfigError
from sim.imports import aiperf, guidellm, inference_perf, roofserve_run, vllm_bench
from sim.imports.measured import MeasuredRun
from sim.imports.source import Source, read_json, split_index


class _Reader(NamedTuple):
    recognises: Callable[[Any], bool]
    read: Callable[[Source], MeasuredRun]


_READERS = (
    _Reader(roofserve_run.recognises, roofserve_run.read),
    _Reader(inference_perf.recognises, inference_perf.read),
    _Reader(guidellm.recognises, guidellm.read),
    _Reader(aiperf.recognises, aiperf.read),
    _Reader(vllm_bench.recognises, vllm_bench.read),
)
# The file that speaks for a directory, by the tool that writes such directories.
_IN_DIRECTORY = (
    roofserve_run.SUMMARY,
    inference_perf.SUMMARY,
    "benchmarks.json",
    "profile_export_aiperf.json",
    "profile_export_genai_perf.json",
)
KINDS = (
    "a roofserve run directory or its summary.json",
    "a vllm bench serve JSON",
    "an inference-perf report directory",
    "a guidellm benchmarks.json",
    "an aiperf or genai-perf JSON export",
)


def read_run(where: str | Path) -> MeasuredRun:
    """The results in a file or directory of any tool we know; `FILE#2` is the third run of a file that holds several.

    Raises ConfigError naming the file and the kinds understood when it is none of them, cannot be read, or holds
    several runs of which none was chosen.
    """
    path, index = split_index(str(where))
    if path.is_dir():
        if (path / roofserve_run.MANIFEST).is_file() and not (path / roofserve_run.SUMMARY).is_file():
            return roofserve_run.read_tables(path)
        path = _speaker(path)
    source = Source(path, read_json(path), index)
    for reader in _READERS:
        if reader.recognises(source.data):
            run = reader.read(source)
            if not run.metrics:
                raise ConfigError("states no metric that can be compared", file=path)
            return run
    raise ConfigError(f"is not a result that can be compared; understood are {_kinds()}", file=path)


def _speaker(directory: Path) -> Path:
    for name in _IN_DIRECTORY:
        if (directory / name).is_file():
            return directory / name
    raise ConfigError(f"is not a directory of results; understood are {_kinds()}", file=directory)


def _kinds() -> str:
    return ", ".join(KINDS)
