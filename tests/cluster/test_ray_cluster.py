"""The Ray executor on a real cluster of two node processes on this machine (skipped where Ray is not installed)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sim.planner.executors import LocalExecutor, RayExecutor
from sim.planner.sweep import run_sweep
from sim.planner.sweep_spec import load_sweep

ray = pytest.importorskip("ray", reason="Ray is not installed: `make test-ray` installs it and runs these tests")

SWEEP = """\
scenario: {model: meta-llama/Llama-3.1-8B, hardware: h100-sxm, workload: {num_requests: 1500,
  arrival: {kind: poisson, rate: 10}, input_tokens: 500, output_tokens: {kind: uniform, min: 1, max: 200}}}
grid: {seed: [1, 2, 3, 4, 5, 6, 7, 8], hardware: [h100-sxm, nothing]}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and a second node, a process tree each, with two workers apiece."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def workers() -> list[int]:
    """Processes that compute a task at the moment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if command.startswith(b"ray::_in_directory"):
                found.append(int(entry.name))
    return found


def test_a_worker_killed_in_the_middle_costs_nothing(cluster: Any, tmp_path: Path) -> None:
    """Every point is in the table once, with the bytes that the local executor gives."""
    (tmp_path / "s.yaml").write_text(SWEEP)
    sweep, killed = load_sweep(tmp_path / "s.yaml"), []

    def kill_one(done: int, total: int) -> None:
        if done >= 2 and not killed and (busy := workers()):
            os.kill(busy[0], signal.SIGKILL)
            killed.append(busy[0])

    on_ray = run_sweep(sweep, tmp_path / "ray", RayExecutor(cluster.address), on_progress=kill_one)
    assert killed and len([node for node in ray.nodes() if node["Alive"]]) >= 2
    local = run_sweep(sweep, tmp_path / "local", LocalExecutor(2))
    assert [row["point"] for row in on_ray.rows] == list(range(16)) and len(on_ray.failed) == 8
    assert on_ray.table.read_bytes() == local.table.read_bytes()
    assert len(list((tmp_path / "ray" / "points").iterdir())) == 16


def test_a_node_lost_in_the_middle_costs_nothing(cluster: Any) -> None:
    """Tasks of a node that is taken away are run again on those that are left."""
    node = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    answers: dict[int, Any] = {}

    def slow_square(n: int) -> int:
        time.sleep(0.2)
        return n * n

    for i, answer in RayExecutor(cluster.address).run(slow_square, list(range(24))):
        assert i not in answers
        answers[i] = answer
        if len(answers) == 4:
            cluster.remove_node(node, allow_graceful=False)
    assert answers == {i: i * i for i in range(24)}
