"""Measured kernel times as tables of one row per point, in the columns that public databases are converted to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sim.errors import ConfigError
from sim.validation.measure.record import STACK, read_record, tables

_ATTENTION = ["kv_dtype", "batch", "seq_len", "prefix_len", "num_heads", "num_kv_heads", "head_dim", "window"]
COLUMNS: Mapping[str, Sequence[str]] = {
    "gemm": ["scheme", "m", "n", "k"],
    "attention_prefill": _ATTENTION,
    "attention_decode": _ATTENTION,
    "moe": ["scheme", "num_tokens", "hidden", "inter", "topk", "num_experts", "tp", "ep", "distribution"],
    "all_reduce": ["implementation", "n_gpus", "bytes"],
    "collectives_other": ["op", "implementation", "n_gpus", "bytes"],
    "quantize": ["op", "m", "k"],
    "passes": ["op", "m", "width"],
    "block_moves": ["op", "blocks", "block_bytes"],
    "swap": ["how", "blocks", "block_bytes"],
    "attention_shared": [*_ATTENTION, "shared_len"],
    "decode_blocks": [*_ATTENTION, "block_tokens"],
    "layer_ops": ["model", "tp", "hidden", "inter", "num_heads", "num_kv_heads", "op", "num_tokens"],
}
"""Columns of each table beside `gpu`, `source` and `latency_us` (microseconds of one kernel on one GPU)."""

_COMMON = ["gpu", "source", "latency_us"]
_FORMAT_COLUMN = {
    "all_reduce": "implementation", "collectives_other": "op", "quantize": "op", "layer_ops": "op", "passes": "op",
    "block_moves": "op", "swap": "how", "decode_blocks": "kv_dtype",
}  # fmt: skip
_TEXT = {"gpu", "source", "scheme", "kv_dtype", "distribution", "implementation", "op", "how", "model"}


def read_tables(files: Sequence[Path], gpu: str = "") -> dict[str, pd.DataFrame]:
    """Measurements of all files by table; the table is told from the columns. Raises ConfigError naming the file.

    Records that `roofserve measure` wrote (.jsonl) name no profile: their rows are taken to be of `gpu`.
    """
    found: dict[str, list[pd.DataFrame]] = {}
    for path in files:
        for name, rows in (_read_record(path, gpu) if path.suffix == ".jsonl" else _read(path)).items():
            found.setdefault(name, []).append(rows)
    return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}


def _read(path: Path) -> dict[str, pd.DataFrame]:
    try:
        rows = pd.read_csv(path)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ConfigError(f"cannot be read as CSV ({error})", file=path) from error
    name = _recognise(list(rows.columns), path)
    _check_numbers(rows, name, path)
    if name not in ("attention_prefill", "attention_decode"):
        return {name: rows}
    decode = rows.seq_len == 1
    parts = {"attention_decode": rows[decode], "attention_prefill": rows[~decode]}
    return {part: chosen.reset_index(drop=True) for part, chosen in parts.items() if len(chosen)}


def _read_record(path: Path, gpu: str) -> dict[str, pd.DataFrame]:
    try:
        return tables(read_record(path)[1], gpu)
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", file=path) from error


def _recognise(columns: Sequence[str], path: Path) -> str:
    # The table with the most columns first: `collectives_other` has all those of `all_reduce`.
    for name in sorted(COLUMNS, key=lambda table: -len(COLUMNS[table])):
        if {*COLUMNS[name], *_COMMON} <= set(columns):
            return name
    raise ConfigError(
        "has the columns of no known table; expected gpu, source, latency_us and those of one of them",
        file=path,
        key="columns",
        value=",".join(columns),
        choices=COLUMNS,
    )


def _check_numbers(rows: pd.DataFrame, name: str, path: Path) -> None:
    for column in [*COLUMNS[name], "latency_us"]:
        if column in _TEXT:
            continue
        bad = pd.to_numeric(rows[column], errors="coerce").isna()
        if bad.any():
            row = int(np.argmax(bad))
            raise ConfigError("is not a number", file=path, line=row + 2, key=column, value=rows[column][row])
        rows[column] = pd.to_numeric(rows[column])
    if not (rows.latency_us > 0).all():
        row = int(np.argmax(~(rows.latency_us > 0)))
        raise ConfigError("must be positive", file=path, line=row + 2, key="latency_us", value=rows.latency_us[row])


def format_column(table: str) -> str:
    """The column that says which number format, implementation or operation a row measured."""
    return _FORMAT_COLUMN.get(table, "kv_dtype" if table.startswith("attention") else "scheme")


def stack_of(source: Any) -> str:
    """The software stack of a `source` such as `vllm-0.24.0`: its name without the version."""
    return re.split(r"-v?\d", str(source))[0]


def rotates_operands(rows: pd.DataFrame) -> bool:
    """Whether a benchmark read weights and KV from HBM each time, as serving does, and not again and again from L2."""
    return stack_of(rows.source.iloc[0]) == STACK


def is_gpu(label: str, profile: str) -> bool:
    """Whether rows labelled `a100` are of the GPU whose profile is `a100-sxm-80gb`: short labels mean the SXM card."""
    return profile == label or re.fullmatch(rf"{re.escape(label)}-sxm(-80gb)?", profile) is not None
