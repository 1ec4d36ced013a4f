"""Results of other tools end up under our names, in our units and by our definitions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.errors import ConfigError
from sim.imports.measured import is_canonical, latency_statistics, sort_key
from sim.imports.read import KINDS, read_run
from sim.imports.source import Source, split_index
from sim.metrics import summarise
from sim.results import RunResult

DATA = Path(__file__).parents[2] / "data" / "imports"
MODEL = "meta-llama/Llama-3.1-8B"


def edited(name: str, folder: Path, **changes: Any) -> Path:
    """A copy of a flat fixture with some keys changed; None removes a key."""
    data = json.loads((DATA / name).read_text()) | changes
    path = folder / Path(name).name
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    return path


def test_vllm_bench_keys_are_taken_as_they_are() -> None:
    """A `vllm bench serve` result keeps its keys and values; settings and nulls are no metrics."""
    run = read_run(DATA / "vllm_bench.json")
    assert run.kind == "vllm-bench"
    assert run.metrics["mean_ttft_ms"] == 40.0
    assert run.metrics["output_throughput"] == 198.0
    assert not {"request_goodput", "num_prompts", "request_rate", "burstiness", "max_concurrent_requests"} & set(
        run.metrics
    )
    assert run.meta == {"model": MODEL, "request_rate": 4.0, "num_prompts": 100, "burstiness": 1.0}


def test_vllm_bench_fills_only_what_is_missing_from_details() -> None:
    """Arrays of single requests give the statistics the file lacks, and never replace one that it states."""
    run = read_run(DATA / "vllm_bench_detailed.json")
    assert run.metrics["mean_ttft_ms"] == 999.0  # stated, though the arrays say otherwise
    assert run.metrics["median_ttft_ms"] == pytest.approx(200.0)  # the failed request is not among them
    assert run.metrics["mean_tpot_ms"] == pytest.approx((20.0 + 15.0) / 2)  # one token: no TPOT
    assert run.metrics["mean_itl_ms"] == pytest.approx(100.0 / 6)  # gaps are pooled
    assert run.metrics["mean_e2el_ms"] == pytest.approx((140.0 + 260.0 + 300.0) / 3)
    assert run.meta["request_rate"] == float("inf")
    assert any("computed from its ttfts" in note for note in run.notes)


def test_vllm_bench_arrays_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Fewer output lengths than requests is an error that names the file."""
    path = edited("vllm_bench_detailed.json", tmp_path, output_lens=[3])
    with pytest.raises(ConfigError, match=r"vllm_bench_detailed\.json: ttfts, itls and output_lens do not fit"):
        read_run(path)


def test_vllm_goodput_key_with_a_colon_is_read(tmp_path: Path) -> None:
    """Releases that wrote the key `request_goodput:` are understood."""
    path = edited("vllm_bench.json", tmp_path, **{"request_goodput:": 3.5})
    assert read_run(path).metrics["request_goodput"] == 3.5


def test_vllm_p50_is_the_median(tmp_path: Path) -> None:
    """A percentile asked for as 50 is the median where none is stated."""
    path = edited("vllm_bench.json", tmp_path, median_ttft_ms=None, p50_ttft_ms=31.0)
    metrics = read_run(path).metrics
    assert metrics["median_ttft_ms"] == 31.0
    assert "p50_ttft_ms" not in metrics


def test_appended_results_are_chosen_by_index() -> None:
    """A file with one result per line needs `#index`, and the error lists what it holds."""
    path = DATA / "vllm_bench_appended.jsonl"
    assert read_run(f"{path}#1").metrics["mean_ttft_ms"] == 20.0
    with pytest.raises(ConfigError, match=r"holds 2 runs.*#0 .* at 1\.0 req/s; #1 .* at 2\.0 req/s"):
        read_run(path)
    with pytest.raises(ConfigError, match="has no run #2"):
        read_run(f"{path}#2")


def test_inference_perf_seconds_become_milliseconds() -> None:
    """The summary's latencies are scaled, its duration and totals follow from its rates and mean lengths."""
    run = read_run(DATA / "inference_perf")
    assert run.kind == "inference-perf"
    expected = {
        "mean_ttft_ms": 250.0,
        "median_ttft_ms": 225.0,
        "p99_ttft_ms": 500.0,
        "mean_tpot_ms": 125.0,
        "mean_e2el_ms": 500.0,
        "request_throughput": 2.0,
        "completed": 4.0,
        "failed": 1.0,
        "duration": 2.0,
        "total_output_tokens": 12.0,
    }
    assert {key: run.metrics[key] for key in expected} == pytest.approx(expected)
    assert run.meta == {"model": MODEL, "num_prompts": 5.0}
    assert not any(key.startswith("mean_ntpot") or "normalized" in key for key in run.metrics)


def test_inference_perf_rows_add_percentiles_the_summary_lacks() -> None:
    """p95, which the tool's summary leaves out, comes from its single requests; ITL of doubled events does not."""
    metrics = read_run(DATA / "inference_perf").metrics
    assert metrics["p95_ttft_ms"] == pytest.approx(250.0)
    assert metrics["p95_tpot_ms"] == pytest.approx(np.percentile([125, 250, 375, 500], 95))
    assert "p95_itl_ms" not in metrics


def test_inference_perf_rows_of_another_sample_are_not_mixed_in(tmp_path: Path) -> None:
    """When the rows are not all completed requests, nothing is computed from them."""
    shutil.copytree(DATA / "inference_perf", tmp_path / "r")
    rows = tmp_path / "r" / "per_request_lifecycle_metrics.json"
    rows.write_text(json.dumps(json.loads(rows.read_text())[1:]))
    assert "p95_ttft_ms" not in read_run(tmp_path / "r").metrics


def test_inference_perf_stage_is_chosen_by_index() -> None:
    """`DIR#1` is the second load stage with its own rate; the pooled summary says that it pools."""
    stage = read_run(f"{DATA / 'inference_perf'}#1")
    assert stage.metrics["mean_ttft_ms"] == 500.0
    assert stage.meta["request_rate"] == 3.0
    assert "p95_ttft_ms" not in stage.metrics  # the rows do not say their stage
    assert any("pools 2 load stages" in note for note in read_run(DATA / "inference_perf").notes)
    with pytest.raises(ConfigError, match=r"has no stage #7; stages: #0, #1"):
        read_run(f"{DATA / 'inference_perf'}#7")


def test_inference_perf_tpot_that_contradicts_itself_is_not_believed(tmp_path: Path) -> None:
    """A TPOT of half (E2E - TTFT) / (n - 1), as counting stream events twice gives, is computed anew or left out."""
    shutil.copytree(DATA / "inference_perf", tmp_path / "r")
    summary = tmp_path / "r" / "summary_lifecycle_metrics.json"
    data = json.loads(summary.read_text())
    data["successes"]["latency"]["time_per_output_token"]["mean"] /= 2
    summary.write_text(json.dumps(data))
    run = read_run(tmp_path / "r")
    assert run.metrics["mean_tpot_ms"] == pytest.approx(312.5)
    assert not any(key.endswith("_itl_ms") for key in run.metrics)
    assert any("contradicts" in note for note in run.notes)
    (tmp_path / "r" / "per_request_lifecycle_metrics.json").unlink()
    assert not any(key.endswith(("_itl_ms", "_tpot_ms")) for key in read_run(tmp_path / "r").metrics)


def test_guidellm_words_are_mapped_by_definition() -> None:
    """Its per-request ITL is our TPOT, its E2E / n is not used, and it has no pooled gaps."""
    run = read_run(f"{DATA / 'guidellm'}#0")
    assert run.metrics["mean_tpot_ms"] == 9.0
    assert run.metrics["p99.9_ttft_ms"] == 120.0
    assert run.metrics["p90_ttft_ms"] == 60.0
    assert run.metrics["mean_e2el_ms"] == 500.0  # seconds in the file
    assert not any(key.endswith("_itl_ms") for key in run.metrics)
    assert any("our TPOT" in note for note in run.notes)


def test_guidellm_counts_only_what_succeeded() -> None:
    """Failed and cut-off requests are counted apart and enter no statistic."""
    run = read_run(f"{DATA / 'guidellm' / 'benchmarks.json'}#1")
    assert (run.metrics["completed"], run.metrics["failed"]) == (50.0, 2.0)
    assert 12345.0 not in run.metrics.values()
    assert run.metrics["total_output_tokens"] == 2500.0
    assert run.meta == {"model": MODEL, "max_concurrency": 8.0, "num_prompts": 55.0}
    assert any("3 requests were cut off" in note for note in run.notes)


def test_guidellm_asks_which_benchmark_is_meant() -> None:
    """A file with several benchmarks lists them by index."""
    with pytest.raises(
        ConfigError, match=r"choose one as benchmarks\.json#INDEX: #0 constant 2 req/s; #1 concurrent x8"
    ):
        read_run(DATA / "guidellm")


def test_guidellm_tpot_counts_requests_once_when_they_are_listed(tmp_path: Path) -> None:
    """With every successful request in the file TPOT is computed from them instead of the tool's own statistics."""
    data = json.loads((DATA / "guidellm" / "benchmarks.json").read_text())
    run = data["benchmarks"][0]
    run["metrics"]["request_totals"]["successful"] = 3
    run["requests"]["successful"] = [
        {"output_tokens": 2, "inter_token_latency_ms": 10.0},
        {"output_tokens": 100, "inter_token_latency_ms": 30.0},
        {"output_tokens": 1, "inter_token_latency_ms": None},
    ]
    (tmp_path / "benchmarks.json").write_text(json.dumps({"benchmarks": [run]}))
    assert read_run(tmp_path).metrics["mean_tpot_ms"] == 20.0


def test_aiperf_units_are_read() -> None:
    """Every metric is scaled by the unit it states, and NVIDIA's inter-token latency is our TPOT."""
    run = read_run(DATA / "aiperf")
    assert run.metrics["mean_tpot_ms"] == 9.0
    assert run.metrics["mean_itl_ms"] == pytest.approx(9.5)  # microseconds in the file
    assert (run.metrics["duration"], run.metrics["completed"]) == (25.0, 50.0)
    assert run.meta["max_concurrency"] == 8.0


def test_aiperf_unknown_unit_is_refused(tmp_path: Path) -> None:
    """A latency in a unit we do not know is an error, not a guess."""
    data = json.loads((DATA / "aiperf" / "profile_export_aiperf.json").read_text())
    data["time_to_first_token"]["unit"] = "fortnights"
    (tmp_path / "profile.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r"time_to_first_token\.unit: 'fortnights'"):
        read_run(tmp_path / "profile.json")


def test_roofserve_directory_and_summary_are_the_same_run() -> None:
    """A saved run and its summary.json give equal metrics, ours included, and the manifest's set-up."""
    by_folder, by_file = read_run(DATA / "roofserve"), read_run(DATA / "roofserve" / "summary.json")
    assert by_folder.metrics == by_file.metrics
    assert by_folder.metrics["busy_share"] == 0.5
    assert (by_folder.kind, by_folder.label) == ("roofserve", "chat")
    assert by_folder.meta == {"model": MODEL, "hardware": "h100-sxm", "request_rate": 4.0, "num_prompts": 100.0}


def test_a_run_saved_without_summary_is_summarised(toy_run: Callable[..., RunResult], tmp_path: Path) -> None:
    """The tables of a saved run give the metrics its summary would have held."""
    result = toy_run(n=60)
    result.save(tmp_path)
    expected = summarise(result)
    metrics = read_run(tmp_path).metrics
    assert metrics["mean_ttft_ms"] == expected["mean_ttft_ms"]
    assert {key for key in expected if is_canonical(key) and expected[key] is not None} <= set(metrics)


def test_an_overloaded_run_says_so(tmp_path: Path) -> None:
    """Latencies of a run that did not keep up come with a note."""
    path = edited("roofserve/summary.json", tmp_path, regime="OVERLOADED")
    assert any("OVERLOADED" in note for note in read_run(path).notes)


def test_half_a_saved_run_is_refused(tmp_path: Path) -> None:
    """A manifest without summary and tables names what is missing."""
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"is not a saved run \(requests\.parquet is missing\)"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b'{"a": ', "is not valid JSON"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"[]", "understood are a roofserve run"),
        (b'{"hello": 1}', "understood are a roofserve run"),
        (b'{"successes": {"latency": {}}}', "states no metric"),
        (b'{"benchmarks": [{"metrics": {}}]}', "states no metric"),
        (b"[" * 100_000, "is not"),
    ],
)
def test_what_is_no_result_is_refused_by_name(tmp_path: Path, content: bytes, problem: str) -> None:
    """Unknown and corrupt files give one line that names the file and, where it helps, the kinds understood."""
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=problem) as caught:
        read_run(path)
    assert "odd.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_paths_and_other_folders_are_refused(tmp_path: Path) -> None:
    """A path that is not there and a folder without results are told apart."""
    with pytest.raises(ConfigError, match="no such file"):
        read_run(tmp_path / "nothing.json")
    with pytest.raises(ConfigError, match="is not a directory of results") as caught:
        read_run(tmp_path)
    assert all(kind in str(caught.value) for kind in KINDS)


def test_index_syntax(tmp_path: Path) -> None:
    """`#2` chooses a run, unless a file is really called that; anything but a number is refused."""
    odd = tmp_path / "a#2"
    odd.write_text("{}")
    assert split_index(str(odd)) == (odd, None)
    assert split_index(str(tmp_path / "b.json#2")) == (tmp_path / "b.json", 2)
    with pytest.raises(ConfigError, match="must be a number"):
        split_index("b.json#last")
    with pytest.raises(ConfigError, match="holds a single run"):
        Source(odd, {}, 2).refuse_index()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_PATHS = [
    ("vllm_bench_detailed.json", ("ttfts",)),
    ("vllm_bench_detailed.json", ("itls", 0)),
    ("vllm_bench_detailed.json", ("errors",)),
    ("vllm_bench.json", ("request_rate",)),
    ("guidellm/benchmarks.json", ("benchmarks", 0, "metrics", "request_latency")),
    ("guidellm/benchmarks.json", ("benchmarks", 0, "config")),
    ("guidellm/benchmarks.json", ("benchmarks", 0, "requests")),
    ("inference_perf/summary_lifecycle_metrics.json", ("successes", "latency", "request_latency")),
    ("inference_perf/summary_lifecycle_metrics.json", ("successes", "throughput")),
    ("inference_perf/summary_lifecycle_metrics.json", ("successes", "count")),
    ("aiperf/profile_export_aiperf.json", ("input_config", "endpoint")),
    ("aiperf/profile_export_aiperf.json", ("time_to_first_token",)),
    ("roofserve/summary.json", ("regime",)),
]


@pytest.mark.parametrize(("name", "keys"), _PATHS)
@settings(deadline=None)
@given(value=_JSON | st.just(10**400))
def test_any_odd_value_gives_a_run_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, keys: tuple[str | int, ...], value: Any
) -> None:
    """Whatever stands where another tool's version might put something else, no reader breaks."""
    document = json.loads((DATA / name).read_text())
    place: Any = document
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path = tmp_path_factory.getbasetemp() / "odd.json"
    path.write_text(json.dumps(document))
    try:
        run = read_run(f"{path}#0" if "guidellm" in name else path)
    except ConfigError:
        return
    assert all(np.isfinite(number) for number in run.metrics.values())


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30))
def test_statistics_are_ordered(values: list[float]) -> None:
    """min <= median <= p90 <= p95 <= p99 <= max, and nothing comes of no values."""
    found = latency_statistics("ttft", values)
    chain = [found[f"{name}_ttft_ms"] for name in ("median", "p90", "p95", "p99")]
    assert chain == sorted(chain)
    assert min(values) <= chain[0]
    assert chain[-1] <= max(values) * (1 + 1e-12)
    assert latency_statistics("ttft", []) == {}


def test_canonical_order_is_that_of_the_report() -> None:
    """Totals come first, then TTFT to E2EL with mean, median, std, rising percentiles, then what only we report."""
    order = [
        "duration",
        "output_throughput",
        "mean_ttft_ms",
        "std_ttft_ms",
        "p90_ttft_ms",
        "p99.9_ttft_ms",
        "mean_e2el_ms",
    ]
    order += ["mean_queue_time_ms", "busy_share"]
    assert sorted(sorted(order), key=sort_key) == order
    assert is_canonical("p99.9_ttft_ms")
    assert not is_canonical("num_prompts")
