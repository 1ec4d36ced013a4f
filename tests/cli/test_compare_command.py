"""`roofserve compare runs` as a user types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sim.cli.compare import compare
from sim.errors import ConfigError, GateFailed

DATA = Path(__file__).parents[1] / "data" / "imports"
OURS, THEIRS = str(DATA / "roofserve"), str(DATA / "vllm_bench.json")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(compare, ["runs", *arguments], env={"COLUMNS": "80", "NO_COLOR": "1"})


def row_of(output: str, metric: str) -> list[str]:
    return next(line for line in output.splitlines() if line.startswith(metric)).split()


def test_table_shows_both_values_and_the_signed_error() -> None:
    """Each shared metric is a line with simulated, measured and the error of the first against the second."""
    result = invoke(OURS, THEIRS)
    assert result.exit_code == 0
    assert row_of(result.output, "metric")[1:4] == ["simulated", "measured", "error"]
    assert row_of(result.output, "mean_ttft_ms")[1:5] == ["42", "40", "+5.0", "%"]
    assert "only in simulated: mean_e2el_ms" in result.output
    assert "only in measured: max_output_tokens_per_s" in result.output


def test_table_fits_eighty_columns_and_needs_no_colour() -> None:
    """Rows of the table are not cut off on a narrow terminal, and without colour there are no escape codes."""
    lines = invoke(OURS, f"{DATA / 'guidellm'}#0").output.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("metric"))
    assert all(len(line) <= 80 and "…" not in line and "\x1b" not in line for line in lines[start:])


def test_bars_lean_to_the_side_of_the_error() -> None:
    """Too low is drawn left of the middle, too high right of it, and an arrow marks what goes beyond."""
    output = invoke(
        THEIRS, f"{DATA / 'inference_perf'}#0", "--metrics", "mean_ttft_ms,total_input_tokens,failed"
    ).output
    assert "<=====|" in next(line for line in output.splitlines() if line.startswith("mean_ttft_ms"))
    assert "|=====>" in next(line for line in output.splitlines() if line.startswith("total_input_tokens"))
    assert "=" not in next(line for line in output.splitlines() if line.startswith("failed"))


def test_json_is_the_only_thing_on_stdout() -> None:
    """`--format json` gives one document with rows, what is missing on either side, and the notes."""
    document = json.loads(invoke(OURS, THEIRS, "--format", "json").stdout)
    row = next(row for row in document["metrics"] if row["metric"] == "mean_ttft_ms")
    assert row == {"metric": "mean_ttft_ms", "a": 42.0, "b": 40.0, "difference": -2.0, "ratio": 1.05, "error_pct": 5.0}
    assert document["a"]["kind"] == "roofserve"
    assert document["only_b"] == ["max_output_tokens_per_s"]
    assert document["gate"] is None


def test_an_infinite_rate_is_valid_json() -> None:
    """A request rate of inf is written as the word, as vLLM does."""
    output = invoke(OURS, str(DATA / "vllm_bench_detailed.json"), "--format", "json").stdout
    assert json.loads(output)["b"]["meta"]["request_rate"] == "inf"


def test_gate_within_the_bound_passes() -> None:
    """A bound no headline metric exceeds changes nothing."""
    assert invoke(OURS, THEIRS, "--max-error", "5").exit_code == 0


def test_gate_exceeded_still_shows_the_table() -> None:
    """A bound that is exceeded raises GateFailed (exit code 3) after the table, naming the metrics."""
    result = invoke(OURS, THEIRS, "--max-error", "4.9")
    assert isinstance(result.exception, GateFailed)
    assert result.exception.exit_code == 3
    assert str(result.exception) == "the error of simulated exceeds 4.9 % in mean_ttft_ms +5.0 %"
    assert "mean_ttft_ms" in result.output


def test_a_bound_that_is_no_number_does_not_pass() -> None:
    """`--max-error nan` would let everything through, so it is refused."""
    assert isinstance(invoke(OURS, THEIRS, "--max-error", "nan").exception, ConfigError)


def test_gate_looks_at_the_metrics_chosen() -> None:
    """`--metrics` narrows both the table and the gate."""
    result = invoke(OURS, THEIRS, "--max-error", "0", "--metrics", "mean_tpot_ms, duration")
    assert result.exit_code == 0
    assert "mean_ttft_ms" not in result.output
    refused = invoke(OURS, THEIRS, "--metrics", "mean_tfft_ms")
    assert isinstance(refused.exception, ConfigError)
    assert "nearest first: mean_ttft_ms" in str(refused.exception)


def test_labels_say_what_is_compared(tmp_path: Path) -> None:
    """By default a run of ours is simulated, another tool's measured, two of a kind first and second."""
    shutil.copytree(DATA / "roofserve", tmp_path / "again")
    assert row_of(invoke(OURS, str(tmp_path / "again")).output, "metric")[1:3] == ["first", "second"]
    assert row_of(invoke(THEIRS, OURS).output, "metric")[1:3] == ["measured", "simulated"]
    assert row_of(invoke(OURS, THEIRS, "--labels", "tp1,tp2").output, "metric")[1:3] == ["tp1", "tp2"]
    assert isinstance(invoke(OURS, THEIRS, "--labels", "one").exception, ConfigError)


@pytest.mark.parametrize("arguments", [(OURS,), (OURS, THEIRS, "--max-error", "-1"), (OURS, THEIRS, "--format", "xml")])
def test_wrong_usage_is_refused(arguments: tuple[str, ...]) -> None:
    """Missing or impossible arguments are click's usage errors, exit code 2."""
    assert invoke(*arguments).exit_code == 2
