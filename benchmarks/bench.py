"""Requests and steps per CPU second of the simulator, and as a ratio to the yardstick in the same process.

    python benchmarks/bench.py                                  # the table
    python benchmarks/bench.py --json new.json --compare benchmarks/baseline.json
    python benchmarks/bench.py --only saturated --repeat 5

CPU seconds of one core, the best of `--repeat` runs; building the scenario (reading files, pricing nothing yet) is not
counted, pricing is. Rates are those of the full product path: operator cost model, chunked prefill, paged KV,
recorder, audit, SimPy.
"""

from __future__ import annotations

import atexit
import json
import os
import platform
import resource
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from yardstick import Loop

from sim.build import build
from sim.results import Table as ResultTable
from sim.run import run_setup
from sim.scenario import load_scenario
from sim.workloads.traces import read_trace

AZURE = Path(__file__).resolve().parents[2] / "shared" / "traces" / "AzureLLMInferenceTrace_conv.csv"
README = Path(__file__).with_name("README.md")
START, END = "<!-- table: make bench -->", "<!-- end of the table -->"
BASE: dict[str, Any] = {
    "model": "meta-llama/Llama-2-7b-hf",
    "hardware": "h100-sxm",
    "engine": {"max_num_seqs": 256, "max_num_batched_tokens": 2048},
}


def _poisson(rate: float, requests: int) -> dict[str, Any]:
    arrival = {"kind": "poisson", "rate": rate}
    return {"num_requests": requests, "arrival": arrival, "input_tokens": 512, "output_tokens": 256}


@dataclass(frozen=True)
class Case:
    """One workload on one configuration. `rate` is per replica; capacity is 19.4/s, 21.8/s with memory to spare."""

    name: str
    rate: float = 13.6
    requests: int = 20_000
    replicas: int = 1
    settings: tuple[tuple[str, Any], ...] = ()
    step_by_step: bool = False
    trace: bool = False
    hashed: int | None = None
    """Replay the trace with the content of prompts, the first so many tokens of which are the same for all."""

    def scenario(self) -> dict[str, Any]:
        """The scenario as a mapping."""
        workload = {"trace": str(self._trace())} if self.trace else _poisson(self.rate * self.replicas, self.requests)
        replicas = {"count": self.replicas, "router": "least_outstanding_requests"}
        return {**BASE, "workload": workload, "replicas": replicas}

    def _trace(self) -> Path:
        """The trace, or a copy with the identity of every 16 tokens of its prompts."""
        if self.hashed is None:
            return AZURE
        path = Path(tempfile.gettempdir()) / f"roofserve-bench-{os.getpid()}-{self.hashed}.jsonl"
        if not path.exists():
            atexit.register(path.unlink)
            _write_hashed(path, self.hashed // 16)
        return path


def _write_hashed(path: Path, shared: int) -> None:
    trace, fresh = read_trace(AZURE), shared
    with path.open("w") as out:
        for at, prompt, answer in zip(trace.arrival_ps, trace.input_tokens, trace.output_tokens, strict=True):
            blocks = -(-int(prompt) // 16)
            same = min(shared, blocks)
            hashes = [*range(same), *range(fresh, fresh + blocks - same)]
            fresh += blocks - same
            row = {"timestamp": int(at) // 10**9, "input_length": int(prompt), "output_length": int(answer)}
            out.write(json.dumps({**row, "hash_ids": hashes}) + "\n")


_LLAMA_8B = (("model", "meta-llama/Llama-3.1-8B"),)
CASES = (
    Case("70 % load"),
    Case("70 % load, step by step", step_by_step=True),
    Case("saturated", rate=40.0),
    Case("saturated, step by step", rate=40.0, step_by_step=True),
    Case("saturated, memory to spare", rate=40.0, settings=(("engine.num_gpu_blocks_override", 25_000),)),
    Case("low load (2 requests/s)", rate=2.0),
    Case("low load, step by step", rate=2.0, requests=5_000, step_by_step=True),
    Case("preemption pressure", rate=16.0, settings=(("engine.num_gpu_blocks_override", 6000),)),
    Case("prefill first (vllm-v0)", settings=(("engine.preset", "vllm-v0"), ("engine.max_num_batched_tokens", 4096))),
    Case("synchronous scheduling", settings=(("engine.async_scheduling", False),)),
    Case("8 replicas", replicas=8, requests=40_000),
    Case("64 replicas", replicas=64, requests=80_000),
    Case("Azure conversation trace", trace=True, settings=_LLAMA_8B),
    Case("Azure with prefix hashing, none shared", trace=True, hashed=0, settings=_LLAMA_8B),
    Case("Azure with prefix hashing, 512 shared", trace=True, hashed=512, settings=_LLAMA_8B),
    Case(
        "shared prefix, 70 % load",
        settings=(("workload.shared_prefix", {"tokens": 256, "groups": 20}), ("workload.input_tokens", 256)),
    ),
)


@dataclass(frozen=True)
class Measurement:
    """The best run of one case, and of the bare loop on the same requests."""

    requests: int
    steps: int
    rows: int
    cpu_s: float
    requests_per_cpu_s: float
    steps_per_cpu_s: float
    yardstick_requests_per_cpu_s: float
    ratio_to_yardstick: float


def measure(case: Case, repeat: int) -> Measurement:
    """Run a case and the yardstick in turn, `repeat` times, and keep the fastest of each."""
    best = bare = float("inf")
    requests = steps = rows = 0
    for _ in range(repeat):
        setup = build(load_scenario(case.scenario(), dict(case.settings)))
        started = time.process_time()
        result = run_setup(setup, step_by_step=case.step_by_step)
        best = min(best, time.process_time() - started)
        requests, rows = len(result.requests), len(result.steps)
        steps = int(result.steps["steps"].sum())
        bare = min(bare, _bare_loop(result.requests, case.replicas))
    return Measurement(requests, steps, rows, best, requests / best, steps / best, requests / bare, bare / best)


def _bare_loop(requests: ResultTable, replicas: int) -> float:
    """CPU seconds of the yardstick on the requests of a run, one loop per replica."""
    order = np.argsort(requests["arrival_ps"], kind="stable")
    arrivals = (requests["arrival_ps"][order] / 1e12).tolist()
    prompts, outputs = requests["prompt_tokens"][order].tolist(), requests["output_tokens"][order].tolist()
    started = time.process_time()
    for i in range(replicas):
        Loop(max_num_batched_tokens=max(2048, *prompts)).run(
            arrivals[i::replicas], prompts[i::replicas], outputs[i::replicas]
        )
    return time.process_time() - started


@click.command()
@click.option("--only", default="", help="Run the cases whose name contains this.")
@click.option("--repeat", default=3, show_default=True, help="Runs per case; the fastest counts.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the figures here.")
@click.option("--readme", is_flag=True, help="Put the table into benchmarks/README.md.")
@click.option("--compare", type=click.Path(path_type=Path, exists=True), help="Figures of an earlier run.")
def main(only: str, repeat: int, out: Path | None, compare: Path | None, readme: bool) -> None:
    """Measure and print the table."""
    before = json.loads(compare.read_text())["cases"] if compare else {}
    table = Table(title=f"CPython {platform.python_version()}")
    headings = ("case", "requests/CPU s", "steps/CPU s", "steps/run", "bare loop", "x bare loop")
    for name in (*headings, *(["x before"] if before else [])):
        table.add_column(name, justify="left" if name == "case" else "right")
    figures = {}
    for case in CASES:
        if only not in case.name or (case.trace and not AZURE.exists()):
            continue
        found = measure(case, repeat)
        figures[case.name] = asdict(found)
        row = [case.name, f"{found.requests_per_cpu_s:,.0f}", f"{found.steps_per_cpu_s:,.0f}",
               f"{found.steps / found.rows:.1f}", f"{found.yardstick_requests_per_cpu_s:,.0f}",
               f"{found.ratio_to_yardstick:.2f}"]  # fmt: skip
        if before:
            old = before.get(case.name)
            # Ratios to the yardstick of their own process: the machine's mood cancels.
            row.append(f"{found.ratio_to_yardstick / old['ratio_to_yardstick']:.2f}" if old else "")
        table.add_row(*row)
    Console().print(table)
    Console().print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    if out:
        machine = {"python": platform.python_version(), "machine": platform.machine()}
        out.write_text(json.dumps({**machine, "cases": figures}, indent=2) + "\n")

    if readme:
        _write_table(figures)


def _write_table(figures: dict[str, dict[str, Any]]) -> None:
    """Replace the table between the two markers of the page."""
    heads = (
        "case",
        "requests/CPU s",
        "steps/CPU s",
        "steps per run",
        "bare loop, requests/CPU s",
        "times the bare loop",
    )
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, found in figures.items():
        lines.append(
            f"| {name} | {found['requests_per_cpu_s']:,.0f} | {found['steps_per_cpu_s']:,.0f} "
            f"| {found['steps'] / found['rows']:.1f} | {found['yardstick_requests_per_cpu_s']:,.0f} "
            f"| {found['ratio_to_yardstick']:.2f} |"
        )
    before, rest = README.read_text().split(START)
    README.write_text(before + START + "\n" + "\n".join(lines) + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
