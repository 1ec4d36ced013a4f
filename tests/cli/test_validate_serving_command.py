"""`roofserve validate serving` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sim.cli import call

TABLE = """\
gpu,n_gpus,tp,model,dtype,engine,engine_version,n_requests,isl_mean,osl_mean,qps,req_s,ttft_mean_ms,itl_mean_ms,\
total_tok_s,out_tok_s
H100,1,1,meta-llama/Llama-3.1-8B,bf16,TensorRT-LLM (Triton backend),0.14.0,40,467,16,8,8,22,7,3808,126
H100,1,1,nobody/Nothing,bf16,TensorRT-LLM (Triton backend),0.14.0,40,467,16,8,8,22,7,3808,126
H100,1,1,meta-llama/Llama-3.1-8B,bf16,TensorRT-LLM (Triton backend),0.14.0,40,467,16,inf,79,3280,193,38319,1269
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three request rates, one of them of a model that nobody knows."""
    path = tmp_path / "rates.csv"
    path.write_text(TABLE)
    return path


def test_the_report_has_what_was_promised(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every metric of every row that could be predicted, a summary, and the other rows with their reasons."""
    out = tmp_path / "report.json"
    assert call(["validate", "serving", "--runs", str(table), "--jobs", "1", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    keys = {"id", "table", "stage", "metric", "predicted", "actual", "ape", "regime"}
    assert all(keys <= set(line) for line in report["runs"])
    assert {line["id"] for line in report["runs"]} == {"line 2", "line 4"}
    first = next(line for line in report["runs"] if line["metric"] == "itl_mean")
    assert first["ape"] == pytest.approx(100 * abs(first["predicted"] - first["actual"]) / first["actual"])
    assert {line["regime"] for line in report["runs"]} == {"stable", "all at once"}
    assert {line["by"] for line in report["summary"]} == {"all", "gpu", "class", "engine", "regime"}
    assert [row["id"] for row in report["not_predicted"]] == ["line 3"]
    shown = capsys.readouterr().out
    assert "rates: 2 of 3 runs predicted" in shown
    assert "nobody/Nothing" in shown


def test_the_gate_exits_with_three(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A median above the bound is named, with the worst of them."""
    arguments = ["validate", "serving", "--runs", str(table), "--jobs", "1", "--max-median-ape"]
    assert call([*arguments, "0.001"]) == 3
    assert "median errors exceed 0.001 %" in capsys.readouterr().err
    assert call([*arguments, "100000"]) == 0


def test_a_folder_without_tables_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing to validate must not pass silently."""
    assert call(["validate", "serving", "--runs", str(tmp_path)]) == 2
    assert "no table of serving runs" in capsys.readouterr().err
