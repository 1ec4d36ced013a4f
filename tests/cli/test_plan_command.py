"""`roofserve plan`, `compare hardware` and `sweep` as a user meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import sim.planner.traffic

Command = Callable[..., Any]
QUICK = ("--seeds", "1", "--duration", "5", "--uncertainty", "0", "--jobs", "1", "--no-report")
SCENARIO = """\
model: meta-llama/Llama-3.2-1B
hardware: l4
workload:
  num_requests: 300
  arrival: {kind: poisson, rate: 20}
  input_tokens: {kind: uniform, min: 100, max: 600}
  output_tokens: {kind: uniform, min: 1, max: 40}
engine: {max_model_len: 8192}
slo: {ttft_p99_ms: 500, tpot_p99_ms: 50}
"""


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scenario on which a simulation takes some milliseconds, of fewer requests than percentiles deserve."""
    monkeypatch.setattr(sim.planner.traffic, "LEAST_REQUESTS", 200)
    (tmp_path / "toy.yaml").write_text(SCENARIO)


def test_a_plan_answers(roofserve: Command) -> None:
    """One sentence with fleet, price and objectives; the winner's command; tables and page on disk."""
    answer = roofserve("plan", "toy.yaml", "--hardware", "l4,a40", "--rate", "30", "--spare", "1", *QUICK)
    assert answer.code == 0 and answer.err == ""
    told = " ".join(answer.out.split())
    for words in ("30 requests/s within TTFT p99 <= 500 ms, TPOT p99 <= 50 ms", "1 replica to spare", "the cheapest",
                  "vllm serve meta-llama/Llama-3.2-1B", "Report: out/toy/plan.html"):  # fmt: skip
        assert words in told
    page = Path("out/toy/plan.html").read_text()
    assert "roofserve plan toy.yaml --hardware l4,a40 --rate 30" in page.splitlines()[0]
    rows = pq.read_table("out/toy/plan.parquet").to_pylist()
    assert {row["hardware"] for row in rows} == {"l4", "a40"}
    assert [row["usd_per_hour"] for row in rows] == sorted(row["usd_per_hour"] for row in rows)
    assert all(row["usd_per_hour_low"] <= row["usd_per_hour"] <= row["usd_per_hour_high"] for row in rows)
    assert Path("out/toy/candidates.csv").exists()


def test_prices_and_carbon_of_ones_own(roofserve: Command) -> None:
    """--price makes another GPU the cheapest; --carbon counts grams."""
    dear = ("--price", "l4=50", "--carbon", "DEU", "--format", "json")
    answer = roofserve("plan", "toy.yaml", "--hardware", "l4,a40", "--rate", "10", *dear, *QUICK)
    told = json.loads(answer.out)
    assert told["cheapest"] == "a40" and told["feasible"]
    assert all(row["carbon_g_per_hour"] == pytest.approx(row["watts_at_most"] / 1e3 * 381) for row in told["fleets"])
    ratio = {row["hardware"]: row["usd_per_hour"] / row["gpus"] for row in told["fleets"]}
    assert ratio["l4"] == 50


def test_what_nothing_holds_exits_with_three(roofserve: Command) -> None:
    """The reason, and objectives that would hold, which then do."""
    answer = roofserve("plan", "toy.yaml", "--slo", "ttft_p99=3ms", "--rate", "2", *QUICK)
    assert answer.code == 3 and "No fleet holds" in answer.err and "even idle" in answer.err
    nearest = next(line for line in answer.out.splitlines() if "--slo" in line).split("--slo ")[1]
    assert roofserve("plan", "toy.yaml", "--slo", nearest, "--rate", "2", *QUICK).code == 0


def test_the_highest_rate_of_a_fleet(roofserve: Command) -> None:
    """--replicas asks the other way round."""
    answer = roofserve("plan", "toy.yaml", "--replicas", "2", *QUICK)
    assert answer.code == 0 and "2 x l4" in answer.out and "hold up to" in " ".join(answer.out.split())
    row = pq.read_table("out/toy/plan.parquet").to_pylist()[0]
    assert row["replicas"] == 2 and row["highest_rate"] > 20


def test_a_day_of_traffic(roofserve: Command, tmp_path: Path) -> None:
    """A trace is planned at its busiest, and the table of the day says what each part of it needs."""
    times = [i * 2.0 for i in range(1500)] + [1500 + i / 40 for i in range(4000)]
    rows = "\n".join(f"{time:.3f},300,20" for time in sorted(times))
    Path("day.csv").write_text(f"arrived_at,num_prefill_tokens,num_decode_tokens\n{rows}\n")
    answer = roofserve("plan", "toy.yaml", "--trace", "day.csv", *QUICK[:-1])
    assert answer.code == 0 and "busiest" in answer.out
    day = pq.read_table("out/toy/day.parquet").to_pylist()
    assert len(day) == 24 and day[0]["replicas"] <= max(row["replicas"] for row in day)
    assert Path("out/toy/figures/day.png").exists() and Path("out/toy/figures/latency_rate.svg").exists()


def test_compare_hardware(roofserve: Command) -> None:
    """Each GPU with its best configuration, prices per token apart, and latencies at equal load."""
    Path("w.yaml").write_text(
        "num_requests: 300\narrival: {kind: poisson, rate: 20}\ninput_tokens: 300\noutput_tokens: 20\n"
    )
    chosen = ("--hardware", "l4,a40", "--model", "meta-llama/Llama-3.2-1B", "--workload", "w.yaml")
    answer = roofserve("compare", "hardware", *chosen, "--set", "engine.max_model_len=8192", *QUICK)
    assert answer.code == 0
    rows = pq.read_table("out/hardware-for-Llama-3.2-1B/plan.parquet").to_pylist()
    assert {row["hardware"] for row in rows} == {"l4", "a40"}
    assert all(0 < row["usd_per_million_input_tokens"] < row["usd_per_million_output_tokens"] for row in rows)
    equal = pq.read_table("out/hardware-for-Llama-3.2-1B/equal_load.parquet").to_pylist()
    assert len({row["rate"] / row["gpus"] for row in equal}) == 1


def test_a_model_that_fits_no_node_gets_stages(roofserve: Command) -> None:
    """176 billion parameters in 16 bit need two nodes of A100-40: pipeline stages, and the hours of both."""
    chosen = ("--hardware", "a100-sxm-40gb", "--model", "bigscience/bloom", "--slo", "ttft_p99=10s", "--rate", "0.5")
    answer = roofserve("compare", "hardware", *chosen, *QUICK)
    assert answer.code == 0 and "PP 2" in answer.out
    [row] = pq.read_table("out/hardware-for-bloom/plan.parquet").to_pylist()
    assert row["gpus_per_replica"] == 16 and row["communication_share"] > 0.01


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--slo", "ttft=fast"), "expected seconds"),
        (("--slo", "ttfd_p99=1s"), "is not an objective"),
        (("--search", "tq"), "nearest first: tp"),
        (("--hardware", "h1000"), "unknown hardware"),
        (("--price", "l4=cheap"), "expected GPU=USD"),
        (("--carbon", "XYZ"), "no grid"),
        (("--replicas", "2", "--spare", "1"), "what a given fleet holds"),
        (("--executor", "ray", "--jobs", "2"), "knows its size"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: tuple[str, ...], told: str, roofserve: Command) -> None:
    """Exit code 2, one line, the option and the valid choices."""
    answer = roofserve("plan", "toy.yaml", *QUICK[:-3], *arguments)
    assert answer.code == 2 and told in answer.err and answer.err.count("\n") == 1


def test_a_sweep_prints_and_resumes(roofserve: Command) -> None:
    """The table on the terminal; a second call takes all from before; a failed point is told and fatal to nobody."""
    Path("s.yaml").write_text("scenario: toy.yaml\ngrid: {hardware: [l4, nothing], seed: [1, 2]}\n")
    first = roofserve("sweep", "s.yaml", "--jobs", "1")
    assert first.code == 0 and "4 points, 2 failed. Table: out/s/sweep.parquet" in first.out
    assert "unknown hardware" in first.out
    assert "4 points, 4 of them from before, 2 failed" in roofserve("sweep", "s.yaml", "--jobs", "1").out
