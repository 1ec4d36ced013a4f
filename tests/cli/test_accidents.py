"""Processes are killed, disks fill up, books do not balance: nothing is left half written, and one line says what."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import yaml

import sim.run
from sim.errors import InvariantError
from sim.results import RunResult

Command = Callable[..., SimpleNamespace]
ROOT = Path(__file__).resolve().parents[2]


def start(*arguments: str, cwd: Path, most_bytes: int | None = None) -> subprocess.Popen[str]:
    """The command in a process of its own; files may not grow beyond `most_bytes`, as on a full disk."""

    def limit() -> None:
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    return subprocess.Popen(
        [sys.executable, "-m", "sim", *arguments], cwd=cwd, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=limit,
    )  # fmt: skip


def assert_whole(directory: Path) -> None:
    """Every file that bears its final name can be read to its end."""
    for file in directory.rglob("*"):
        if file.name.startswith(".") or not file.is_file():
            continue
        if file.suffix == ".parquet":
            pq.read_table(file)
        elif file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".yaml":
            yaml.safe_load(file.read_text())
        elif file.suffix == ".html":
            assert file.read_text().rstrip().endswith("</html>")
        elif file.suffix == ".svg":
            assert file.read_text().rstrip().endswith("</svg>")
        else:
            assert file.suffix == ".png" and file.read_bytes().endswith(b"IEND\xaeB`\x82")


def test_a_killed_run_leaves_no_half_file_and_starts_again(tmp_path: Path, scenario: Path) -> None:
    """kill -9 at six moments into one directory; then a run to its end there equals one that nobody disturbed."""
    moments = random.Random(0)
    run = ("run", str(scenario), "--out", "disturbed")
    for _ in range(6):
        process = start(*run, cwd=tmp_path)
        time.sleep(moments.uniform(0.3, 3.0))
        process.kill()
        process.communicate()
        assert_whole(tmp_path / "disturbed")
    for out in ("disturbed", "quiet"):
        process = start("run", str(scenario), "--out", out, cwd=tmp_path)
        process.communicate()
        assert process.returncode == 0
    assert_whole(tmp_path / "disturbed")
    for name in ("summary.json", "requests.parquet", "steps.parquet", "segments.parquet"):
        assert (tmp_path / "disturbed" / name).read_bytes() == (tmp_path / "quiet" / name).read_bytes()


def test_a_full_disk_is_one_line(tmp_path: Path, scenario: Path) -> None:
    """When files may not grow beyond 4 KiB the command says so in one line and leaves no half file."""
    process = start("run", str(scenario), "--out", "out", cwd=tmp_path, most_bytes=4096)
    out, err = process.communicate()
    assert process.returncode == 2 and out == ""
    assert err.startswith("Error: out: cannot be written (") and err.count("\n") == 1
    assert_whole(tmp_path / "out")


def test_a_place_where_nothing_can_be_made_is_one_line(roofserve: Command, scenario: Path) -> None:
    """A directory that cannot exist is refused as the user's mistake."""
    answer = roofserve("run", scenario, "--out", "/proc/roofserve")
    assert answer.code == 2 and answer.out == ""
    assert answer.err.startswith("Error: ") and answer.err.count("\n") == 1


def test_an_unbalanced_run_leaves_a_reproducer(
    roofserve: Command, scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken law ends the run with exit code 1, names itself, and leaves a scenario that shows it again."""

    def broken(result: RunResult, *_: object) -> None:
        raise InvariantError("request 7 ended twice")

    monkeypatch.setattr(sim.run, "audit", broken)
    answer = roofserve("run", scenario, "--seed", 11, "--out", "out")
    assert answer.code == 1 and "request 7 ended twice" in answer.err and "out/reproducer.yaml" in answer.err
    again = roofserve("run", tmp_path / "out/reproducer.yaml", "--out", "again")
    assert again.code == 1
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert yaml.safe_load((tmp_path / "out/reproducer.yaml").read_text())["seed"] == 11
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
