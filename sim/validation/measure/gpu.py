"""The GPU of this machine: its stopwatch, its captured graphs, and what it says of itself."""

from __future__ import annotations

import platform
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
import triton

from sim.validation.measure.timing import Run

_GRAPH_S, _MOST_LAUNCHES = 400e-6, 512
_SAMPLE_MS = 250
_QUERY = {"sm_mhz": "clocks.sm", "memory_mhz": "clocks.mem", "power_w": "power.draw", "celsius": "temperature.gpu"}
_FACTS = {"driver": "driver_version", "power_limit_w": "power.limit", "most_sm_mhz": "clocks.max.sm"}


class GpuWatch:
    """Marks are CUDA events."""

    def mark(self) -> Any:
        """An event recorded in the current stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Between two events."""
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


class HostWatch:
    """Marks are readings of the host's clock: on a CPU, work is done when its call returns."""

    def mark(self) -> float:
        """Now."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """Between two readings."""
        return end - start


def captured(sets: Sequence[Run], watch: GpuWatch) -> tuple[Run, int]:
    """One CUDA graph that launches the sets in turn, again and again, so that the host's speed plays no part.

    Compilation and library set-up happen before the capture, for every set: the alignment of its operands may want code
    of its own, which cannot be loaded during a capture. The graph is long enough to time.
    """
    for one in sets:
        one()
    torch.cuda.synchronize()
    start = watch.mark()
    sets[0]()
    each = watch.seconds(start, watch.mark())
    rounds = max(1, min(round(_GRAPH_S / max(each * len(sets), 1e-7)), _MOST_LAUNCHES // len(sets)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for one in sets:
                one()
    return graph.replay, rounds * len(sets)


def in_turn(sets: Sequence[Run]) -> tuple[Run, int]:
    """The sets launched one after the other by the host."""

    def run() -> None:
        for one in sets:
            one()

    return run, len(sets)


def environment() -> dict[str, Any]:
    """Facts of this machine that a measurement depends on."""
    facts: dict[str, Any] = {
        "torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version(),
        "system": platform.platform(), "gpu_name": "cpu",
    }  # fmt: skip
    if not torch.cuda.is_available():
        return facts
    gpu = torch.cuda.get_device_properties(0)
    return facts | {
        "gpu_name": gpu.name,
        "gpus": torch.cuda.device_count(),
        "compute_capability": f"{gpu.major}.{gpu.minor}",
        "sm_count": gpu.multi_processor_count,
        "l2_bytes": gpu.L2_cache_size,
        "memory_bytes": gpu.total_memory,
        "cuda": torch.version.cuda,
        **dict(zip(_FACTS, _ask(list(_FACTS.values())), strict=False)),
    }


def _ask(fields: Sequence[str]) -> list[str]:
    """Answers of nvidia-smi, which is only ever asked; empty where it is missing."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [part.strip() for part in answer.split("\n")[0].split(",")]


class Clocks:
    """The latest clocks, power and temperature, read in the background by one long-lived nvidia-smi."""

    def __init__(self) -> None:
        self._latest: dict[str, float] = {}
        fields = ",".join(_QUERY.values())
        command = [
            "nvidia-smi",
            f"--query-gpu={fields}",
            "--format=csv,noheader,nounits",
            "--id=0",
            f"--loop-ms={_SAMPLE_MS}",
        ]
        try:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            return
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            try:
                values = [float(part) for part in line.split(",")]
            except ValueError:  # "[N/A]"
                continue
            self._latest = dict(zip(_QUERY, values, strict=False))

    def latest(self) -> dict[str, float]:
        """The last reading; empty before the first, and without nvidia-smi."""
        return self._latest

    def close(self) -> None:
        """End the reader."""
        process = getattr(self, "_process", None)
        if process is not None:
            process.terminate()


def gpu_count() -> int:
    """GPUs that torch can use."""
    return int(torch.cuda.device_count())


def no_gpu() -> str:
    """Why nothing can be measured here; empty when it can."""
    return "" if torch.cuda.is_available() else "no GPU that torch can use on this machine"
