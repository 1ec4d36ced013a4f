"""Two runs side by side: signs, gates, and what makes them hard to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.errors import ConfigError
from sim.imports.comparison import HEADLINE, MetricRow, compare_runs
from sim.imports.measured import MeasuredRun, is_canonical


def run(
    name: str = "a", meta: dict[str, Any] | None = None, notes: tuple[str, ...] = (), **metrics: float
) -> MeasuredRun:
    return MeasuredRun(name, "vllm-bench", Path(f"{name}.json"), metrics, meta or {}, notes)


def test_error_is_positive_when_the_prediction_is_too_high() -> None:
    """a = 110 against b = 100 is an error of +10 %, a ratio of 1.1 and a difference b - a of -10."""
    row = MetricRow("mean_ttft_ms", 110.0, 100.0)
    assert (row.error_pct, row.ratio, row.difference) == (pytest.approx(10.0), pytest.approx(1.1), -10.0)


@settings(deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_error_recovers_the_prediction(a: float, b: float) -> None:
    """b (1 + error) is a, and b times the ratio too."""
    row = MetricRow("x", a, b)
    assert row.error_pct is not None
    assert row.ratio is not None
    assert b * (1 + row.error_pct / 100) == pytest.approx(a, rel=1e-6, abs=1e-9)
    assert b * row.ratio == pytest.approx(a)


def test_nothing_measured_has_no_percentage() -> None:
    """Against a measured 0 a prediction of 0 is exact, any other has neither ratio nor percentage."""
    assert MetricRow("failed", 0.0, 0.0).error_pct == 0.0
    assert MetricRow("failed", 0.0, 0.0).ratio == 1.0
    assert MetricRow("failed", 3.0, 0.0).error_pct is None
    assert MetricRow("failed", 3.0, 0.0).ratio is None


def test_only_shared_metrics_become_rows() -> None:
    """Metrics of one run alone are listed on its side, and the rows stand in the order of the report."""
    comparison = compare_runs(
        run(mean_tpot_ms=1.0, mean_ttft_ms=1.0, duration=1.0, p95_ttft_ms=1.0),
        run("b", mean_tpot_ms=1.0, mean_ttft_ms=1.0, duration=1.0, mean_itl_ms=1.0),
    )
    assert [row.metric for row in comparison.rows] == ["duration", "mean_ttft_ms", "mean_tpot_ms"]
    assert (comparison.only_a, comparison.only_b) == (("p95_ttft_ms",), ("mean_itl_ms",))


def test_runs_without_a_common_metric_are_refused() -> None:
    """Nothing in common is an error that names both files."""
    with pytest.raises(ConfigError, match=r"a\.json: shares no metric with b\.json"):
        compare_runs(run(duration=1.0), run("b", completed=1.0))


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ({"request_rate": 4.0}, {"request_rate": 5.0}, "request rate differs: 4 against 5"),
        ({"request_rate": 4.0}, {"request_rate": 4}, ""),
        ({"request_rate": float("inf")}, {"request_rate": float("inf")}, ""),
        ({"num_prompts": 100}, {"num_prompts": 200}, "number of requests differs"),
        ({"model": "meta-llama/Llama-3.1-8B"}, {"model": "/models/llama-3.1-8b/"}, ""),
        ({"model": "meta-llama/Llama-3.1-8B"}, {"model": "Qwen/Qwen3-8B"}, "model differs"),
        ({"model": "meta-llama/Llama-3.1-8B"}, {}, ""),
    ],
)
def test_settings_that_differ_are_named(a: dict[str, Any], b: dict[str, Any], said: str) -> None:
    """What is known of both and differs becomes a note; what is known of one only does not."""
    notes = compare_runs(run(meta=a, duration=1.0), run("b", meta=b, duration=1.0)).notes
    assert any(said in note for note in notes) if said else notes == ()


def test_other_token_lengths_are_named() -> None:
    """Runs whose requests are of different length on average are told apart even when totals are equal."""
    a = run(completed=10.0, total_output_tokens=1000.0, total_input_tokens=1000.0)
    b = run("b", completed=20.0, total_output_tokens=1000.0, total_input_tokens=2010.0)
    (note,) = compare_runs(a, b).notes
    assert note == "the mean output length differs: 100.0 against 50.0 tokens per completed request"


def test_notes_of_the_readers_are_kept_once() -> None:
    """A note that both runs carry is printed once, with the tool it is about."""
    comparison = compare_runs(run(notes=("odd",), duration=1.0), run("b", notes=("odd",), duration=1.0))
    assert comparison.notes == ("vllm-bench: odd",)


def test_gate_judges_size_of_headline_errors() -> None:
    """Errors count in both directions, a bound that is met exactly passes, and tails are left out by default."""
    a = run(mean_ttft_ms=90.0, mean_tpot_ms=110.0, p99_ttft_ms=300.0, output_throughput=105.0)
    b = run("b", mean_ttft_ms=100.0, mean_tpot_ms=100.0, p99_ttft_ms=100.0, output_throughput=100.0)
    comparison = compare_runs(a, b)
    assert [row.metric for row in comparison.exceeding(7.0)] == ["mean_ttft_ms", "mean_tpot_ms"]
    assert comparison.exceeding(10.0 + 1e-9) == ()
    assert [row.metric for row in comparison.exceeding(150.0, ["p99_ttft_ms"])] == ["p99_ttft_ms"]


def test_gate_without_anything_to_judge_does_not_pass() -> None:
    """No headline metric in common is an error, and so is an undefined percentage above any bound."""
    with pytest.raises(ConfigError, match="share no headline metric"):
        compare_runs(run(p99_ttft_ms=1.0), run("b", p99_ttft_ms=1.0)).exceeding(5.0)
    undefined = compare_runs(run(output_throughput=1.0), run("b", output_throughput=0.0))
    assert [row.metric for row in undefined.exceeding(1e9)] == ["output_throughput"]


def test_metrics_that_cannot_be_compared_are_refused() -> None:
    """A metric of one run names the file that lacks it; an unknown one is answered with the nearest."""
    comparison = compare_runs(run(mean_ttft_ms=1.0, mean_itl_ms=2.0), run("b", mean_ttft_ms=1.0))
    with pytest.raises(ConfigError, match=r"b\.json: mean_itl_ms: is not reported"):
        comparison.select(["mean_itl_ms"])
    with pytest.raises(ConfigError, match=r"nearest first: mean_ttft_ms"):
        comparison.select(["mean_tfft_ms"])


def test_headline_metrics_are_canonical_keys() -> None:
    """The default gate can only look at keys that the readers produce."""
    assert all(is_canonical(key) for key in HEADLINE)
