"""Ctrl-C during `roofserve validate serving`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROW = "H100,1,1,meta-llama/Llama-3.1-8B,bf16,TensorRT-LLM (Triton backend),0.14.0,4000,467,400,8,8,22,7,3808,126\n"
HEAD = (
    "gpu,n_gpus,tp,model,dtype,engine,engine_version,n_requests,isl_mean,osl_mean,qps,req_s,ttft_mean_ms,itl_mean_ms,"
    "total_tok_s,out_tok_s\n"
)
PATIENCE_S = 60.0


def children(process: int) -> list[str]:
    """The numbers of a process's children."""
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to see child processes")
def test_ctrl_c_leaves_no_mess(tmp_path: Path) -> None:
    """Workers end with the command, no file is half written, no traceback is shown, and the exit code is 130."""
    table, scratch = tmp_path / "rates.csv", tmp_path / "scratch"
    scratch.mkdir()
    table.write_text(HEAD + ROW * 400)
    command = [sys.executable, "-m", "sim", "validate", "serving", "--runs", str(table), "--jobs", "2",
               "--json", str(tmp_path / "errors.json")]  # fmt: skip
    running = subprocess.Popen(
        command, env={**os.environ, "TMPDIR": str(scratch)}, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + PATIENCE_S
    while len(children(running.pid)) < 2 and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = children(running.pid)
    assert workers, "no worker was ever started"
    os.killpg(running.pid, signal.SIGINT)
    _, shown = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130
    assert "Traceback" not in shown
    while any(Path(f"/proc/{worker}").is_dir() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [worker for worker in workers if Path(f"/proc/{worker}").is_dir()]
    assert not (tmp_path / "errors.json").exists()
    assert not [path for path in scratch.rglob("*") if path.is_file()]
