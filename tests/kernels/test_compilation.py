"""Kernels compile for a real GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def test_every_kernel_compiles_for_hopper() -> None:
    """Each Triton kernel of the package that is launched from Python becomes machine code for an H100 or H200."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(HERE.parents[1])
    command = [sys.executable, "-W", "ignore", str(HERE / "compile_for_hopper.py")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    sources = "\n".join(path.read_text() for path in (HERE.parents[1] / "sim/validation/kernels").glob("*.py"))
    launched = set(re.findall(r"^ *(_\w+)\[", sources, re.MULTILINE))
    assert set(run.stdout.split()) == launched
