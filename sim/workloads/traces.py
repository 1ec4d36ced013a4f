"""A trace file in any format the field uses -> `Trace`; the format is told from the file's name, header and keys."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sim.errors import ConfigError
from sim.workloads.trace_csv import read_csv
from sim.workloads.trace_jsonl import read_jsonl, read_text
from sim.workloads.trace_servegen import is_pair, read_servegen
from sim.workloads.trace_sharegpt import read_sharegpt
from sim.workloads.trace_table import Trace


def read_trace(path: str | Path, *, seed: int = 0) -> Trace:
    """The trace in a file: Azure, BurstGPT, Vidur, Splitwise-sim or plain CSV; Mooncake, Qwen-Bailian or LLMServingSim
    JSONL; a ShareGPT array; a ServeGen pair (the only one for which `seed` matters).

    Raises ConfigError naming file, line, key and value of what is wrong.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError("is a directory, not a trace file", file=path)
    if is_pair(path):
        return read_servegen(path, seed)
    start = _first_character(path)
    if start == "[":
        return read_sharegpt(path)
    return read_jsonl(path) if start == "{" else read_csv(path)


def sha256(path: Path) -> str:
    """The hash by which a saved run names its trace."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_character(path: Path) -> str:
    if path.suffix == ".gz":
        return read_text(path).lstrip()[:1]
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", file=path) from error
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    if not text:
        raise ConfigError("is empty", file=path)
    return text[0]
