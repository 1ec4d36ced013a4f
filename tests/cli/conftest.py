"""The command as a user meets it: called in an empty directory, answered by exit code, stdout and stderr."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import sim.cli
import sim.report.write

SCENARIO = """\
model: meta-llama/Llama-3.1-8B
hardware: h100-sxm
workload:
  num_requests: 40
  arrival: {kind: poisson, rate: 20}
  input_tokens: {kind: lognormal, mean: 300, std: 200}
  output_tokens: {kind: uniform, min: 1, max: 40}
"""


@dataclass(frozen=True)
class Answer:
    """What a command left on the terminal."""

    code: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def roofserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`roofserve("run", "s.yaml")` in an empty directory and in this process; figures, which take seconds, left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sim.report.write, "drawn", lambda evidence: [])

    def call(*arguments: object) -> Answer:
        capfd.readouterr()
        code = sim.cli.call([str(a) for a in arguments])
        return Answer(code, *capfd.readouterr())

    return call


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """A scenario that takes a moment: 40 requests on one GPU."""
    path = tmp_path / "s.yaml"
    path.write_text(SCENARIO)
    return path
