"""Commands that need a GPU, where there is none."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    "calibrate --gpu --out {folder}/mine.yaml",
    "measure --out {folder}/measured",
    "validate kernels --gpu",
    "validate serving --gpu",
)
NOT_ON_A_BARE_MACHINE = ("pydantic", "simpy", "pandas", "scipy", "matplotlib", "rich", "yaml", "jinja2", "pyarrow")
BARE = """
import sys
for name in {missing}:
    sys.modules[name] = None
from sim.cli import call
from sim.cli.measure import measure
import sim.validation.measure.campaign, sim.validation.engine.serve, sim.validation.engine.dims
sim.validation.engine.dims.dims_of("meta-llama/Llama-3.2-3B")
sys.exit(call(["measure", "--help"]))
"""


def _has_gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


@pytest.mark.skipif(_has_gpu(), reason="this machine has a GPU")
@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_gpu_each_says_so_in_one_line(command: str, tmp_path: Path) -> None:
    """The exit code is 1, the message one line, and nothing is written."""
    arguments = command.format(folder=tmp_path).split()
    run = subprocess.run(
        [sys.executable, "-m", "sim", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("Error: ")
    assert "GPU" in line
    assert list(tmp_path.iterdir()) == []


def test_measuring_needs_no_more_than_a_bare_machine_has() -> None:
    """The command starts where none of the simulator's own dependencies but click is installed."""
    script = BARE.format(missing=NOT_ON_A_BARE_MACHINE)
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "--budget" in run.stdout
