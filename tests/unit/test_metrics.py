"""Numbers of a run against hand calculation and against a token-by-token expansion of its tables."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.latencies import LatencySamples, Sample
from sim.metrics import conforming, summarise
from sim.request import Reason, State
from sim.results import REQUEST_COLUMNS, SEGMENT_COLUMNS, STEP_COLUMNS, RunResult, Table
from sim.token_times import decode_boundaries, inter_token_gaps, token_times, tokens_per_bin

S = 10**12
Runs = Callable[..., RunResult]


def table(kinds: dict[str, str], **columns: list[int]) -> Table:
    """A table whose unnamed columns are zero."""
    rows = max((len(c) for c in columns.values()), default=0)
    types = {"b": np.int8, "h": np.int16, "i": np.int32, "q": np.int64}
    return Table({k: np.array(columns.get(k, [0] * rows), dtype=types[t]) for k, t in kinds.items()})


def three_requests() -> RunResult:
    """One completed with 3 tokens at 2, 3 and 5 s, one completed with one token, one rejected."""
    requests = table(
        REQUEST_COLUMNS,
        request_id=[0, 1, 2],
        replica=[0, 0, -1],
        state=[State.COMPLETED, State.COMPLETED, State.REJECTED],
        reason=[Reason.NONE, Reason.NONE, Reason.TOO_LONG],
        arrival_ps=[0, 1 * S, 2 * S],
        scheduled_ps=[1 * S, 1 * S, -1],
        first_token_ps=[2 * S, 2 * S, -1],
        finish_ps=[5 * S, 2 * S, 2 * S],
        prompt_tokens=[10, 20, 9999],
        output_tokens=[3, 1, 0],
    )
    steps = table(
        STEP_COLUMNS,
        start_ps=[1 * S, 2 * S],
        steps=[1, 2],
        first_step_ps=[1 * S, 1 * S],
        slope_ps=[0, 1 * S],
        decodes=[0, 1],
        prefill_tokens=[30, 0],
        prefill_sequences=[2, 0],
        kv_blocks=[2, 1],
        kv_tokens=[30, 10],
        running=[2, 1],
    )
    segments = table(
        SEGMENT_COLUMNS,
        request_id=[0, 1],
        start_ps=[2 * S, 2 * S],
        first_step=[0, 0],
        last_step=[2, 0],
        tokens=[3, 1],
    )
    facts = {"gpus": 2, "replicas": 1, "num_gpu_blocks": 4, "block_size": 16, "price_per_gpu_hour_usd": 1.8}
    slo = {"ttft_p99_ms": 1500, "tpot_p99_ms": 2000}
    return RunResult(requests, steps, segments, {"facts": facts, "scenario": {"slo": slo}})


def expected_gaps(run: RunResult, ids: list[int] | None = None) -> list[int]:
    """Every gap, one by one."""
    return sorted(int(g) for times in token_times(run, ids).values() for g in np.diff(times))


def test_decode_boundaries_follow_the_arithmetic_of_a_row() -> None:
    """Step i of a row lasts first + i * slope, and rows without decodes have no boundary."""
    rows = table(
        STEP_COLUMNS,
        start_ps=[0, 100, 200],
        steps=[3, 5, 2],
        first_step_ps=[10, 7, 4],
        slope_ps=[2, 1, 0],
        decodes=[1, 0, 1],
    )
    assert decode_boundaries(rows).tolist() == [0, 10, 22, 36, 204, 208]


def test_summary_of_three_requests_equals_hand_calculation() -> None:
    """Throughput, latencies, goodput and cost of a run small enough to work out on paper."""
    summary = summarise(three_requests())
    expected = {
        "num_prompts": 3,
        "completed": 2,
        "failed": 1,
        "unfinished": 0,
        "duration": 5.0,
        "total_input_tokens": 30,
        "total_output_tokens": 4,
        "request_throughput": 0.4,
        "output_throughput": 0.8,
        "total_token_throughput": 6.8,
        "max_output_tokens_per_s": 2,
        "max_concurrent_requests": 2,
        "mean_ttft_ms": 1500.0,
        "median_ttft_ms": 1500.0,
        "std_ttft_ms": 500.0,
        "p99_ttft_ms": 1990.0,
        "mean_tpot_ms": 1500.0,
        "mean_itl_ms": 1500.0,
        "p99_itl_ms": 1990.0,
        "mean_e2el_ms": 3000.0,
        "mean_queue_time_ms": 500.0,
        "request_goodput": 0.2,
        "mean_batch_size": 4 / 3,
        "usd_per_million_output_tokens": 2 * 1.8 / 3600 / 0.8 * 1e6,
    }
    assert {key: summary[key] for key in expected} == pytest.approx(expected)
    assert summary["failures"] == {"too_long": 1}
    assert summary["prefix_cache"] == {"token_hit_ratio": 0.0, "block_hit_ratio": 0.0, "tiers": []}
    assert summary["slo_attainment"] == pytest.approx(1 / 3)
    assert [(line["key"], line["met"]) for line in summary["slo"]] == [("tpot_p99_ms", True), ("ttft_p99_ms", False)]


def test_hit_ratios_count_tokens_and_full_blocks() -> None:
    """Of 30 prompt tokens 18 were found, and two of the three full blocks of 9; refused prompts do not count."""
    run = three_requests()
    run.manifest["facts"]["block_size"] = 9
    run.requests["cached_tokens"][:] = [9, 9, 0]
    ratios = summarise(run)["prefix_cache"]
    assert (ratios["token_hit_ratio"], ratios["block_hit_ratio"]) == pytest.approx((18 / 30, 2 / 3))


def test_one_token_requests_have_no_tpot_and_pass_its_limit() -> None:
    """As in vLLM: left out of the statistics, counted as conforming."""
    run = three_requests()
    assert len(LatencySamples(run)["tpot"]) == 1
    assert conforming(run.requests.where(run.requests["output_tokens"] == 1), {"tpot": 0.001}).all()


def test_gap_after_a_preemption_spans_it() -> None:
    """The gap runs from the last token before the preemption to the first one after it, even to another replica."""
    steps = table(
        STEP_COLUMNS,
        replica=[0, 1],
        start_ps=[0, 0],
        steps=[2, 3],
        first_step_ps=[10, 100],
        decodes=[1, 1],
    )
    segments = table(
        SEGMENT_COLUMNS,
        request_id=[7, 7],
        replica=[1, 0],
        start_ps=[90, 5],
        first_step=[0, 0],
        last_step=[2, 2],
        tokens=[3, 3],
    )
    run = RunResult(table(REQUEST_COLUMNS), steps, segments)
    gaps = inter_token_gaps(run)
    assert sorted(np.repeat(gaps.gap_ps, gaps.count).tolist()) == [5, 10, 10, 70, 100]
    assert expected_gaps(run) == [5, 10, 10, 70, 100]


@pytest.mark.parametrize("options", [{"blocks": 300}, {"replicas": 3, "rate": 20.0}, {"patience_s": 0.5, "rate": 40.0}])
def test_columnwise_gaps_equal_the_token_by_token_expansion(toy_run: Runs, options: dict[str, float]) -> None:
    """Preemptions, several replicas and clients that give up make no difference between the two."""
    run = toy_run(n=120, **options)
    gaps = inter_token_gaps(run)
    assert sorted(np.repeat(gaps.gap_ps, gaps.count).tolist()) == expected_gaps(run)
    done = run.requests["request_id"][run.requests["state"] == State.COMPLETED]
    gaps = inter_token_gaps(run, done)
    assert sorted(np.repeat(gaps.gap_ps, gaps.count).tolist()) == expected_gaps(run, done.tolist())


def test_toy_runs_exercise_preemption(toy_run: Runs) -> None:
    """The comparison above would prove little if no request had more than one segment."""
    run = toy_run(n=120, blocks=300)
    assert len(run.segments) > len(run.requests) and run.requests["preemptions"].sum() > 0


def test_every_token_is_counted_once_over_time(toy_run: Runs) -> None:
    """The tokens of all intervals together are those that the clients received."""
    run = toy_run(n=120, blocks=300, replicas=2)
    binned = tokens_per_bin(run, 0, 700_000_000_000, 100)
    assert binned.sum() == run.requests["output_tokens"].sum()
    times = np.concatenate(list(token_times(run).values()))
    assert binned.tolist() == np.bincount(np.minimum(times // 700_000_000_000, 99), minlength=100).tolist()


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 5)), min_size=1, max_size=30), st.floats(0, 100))
@settings(max_examples=100, deadline=None)
def test_weighted_statistics_equal_numpy_on_the_written_out_list(data: list[tuple[int, int]], percent: float) -> None:
    """Percentile, mean and standard deviation do not depend on how multiplicities are stored."""
    values, counts = (np.array(column) for column in zip(*data, strict=True))
    sample, full = Sample.of(values.astype(float), counts), np.repeat(values, counts)
    assert sample.percentile(percent) == pytest.approx(np.percentile(full, percent))
    assert (sample.mean(), sample.std()) == pytest.approx((full.mean(), full.std()))


def test_every_request_is_accounted_for(toy_run: Runs) -> None:
    """Submitted = completed + failed + unfinished, and every failure has a reason."""
    run = toy_run(n=300, rate=40.0, patience_s=1.0)
    run.requests["state"][:5] = State.UNFINISHED
    summary = summarise(run)
    assert summary["completed"] + summary["failed"] + summary["unfinished"] == summary["num_prompts"] == 300
    assert summary["unfinished"] == 5 and 0 < sum(summary["failures"].values()) == summary["failed"]


def test_failed_requests_do_not_conform_but_unfinished_ones_are_left_out() -> None:
    """The rule of guidellm: an error is a miss, being cut off by the end of the run is not."""
    run = three_requests()
    run.requests["state"][2] = State.UNFINISHED
    assert summarise(run)["slo_attainment"] == pytest.approx(1 / 2)


def test_summary_of_the_same_run_is_the_same_json(toy_run: Runs) -> None:
    """Same seed, same bytes; and nothing in it that JSON cannot write."""
    first, second = (json.dumps(summarise(toy_run(n=60, seed=3)), allow_nan=False) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("n", [0, 1])
def test_hardly_any_request_still_gives_a_summary(toy_run: Runs, n: int) -> None:
    """No observation is null, not an exception and not zero."""
    summary = summarise(toy_run(n=n, slo={"ttft_p99_ms": 500}))
    assert summary["completed"] == n and summary["steady_state"] is False
    assert (summary["p99_ttft_ms"] is None) == (n == 0) and summary["slo"][0]["met"] == (n == 1)


def test_kv_shares_add_up(toy_run: Runs) -> None:
    """Filled, reserved, never filled, stranded and free blocks are all the blocks there are."""
    kv = summarise(toy_run(n=200, blocks=400))["kv"]
    kinds = ("filled", "reserved", "internal_fragmentation", "stranded", "free")
    assert sum(kv[f"mean_{kind}_share"] for kind in kinds) == pytest.approx(1.0)
    assert sum(kv[f"mean_{kind}_share_of_used"] for kind in kinds[:3]) == pytest.approx(1.0)
    assert 0 < kv["mean_used_share"] < kv["peak_used_share"] <= 1
