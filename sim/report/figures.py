"""The list of figures: name of the file, title, and what to read from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure

from sim.report import machine_plots, plots
from sim.report.evidence import Evidence
from sim.report.style import house_style, settle


@dataclass(frozen=True)
class FigureKind:
    """A figure that a report may hold."""

    name: str
    title: str
    caption: str
    draw: Callable[[Evidence], Figure | None]


KINDS = (
    FigureKind(
        "latency_cdf",
        "Latency distributions",
        "How many requests (or token gaps) were at most this slow. Steep is predictable; a long flat top is a tail. "
        "The dashed red line is the objective.",
        plots.latency_cdf,
    ),
    FigureKind(
        "latency_over_time",
        "TTFT by time of arrival",
        "Flat: the system keeps up. A ramp: the queue grows for as long as requests arrive, and the percentiles above "
        "depend on how long the run was.",
        plots.latency_over_time,
    ),
    FigureKind(
        "queue",
        "Running and waiting",
        "Running requests share the batch; waiting ones are not admitted yet, or preempted. A plateau of running below "
        "a growing queue is a full batch or a full KV cache.",
        plots.queue,
    ),
    FigureKind(
        "throughput",
        "Throughput over time",
        "Completions that follow arrivals mean a system that keeps up; completions below them mean a growing backlog.",
        plots.throughput,
    ),
    FigureKind(
        "kv_memory",
        "KV cache over time",
        "Room filled with tokens, reserved for tokens to come, or never filled (over-reserved or rounded up); and what "
        "is free, of use to the next request or not. A full cache caps the batch and causes preemptions.",
        plots.kv_memory,
    ),
    FigureKind(
        "batch_size",
        "Batch size",
        "Sequences that share one forward pass. Decoding reads all weights once per step, so larger batches give more "
        "tokens per second at a longer step.",
        plots.batch_size,
    ),
    FigureKind(
        "operator_time",
        "Time by operator",
        "Where the busy time goes, and which limit each operator meets: compute, memory bandwidth, kernel launch, "
        "link or host.",
        machine_plots.operator_time,
    ),
    FigureKind(
        "memory_map",
        "Memory of one GPU",
        "What the engine does not need for weights and its own work becomes KV cache, which bounds how many requests "
        "run at once.",
        machine_plots.memory_map,
    ),
)


def drawn(evidence: Evidence) -> Iterator[tuple[FigureKind, Figure]]:
    """Every figure for which the run has data, in the order of the report."""
    for kind in KINDS:
        with house_style():
            figure = kind.draw(evidence)
            if figure is not None:
                settle(figure)
        if figure is not None:
            yield kind, figure
