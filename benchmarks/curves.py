"""What the cost of a simulated request does not grow with: `python benchmarks/curves.py` writes reports/speed.md.

CPU microseconds per request of the simulation (no report), the best of several runs, against the length of the run,
the number of output tokens, the depth of the waiting queue, and the size of the batch. Each panel is one process, and
every point is divided by the bare loop's cost on the first point's requests, so that the machine's mood cancels.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from yardstick import Loop

from sim.build import build
from sim.run import run_setup
from sim.scenario import load_scenario

REPORTS = Path(__file__).resolve().parents[1] / "reports"
REPEAT = 3
Point = tuple[float, float, float]  # x, microseconds per request, the same over the bare loop's


def scenario(rate: float, requests: int, outputs: int = 256, seats: int = 256) -> dict[str, Any]:
    """Llama-2-7B on one H100; capacity is about 20 requests/s at 256 output tokens."""
    workload = {"num_requests": requests, "arrival": {"kind": "poisson", "rate": rate},
                "input_tokens": 512, "output_tokens": outputs}  # fmt: skip
    engine = {"max_num_seqs": seats, "max_num_batched_tokens": 2048, "num_gpu_blocks_override": 200_000}
    return {"model": "meta-llama/Llama-2-7b-hf", "hardware": "h100-sxm", "workload": workload, "engine": engine}


def cost_us(mapping: dict[str, Any]) -> tuple[float, Any]:
    """CPU microseconds per request, and the result."""
    best, result = float("inf"), None
    for _ in range(REPEAT):
        setup = build(load_scenario(mapping))
        started = time.process_time()
        result = run_setup(setup)
        best = min(best, time.process_time() - started)
    return 1e6 * best / len(result.requests), result  # type: ignore[union-attr]


def bare_us() -> float:
    """The bare loop's CPU microseconds per request at 70 % load."""
    arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / 12, 20_000)).tolist()
    best = float("inf")
    for _ in range(REPEAT):
        started = time.process_time()
        Loop().run(arrivals, [512] * len(arrivals), [256] * len(arrivals))
        best = min(best, time.process_time() - started)
    return 1e6 * best / len(arrivals)


def panel(
    values: list[float], make: Callable[[float], dict[str, Any]], x_of: Callable[[float, Any], float]
) -> list[Point]:
    """One curve."""
    points = []
    for value in values:
        cost, result = cost_us(make(value))
        points.append((x_of(value, result), cost, cost / bare_us()))
    return points


def waiting(_: float, result: Any) -> float:
    """The longest queue of a run."""
    return float(max(1, result.steps["waiting"].max()))


def batch(_: float, result: Any) -> float:
    """The mean batch of a run."""
    steps = result.steps
    return float((steps["steps"] * steps["decodes"]).sum() / steps["steps"].sum())


def main() -> None:
    """Measure, draw and write the page."""
    same = lambda value, _: value  # noqa: E731
    curves = {
        "requests in the run": panel([5e3, 2e4, 8e4, 3.2e5], lambda n: scenario(12, int(n)), same),
        "output tokens per request": panel([16, 64, 256, 1024], lambda o: scenario(12 * 256 / o, 10_000, int(o)), same),
        "longest waiting queue": panel([16, 30, 60, 400], lambda r: scenario(r, 20_000), waiting),
        "mean batch": panel([0.5, 2, 8, 16], lambda r: scenario(r, 10_000, seats=1024), batch),
    }
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(2, 2).flat, curves.items(), strict=True):
        x, cost, _ = zip(*points, strict=True)
        axes.plot(x, cost, "o-", color="#0072b2")
        axes.set(xscale="log", xlabel=name, ylabel="CPU us per request", ylim=(0, 1.3 * max(cost)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    figure.savefig(REPORTS / "speed.png", dpi=110)
    lines = [
        "<!-- Regenerate: python benchmarks/curves.py -->",
        "# What a simulated request costs",
        "",
        f"CPU microseconds per request of the simulation, CPython {platform.python_version()} on one core of a shared",
        f"{platform.machine()} virtual machine, the best of {REPEAT} runs. The last column divides by the bare",
        "single-step loop of `benchmarks/yardstick.py` at 70 % load, measured right after each point: read that one.",
        "",
        "![cost per request](speed.png)",
        "",
    ]
    for name, points in curves.items():
        lines += [f"| {name} | us per request | over the bare loop |", "|---|---|---|"]
        lines += [f"| {x:,.0f} | {cost:.1f} | {ratio:.2f} |" for x, cost, ratio in points] + [""]
    (REPORTS / "speed.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
