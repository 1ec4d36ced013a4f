"""What the terminal and `summary.json` say about a run."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pytest
from rich.console import Console

from sim.metrics import summarise
from sim.report import rows
from sim.report.summary import render_summary, summary_json
from sim.results import RunResult

Runs = Callable[..., RunResult]


def rendered(run: RunResult) -> str:
    """The terminal's text on a wide screen without colours."""
    console = Console(file=io.StringIO(), width=120)
    render_summary(summarise(run), run, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_rows_are_those_of_vllm_bench_serve(toy_run: Runs) -> None:
    """A user of vLLM finds the words that its benchmark prints."""
    text = rendered(toy_run(n=60))
    for words in (
        "Serving Benchmark Result",
        "Successful requests",
        "Benchmark duration (s)",
        "Total generated tokens",
        "Output token throughput (tok/s)",
        "Time to First Token",
        "Time per Output Token (excl. 1st token)",
        "Inter-token Latency",
        "End-to-end Latency",
    ):
        assert words in text


def test_header_names_setting_trust_and_notes(toy_run: Runs) -> None:
    """Nobody has to guess what was simulated and how far to believe it."""
    text = rendered(toy_run(n=60))
    for words in ("meta-llama/Llama-3.1-8B", "1 x h100-sxm", "continuous scheduler", "extrapolated:", "Note:"):
        assert words in text


def test_percentiles_of_an_overloaded_run_are_labelled(toy_run: Runs) -> None:
    """They depend on the length of the run and must not pass for a steady state."""
    assert f"Latency (ms), {rows.WHOLE_RUN}" in rendered(toy_run(n=600, rate=40.0))
    assert rows.WHOLE_RUN not in rendered(toy_run(n=600, rate=3.0))


def test_each_objective_says_by_how_much(toy_run: Runs) -> None:
    """Met with something to spare, or missed by something."""
    text = rendered(toy_run(n=60, slo={"ttft_p99_ms": 1e6, "tpot_p99_ms": 1, "e2e_mean_s": 0.6}))
    assert "met, with 100% to spare" in text and "times the limit" in text and "missed by" in text


def test_failures_are_listed_by_reason(toy_run: Runs) -> None:
    """A failed request is never only a count."""
    run = toy_run(n=200, rate=60.0, patience_s=0.3)
    failed = summarise(run)["failures"]["client_timeout"]
    assert any("client timeout" in line and f" {failed} " in line for line in rendered(run).splitlines())


def test_a_run_without_requests_renders(toy_run: Runs) -> None:
    """Nothing observed is a dash; nothing raises."""
    text = rendered(toy_run(n=0, slo={"ttft_p99_ms": 500}))
    assert "not met: nothing completed" in text and "nan" not in text.lower()


def test_summary_json_is_canonical(toy_run: Runs) -> None:
    """Sorted keys and a final newline; reading it back loses nothing."""
    summary = summarise(toy_run(n=60))
    text = summary_json(summary)
    assert json.loads(text) == summary and list(json.loads(text)) == sorted(summary) and text.endswith("}\n")


@pytest.mark.parametrize(
    ("scenario", "expected"),
    [
        ({"workload": "chat"}, "chat"),
        ({"workload": {"arrival": {"kind": "closed_loop", "concurrency": 8}}}, "closed loop arrivals (concurrency 8)"),
        ({"workload": {"trace": "azure.csv"}}, "azure.csv"),
        ({}, None),
    ],
)
def test_workload_is_described_however_it_was_given(toy_run: Runs, scenario: dict[str, object], expected: str) -> None:
    """By name, inline or as a trace; a missing one is left out."""
    run = toy_run(n=1)
    bare = RunResult(run.requests, run.steps, run.segments, {"scenario": scenario})
    assert dict(rows.setting(bare)).get("Workload") == expected
