"""Executors: every task is answered once, and processes that die are replaced."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from sim.errors import ConfigError
from sim.planner.executors import LocalExecutor, WorkersDied, executor_of


def square(n: int) -> int:
    """A task."""
    return n * n


def dies_once(marker: str) -> str:
    """Kills its own process unless the marker is there, as the kernel does when memory runs out."""
    if not Path(marker).exists():
        Path(marker).write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return Path(marker).name


def dies(task: str) -> str:
    """Kills its process whenever the task says so."""
    if task == "bad":
        os.kill(os.getpid(), signal.SIGKILL)
    return task


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_task_is_answered_once(jobs: int) -> None:
    """Whatever the number of processes, each task's answer comes once, with its number."""
    assert sorted(LocalExecutor(jobs).run(square, [3, 1, 2])) == [(0, 9), (1, 1), (2, 4)]


def test_a_process_that_dies_is_replaced(tmp_path: Path) -> None:
    """A task whose process was killed is run again, and nothing is answered twice."""
    markers = [str(tmp_path / f"{i}") for i in range(4)]
    for there in markers[:3]:
        Path(there).write_text("")
    assert sorted(LocalExecutor(2).run(dies_once, markers)) == [(i, f"{i}") for i in range(4)]


def test_a_task_that_always_kills_its_process_is_given_up() -> None:
    """A task that takes every process with it is answered by WorkersDied; the others are not harmed."""
    answers = dict(LocalExecutor(2).run(dies, ["a", "bad", "b"]))
    assert (answers[0], answers[2]) == ("a", "b") and isinstance(answers[1], WorkersDied)


def test_options_that_do_not_go_together() -> None:
    """An address needs Ray, and Ray knows its own size."""
    with pytest.raises(ConfigError, match="executor ray"):
        executor_of("local", address="auto")
    with pytest.raises(ConfigError, match="local executor"):
        executor_of("ray", jobs=2)
