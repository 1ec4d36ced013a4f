"""`roofserve calibrate --serving` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sim.build import build
from sim.cli import call
from sim.presets import load_preset
from sim.scenario import load_scenario

SCENARIO = """\
name: mine
model: Qwen/Qwen2.5-7B
hardware: h100-sxm
workload: {num_requests: 60, arrival: {kind: poisson, rate: 6}, input_tokens: 400, output_tokens: 40}
engine: {preset: vllm-v1}
"""
REQUESTS = """\
arrival_s,in_tok,out_tok,ttft_ms,e2e_ms
0.0,400,60,40,560
0.1,420,60,41,570
0.3,420,60,41,570
0.5,380,60,39,565
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """A server that the user benchmarked."""
    path = tmp_path / "server.yaml"
    path.write_text(SCENARIO)
    return path


def test_a_slower_server_than_the_preset_is_fitted(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A vllm bench JSON that is a quarter slower than predicted gives a slower preset, which a scenario may name."""
    results, fitted = tmp_path / "bench.json", tmp_path / "fitted.yaml"
    results.write_text(json.dumps({
        "request_rate": 6.0, "num_prompts": 60, "completed": 60, "total_input_tokens": 24000, "duration": 10.4,
        "total_output_tokens": 2400, "request_throughput": 5.8, "mean_ttft_ms": 42.0, "mean_tpot_ms": 9.1,
    }))  # fmt: skip
    arguments = ["--scenario", str(scenario), "--out", str(fitted)]
    assert call(["calibrate", "--serving", str(results), *arguments]) == 0
    assert load_preset(str(fitted)).host.step_s > load_preset("vllm-v1").host.step_s
    setup = build(load_scenario(str(scenario), {"engine.preset": str(fitted)}))
    assert setup.engine.host["step_s"] == load_preset(str(fitted)).host.step_s
    row = next(line for line in capsys.readouterr().out.splitlines() if "tpot_mean" in line)
    before, after = (abs(float(word)) for word in row.replace("│", " ").split()[-2:])
    assert before > 20
    assert after < before / 3


def test_a_table_of_requests_is_fitted_too(scenario: Path, tmp_path: Path) -> None:
    """Arrivals and lengths are those of the table."""
    table, fitted = tmp_path / "requests.csv", tmp_path / "fitted.yaml"
    table.write_text(REQUESTS)
    assert call(["calibrate", "--serving", str(table), "--scenario", str(scenario), "--out", str(fitted)]) == 0
    assert load_preset(str(fitted)).host.step_s > load_preset("vllm-v1").host.step_s


def test_a_table_without_times_is_refused(scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The missing column is named with its spellings."""
    table = tmp_path / "requests.csv"
    table.write_text("arrival_s,in_tok,out_tok\n0,1,2\n")
    assert call(["calibrate", "--serving", str(table), "--scenario", str(scenario)]) == 2
    assert "ttft" in capsys.readouterr().err


def test_the_server_must_be_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Results alone do not say which model ran on which GPU."""
    table = tmp_path / "requests.csv"
    table.write_text(REQUESTS)
    assert call(["calibrate", "--serving", str(table)]) == 2
    assert "--scenario" in capsys.readouterr().err
