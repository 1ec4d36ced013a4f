"""Timing against a device whose clock the test turns, and campaigns that are cut short."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from pathlib import Path

import pytest

from sim.errors import ConfigError
from sim.validation.measure.campaign import Campaign
from sim.validation.measure.problems import Problem, calibration_problems, fresh_problems
from sim.validation.measure.record import Measurement, Record, read_record, tables
from sim.validation.measure.timing import Pace, Run, copies_to_outgrow, measure


@dataclass
class FakeDevice:
    """A device that spends the next of a list of durations on each run; marks are readings of its clock."""

    durations: Iterator[float]
    now_s: float = 0.0
    runs: int = 0

    def run(self) -> None:
        self.now_s += next(self.durations)
        self.runs += 1

    def mark(self) -> float:
        return self.now_s

    def seconds(self, start: float, end: float) -> float:
        return end - start


def test_the_median_of_the_repeats_is_taken_per_launch() -> None:
    """Slow first runs and a rare slow repeat leave the result alone; it is divided by the launches of a run."""
    slow_start = [1.0, 0.5] + [0.001] * 3
    device = FakeDevice(iter(slow_start + [0.001] * 10 + [0.1] + [0.001] * 100))
    timing = measure(device.run, 10, device, Pace(warm_up_s=1.502, measure_s=0.02, fewest=5, most=50))
    assert timing.seconds == pytest.approx(1e-4)
    assert timing.repeats == 20


def test_warm_up_ends_when_its_time_has_passed() -> None:
    """Runs are repeated untimed until the warm-up time is spent."""
    device = FakeDevice(cycle([0.004]))
    measure(device.run, 1, device, Pace(warm_up_s=0.01, measure_s=0.0, fewest=5))
    assert device.runs == 3 + 5


@pytest.mark.parametrize(("each", "repeats"), [(1e-5, 100), (2e-3, 20), (1.0, 5)])
def test_repeats_fill_their_time_within_limits(each: float, repeats: int) -> None:
    """Short runs are repeated up to a limit, long ones a few times all the same."""
    device = FakeDevice(cycle([each]))
    assert measure(device.run, 1, device, Pace(measure_s=0.04, fewest=5, most=100)).repeats == repeats


def test_spread_is_between_deciles() -> None:
    """Two alternating durations have the spread of their difference."""
    device = FakeDevice(cycle([0.9, 1.1]))
    timing = measure(device.run, 1, device, Pace(warm_up_s=0.0, measure_s=100.0, fewest=5, most=100))
    assert timing.spread == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(("set_bytes", "copies"), [(1, 64), (10, 20), (60, 4), (1000, 1)])
def test_rotation_outgrows_the_cache_twice(set_bytes: int, copies: int) -> None:
    """As many sets as fill twice the cache, and no more than a limit."""
    assert copies_to_outgrow(100, set_bytes) == copies


@dataclass
class FakeBench:
    """Each problem takes as many microseconds as its m; m = 13 cannot be run."""

    watch: FakeDevice = field(default_factory=lambda: FakeDevice(iter(())))

    def prepare(self, problem: Problem) -> tuple[Run, int]:
        size = problem.columns["m"]
        assert isinstance(size, int)
        if size == 13:
            raise RuntimeError("no kernel\nfor this")
        self.watch.durations = cycle([size * 1e-6])
        return self.watch.run, 1

    def clocks(self) -> dict[str, float]:
        return {"sm_mhz": 1980.0}


def _problems(count: int) -> list[Problem]:
    return [Problem.of("gemm", scheme="bf16", m=m, n=8, k=8) for m in range(1, count + 1)]


def _campaign(path: Path, clock: Iterator[float] | None = None) -> Campaign:
    readings = cycle([0.0]) if clock is None else clock
    return Campaign(FakeBench(), Record(path), lambda: next(readings))


HERE = {"gpu_name": "Test GPU"}


def test_a_campaign_records_times_and_failures(tmp_path: Path) -> None:
    """Every problem leaves a line: its time with the clocks, or the first line of what went wrong."""
    found = _campaign(tmp_path / "r.jsonl").run(_problems(13), HERE, 1.0)
    assert [one.latency_us for one in found[:12]] == [float(m) for m in range(1, 13)]
    assert found[0].clocks == {"sm_mhz": 1980.0}
    assert (found[12].latency_us, found[12].error) == (None, "RuntimeError: no kernel")
    assert read_record(tmp_path / "r.jsonl") == (HERE, found)


def test_the_budget_stops_a_campaign_and_the_next_goes_on(tmp_path: Path) -> None:
    """Nothing is begun after the budget; a second run measures what is missing and repeats nothing."""
    path = tmp_path / "r.jsonl"
    first = _campaign(path, iter([0.0, 0.2, 0.4, 0.6, 1.1])).run(_problems(6), HERE, 1.0)
    assert len(first) == 3
    again = _campaign(path)
    found = again.run(_problems(6), HERE, 1.0)
    assert [one.sizes["m"] for one in found] == [1, 2, 3, 4, 5, 6]
    assert isinstance(again.bench, FakeBench)
    assert len(path.read_text().splitlines()) == 7


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_kernel_timing import HERE, FakeBench, _problems
from sim.validation.measure.campaign import Campaign
from sim.validation.measure.record import Record
class Dying(FakeBench):
    def prepare(self, problem):
        if problem.columns["m"] == 4:
            os.kill(os.getpid(), 9)
        return super().prepare(problem)
Campaign(Dying(), Record(Path({path!r})), lambda: 0.0).run(_problems(6), HERE, 1.0)
"""


def test_a_killed_campaign_keeps_what_it_measured(tmp_path: Path) -> None:
    """After a kill in the middle, and with a line torn off, the next run goes on where the file ends."""
    path = tmp_path / "r.jsonl"
    script = KILLED.format(folder=str(Path(__file__).parent), path=str(path))
    root = Path(__file__).resolve().parents[3]
    killed = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": str(root)}, check=False)
    assert killed.returncode == -9
    assert len(read_record(path)[1]) == 3
    path.write_text(path.read_text()[:-20])
    found = _campaign(path).run(_problems(6), HERE, 1.0)
    assert sorted(one.latency_us or 0 for one in found) == [1, 2, 3, 4, 5, 6]
    assert read_record(path) == (HERE, found)


def test_a_record_is_of_one_gpu(tmp_path: Path) -> None:
    """Going on with another GPU's file is refused, as is a file with a broken line inside."""
    path = tmp_path / "r.jsonl"
    _campaign(path).run(_problems(1), HERE, 1.0)
    with pytest.raises(ConfigError, match="holds measurements of Test GPU, not of Other"):
        _campaign(path).run(_problems(1), {"gpu_name": "Other"}, 1.0)
    path.write_text(path.read_text() + "nonsense\n")
    with pytest.raises(ConfigError, match=r"r\.jsonl:3: is no measurement"):
        read_record(path)


def test_measurements_become_tables() -> None:
    """Times land in the columns of the measurement tables, labelled with profile and stack; failures are left out."""
    good = Measurement("gemm", {"scheme": "bf16", "m": 1, "n": 2, "k": 3}, 5.0)
    bad = Measurement("gemm", {"scheme": "bf16", "m": 2, "n": 2, "k": 3}, error="no")
    rows = tables([good, bad], "h200-sxm")["gemm"].to_dict("records")
    assert rows == [
        {
            "scheme": "bf16",
            "m": 1,
            "n": 2,
            "k": 3,
            "gpu": "h200-sxm",
            "source": "roofserve-kernels-1",
            "latency_us": 5.0,
        }
    ]


def test_quick_problems_come_first_and_nothing_comes_twice() -> None:
    """A full run begins with the quick one; groups that share weights stand together."""
    quick, full = calibration_problems(quick=True), calibration_problems()
    assert full[: len(quick)] == quick
    assert len({problem.key for problem in full}) == len(full)
    weights = [(p.columns["scheme"], p.columns["n"], p.columns["k"]) for p in quick if p.table == "gemm"]
    changes = sum(a != b for a, b in pairwise(weights))
    assert changes == len(set(weights)) - 1


def test_a_quick_run_sees_every_class_early() -> None:
    """A third of the way into the quick problems, every table of the plan but rare ones has been measured."""
    quick = calibration_problems(quick=True)
    seen = {problem.table for problem in quick[: len(quick) // 3]}
    assert {"gemm", "attention_prefill", "attention_decode", "passes"} <= seen


def test_fresh_problems_depend_on_their_seed() -> None:
    """The same seed draws the same sizes, another one others, in every class that is fitted."""
    assert fresh_problems(1, 3) == fresh_problems(1, 3)
    assert fresh_problems(1, 3) != fresh_problems(2, 3)
    fitted = {"gemm", "attention_prefill", "attention_decode", "attention_shared", "passes", "swap", "block_moves"}
    assert {problem.table for problem in fresh_problems(1, 1)} == fitted
    known = {problem.key for problem in calibration_problems()}
    fresh = [problem.key for problem in fresh_problems(1, 20)]
    assert len(set(fresh)) == len(fresh) > 500
    assert not known & set(fresh)
