"""`roofserve measure` from end to end, the CPU standing in for the GPU."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from sim.cli import measure as command
from sim.validation.engine import session
from sim.validation.measure import benches, checks, gpu
from sim.validation.measure.checks import Check
from sim.validation.measure.problems import Problem
from sim.validation.measure.record import read_record

PROBLEMS = [Problem.of("passes", op=op, m=1, width=256) for op in ("copy", "argmax", "rms_norm")]


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose GPU is the CPU, with three problems to measure and a serving step that fails."""

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "no_gpu", lambda: "")
    monkeypatch.setattr(benches, "Lab", partial(benches.Lab, "cpu"))
    monkeypatch.setattr(command, "calibration_problems", lambda **_: PROBLEMS)
    monkeypatch.setattr(command, "fresh_problems", lambda seed, each: PROBLEMS[:1])
    monkeypatch.setattr(checks, "check_kernels", lambda device, seed: [Check("a", 0.1, 0.2), Check("b", 0.3, 0.2)])
    monkeypatch.setattr(session, "serve_all", fails)


def _run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(command.measure, list(arguments))
    return result.exit_code, result.output, str(result.exception or "")


def test_one_step_that_fails_costs_no_other(pretended: None, tmp_path: Path) -> None:
    """Checks and measurements are in their files, and the message says which step failed."""
    code, output, error = _run("--out", str(tmp_path / "got"))
    assert (code, error) == (1, f"failed: serving; what the other steps measured is in {tmp_path / 'got'}")
    assert "serving: failed: RuntimeError: out of memory" in output
    assert "checks: 1 of 2 kernels within bounds; b (0.3)" in output
    assert "kernels: 3 measured, 0 failed, 0 left" in output
    assert [one["passed"] for one in json.loads((tmp_path / "got" / "checks.json").read_text())] == [True, False]
    assert len(read_record(tmp_path / "got" / "kernels.jsonl")[1]) == 3


def test_a_run_goes_on_from_another_folder(pretended: None, tmp_path: Path) -> None:
    """Without time nothing is begun; the next run copies what there is and measures the rest."""
    code, output, _ = _run("--out", str(tmp_path / "one"), "--steps", "kernels", "--budget", "0")
    assert (code, output.splitlines()[-1]) == (0, "kernels: 0 measured, 0 failed, 3 left")
    _run("--out", str(tmp_path / "two"), "--steps", "kernels", "--resume", str(tmp_path / "one"))
    first = read_record(tmp_path / "two" / "kernels.jsonl")
    _run("--out", str(tmp_path / "three"), "--steps", "kernels", "--resume", str(tmp_path / "two"))
    assert read_record(tmp_path / "three" / "kernels.jsonl") == first
    assert len(first[1]) == 3


def test_steps_are_named(pretended: None, tmp_path: Path) -> None:
    """A step that does not exist is refused with those that do."""
    code, output, _ = _run("--out", str(tmp_path), "--steps", "all")
    assert code == 2
    assert "checks, kernels, fresh, serving" in output
