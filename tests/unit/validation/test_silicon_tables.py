"""The public database as measurement tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from sim.errors import ConfigError
from sim.validation.silicon import silicon_tables

GEMM = {"m": [1, 1, 3], "n": [1024] * 3, "k": [1024] * 3, "latency": [0.01, 0.03, 0.02], "gemm_dtype": ["bfloat16"] * 3}
REDUCE = {
    "num_gpus": [2, 2],
    "message_size": [128, 128],
    "latency": [0.004, 0.02],
    "kernel_source": ["vLLM_custom_graph", "vLLM_custom_eager"],
}


def stored(root: Path, place: str, columns: dict[str, list[object]]) -> None:
    """A table where the package keeps it."""
    path = root / "h100_sxm" / place
    path.parent.mkdir(parents=True)
    pd.DataFrame(columns).to_parquet(path)


def test_duplicates_become_their_median_and_times_microseconds(tmp_path: Path) -> None:
    """Milliseconds are converted, repeated shapes merged, and sizes off the fitted grid left out."""
    stored(tmp_path, "gemm/vllm/0.24.0/gemm_perf.parquet", GEMM)
    rows = silicon_tables("h100-sxm", tmp_path)["gemm"]
    assert rows[["gpu", "source", "scheme", "m", "latency_us"]].values.tolist() == [
        ["h100", "vllm-0.24.0", "bf16", 1, pytest.approx(20.0)]
    ]


def test_messages_are_counted_in_sixteen_bit_elements(tmp_path: Path) -> None:
    """All-reduce sizes become bytes, and graph and eager implementations stay apart."""
    stored(tmp_path, "comm/vllm/0.24.0/custom_allreduce_perf.parquet", REDUCE)
    rows = silicon_tables("h100-sxm", tmp_path)["all_reduce"].sort_values("latency_us")
    assert rows.bytes.tolist() == [256, 256]
    assert rows.implementation.tolist() == ["custom-graph", "custom-eager"]


def test_the_newest_version_wins(tmp_path: Path) -> None:
    """0.24 is newer than 0.9, and a release newer than its candidates' predecessors."""
    stored(tmp_path, "gemm/vllm/0.9.0/gemm_perf.parquet", {**GEMM, "latency": [9.0, 9.0, 9.0]})
    stored(tmp_path, "gemm/vllm/0.24.0/gemm_perf.parquet", GEMM)
    assert silicon_tables("h100-sxm", tmp_path)["gemm"].source.unique().tolist() == ["vllm-0.24.0"]


def test_an_unmeasured_gpu_is_refused(tmp_path: Path) -> None:
    """The database has no tables of an L4; the answer names the GPUs it has."""
    with pytest.raises(ConfigError, match="h100-sxm"):
        silicon_tables("l4", tmp_path)
