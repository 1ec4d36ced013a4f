"""`roofserve validate kernels` and `roofserve calibrate` as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sim.cli import call

HEADER = "gpu,source,scheme,m,n,k,latency_us,repeat_us\n"
ROWS = "h100,vllm-0.24.0,bf16,1,4096,4096,13.0,\nh100,vllm-0.24.0,bf16,64,4096,4096,15.0,\n"
UNKNOWN = "h100,vllm-0.24.0,nf4,64,4096,4096,15.0,\n"
OTHER = "a100,vllm-0.14.0,bf16,64,4096,4096,30.0,\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Four rows: two priced, one of an unknown scheme, one of another GPU."""
    path = tmp_path / "gemm.csv"
    path.write_text(HEADER + ROWS + UNKNOWN + OTHER)
    return path


def test_every_row_of_the_gpu_is_counted(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON has a line per format with the keys that were promised; rows without a price are named on screen."""
    out = tmp_path / "report.json"
    assert (
        call(["validate", "kernels", "--hardware", "h100-sxm", "--measurements", str(table), "--json", str(out)]) == 0
    )
    lines = {line["scheme_or_kv_dtype"]: line for line in json.loads(out.read_text())}
    expected = {"table", "gpu", "scheme_or_kv_dtype", "n", "priced", "mape", "median", "p90", "bias"}
    assert set(lines["bf16"]) == expected
    assert (lines["bf16"]["n"], lines["bf16"]["priced"]) == (2, 2)
    assert (lines["nf4"]["n"], lines["nf4"]["priced"], lines["nf4"]["mape"]) == (1, 0, None)
    assert "no price: gemm nf4 (vllm-0.24.0): 1 rows" in capsys.readouterr().out


def test_the_gate_exits_with_three(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An error above the limit is a failed gate that names the worst line."""
    arguments = ["validate", "kernels", "--hardware", "h100-sxm", "--measurements", str(table), "--max-mape", "0.001"]
    assert call(arguments) == 3
    assert "gemm h100 bf16" in capsys.readouterr().err


def test_several_files_may_follow(table: Path, tmp_path: Path) -> None:
    """`--measurements A.csv B.csv` reads both."""
    second = tmp_path / "more.csv"
    second.write_text(HEADER + ROWS)
    out = tmp_path / "report.json"
    arguments = ["--hardware", "h100-sxm", "--measurements", str(table), str(second), "--json", str(out)]
    assert call(["validate", "kernels", *arguments]) == 0
    assert json.loads(out.read_text())[0]["n"] == 4


def test_tables_of_other_gpus_are_refused(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Measurements that have no row of the GPU are a mistake, answered with the GPUs they do have."""
    assert call(["validate", "kernels", "--hardware", "h200-sxm", "--measurements", str(table)]) == 2
    assert "h100" in capsys.readouterr().err


def test_calibrate_wants_tables(capsys: pytest.CaptureFixture[str]) -> None:
    """`--from tables` without files says what is missing."""
    assert call(["calibrate", "--from", "tables", "--hardware", "h100-sxm"]) == 2
    assert "needs the CSV files" in capsys.readouterr().err
