"""Sweeps: which points a file means, and that a finished point is neither lost nor run again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import sim.planner.sweep
from sim.errors import ConfigError
from sim.planner.executors import LocalExecutor
from sim.planner.sweep import run_sweep
from sim.planner.sweep_spec import digest, load_sweep

SCENARIO = """{model: meta-llama/Llama-3.1-8B, hardware: h100-sxm, workload: {num_requests: 10,
  arrival: {kind: poisson, rate: 20}, input_tokens: 100, output_tokens: 5}}"""


def written(tmp_path: Path, text: str) -> Path:
    """A sweep file over a small scenario."""
    path = tmp_path / "s.yaml"
    path.write_text(f"scenario: {SCENARIO}\n{text}\n")
    return path


def varied(tmp_path: Path, text: str) -> list[dict[str, Any]]:
    """What the points of a sweep override."""
    return [dict(point.varied) for point in load_sweep(written(tmp_path, text)).points]


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    """The last key turns fastest."""
    points = varied(tmp_path, "grid: {hardware: [a, b], engine.max_num_seqs: [1, 2]}")
    assert [tuple(p.values()) for p in points] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


def test_a_list_a_grid_and_seeds_multiply(tmp_path: Path) -> None:
    """Every listed point is combined with every point of the grid and every seed."""
    points = varied(tmp_path, "list: [{hardware: a}, {hardware: b, model: m}]\ngrid: {slo.ttft_ms: [1]}\nseeds: [0, 7]")
    assert [p["seed"] for p in points] == [0, 7, 0, 7] and points[2] == {
        "hardware": "b", "model": "m", "slo.ttft_ms": 1, "seed": 0,
    }  # fmt: skip


def test_samples_keep_to_their_laws(tmp_path: Path) -> None:
    """Draws lie within their law, and more points leave the first ones as they were."""
    law = (
        "keys: {workload.arrival.rate: {kind: log_uniform, low: 1, high: 100}, seed: {kind: integer, low: 1, high: 3}}"
    )
    few, many = (varied(tmp_path, f"sample: {{points: {n}, {law}}}") for n in (20, 200))
    assert many[:20] == few
    assert all(1 <= p["workload.arrival.rate"] <= 100 for p in many) and {p["seed"] for p in many} == {1, 2, 3}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "names no points"),
        ("grid: {hardware: []}", "at least 1"),
        ("grid: {a..b: [1]}", "dotted key"),
        ("gird: {a: [1]}", "unknown key"),
        ("sample: {points: 2, keys: {a: {kind: uniform, low: 2, high: 1}}}", "at most high"),
        ("sample: {points: 2, keys: {a: {kind: choice}}}", "needs values"),
        ("grid: {seed: [1, 2]}\nsample: {points: 999999, keys: {a: {kind: choice, values: [1]}}}", "more than"),
    ],
)
def test_what_is_wrong_is_said(text: str, told: str, tmp_path: Path) -> None:
    """A sweep that means nothing is refused with the file's name and what is wrong."""
    with pytest.raises(ConfigError, match=told) as raised:
        load_sweep(written(tmp_path, text))
    assert str(raised.value).startswith(str(tmp_path / "s.yaml"))


def test_digests_tell_points_apart(tmp_path: Path) -> None:
    """Another override, or other bytes in a file that the point names, is another point."""
    path = written(tmp_path, "grid: {workload: [w.yaml], seed: [1, 2]}")
    workload = "arrival: {kind: poisson, rate: 1}\ninput_tokens: 10\noutput_tokens: 10\nnum_requests: "
    names = []
    for requests in (5, 6):
        (tmp_path / "w.yaml").write_text(f"{workload}{requests}\n")
        # A file's bytes are read once per process: another process is another call.
        sim.planner.sweep_spec._file_digest.cache_clear()
        here = load_sweep(path)
        points = [sim.planner.sweep_spec.Point(str(tmp_path / "x.yaml"), {}, p.varied) for p in here.points]
        (tmp_path / "x.yaml").write_text("model: meta-llama/Llama-3.1-8B\nhardware: h100-sxm\nworkload: chat\n")
        names += [digest(point) for point in points]
    assert len(set(names)) == 4


def test_failures_are_recorded(tmp_path: Path) -> None:
    """A point that cannot run is a row with its error; the others have their numbers, in the order of the file."""
    sweep = load_sweep(written(tmp_path, "grid: {hardware: [h100-sxm, nothing, v100-sxm-16gb]}"))
    done = run_sweep(sweep, tmp_path / "out", LocalExecutor(1))
    rows = pq.read_table(done.table).to_pylist()
    assert [row["status"] for row in rows] == ["ok", "failed", "failed"]
    assert rows[0]["completed"] == 10 and rows[1]["completed"] is None
    assert "unknown hardware" in rows[1]["error"] and "does not fit" in rows[2]["error"]
    assert (tmp_path / "out" / "sweep.csv").read_text().count("\n") >= 4


def test_a_sweep_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called again it runs nothing that is finished, also when the sweep has grown; failures on request."""
    out, ran = tmp_path / "out", Counter[str]()
    original = sim.planner.sweep.run_point

    def counted(point: Any) -> dict[str, Any]:
        ran[str(point.varied)] += 1
        return original(point)

    monkeypatch.setattr(sim.planner.sweep, "run_point", counted)
    first = run_sweep(load_sweep(written(tmp_path, "grid: {hardware: [h100-sxm, nothing]}")), out, LocalExecutor(1))
    grown = load_sweep(written(tmp_path, "grid: {hardware: [h100-sxm, a100-sxm-80gb, nothing]}"))
    second = run_sweep(grown, out, LocalExecutor(1))
    assert (first.reused, second.reused) == (0, 2) and set(ran.values()) == {1} and len(ran) == 3
    run_sweep(grown, out, LocalExecutor(1), retry_failed=True)
    assert sorted(ran.values()) == [1, 1, 2]


def test_killed_and_resumed_it_gives_the_same_bytes(tmp_path: Path) -> None:
    """After kill -9 in the middle the finished points are kept as they are, and the table equals an unbroken one."""
    path = written(tmp_path, "grid: {seed: [1, 2, 3, 4, 5, 6], workload.num_requests: [250]}")
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-m", "sim", "sweep", str(path), "--out", str(out), "--jobs", "1"])
    while len(list(out.glob("points/[!.]*.json"))) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {file: file.stat().st_mtime_ns for file in out.glob("points/[!.]*.json")}
    assert 2 <= len(kept) < 6 and not (out / "sweep.parquet").exists()
    assert all(json.loads(file.read_text())["status"] == "ok" for file in kept)
    done = run_sweep(load_sweep(path), out, LocalExecutor(2))
    assert done.reused == len(kept) and all(file.stat().st_mtime_ns == then for file, then in kept.items())
    unbroken = run_sweep(load_sweep(path), tmp_path / "unbroken", LocalExecutor(1))
    assert done.table.read_bytes() == unbroken.table.read_bytes()
    assert len({row["mean_ttft_ms"] for row in done.rows}) == 6
