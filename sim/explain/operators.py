"""The operators of a whole run, prompts and answers apart: time, work, traffic, and which roof each meets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sim.breakdown import sampled_steps
from sim.cost.ops import OpCost
from sim.cost.shape import RunShape
from sim.cost.step_timer import StepPricer
from sim.results import RunResult, Table
from sim.setup import Setup

PREFILL, DECODE = "prefill", "decode"
PHASES = (PREFILL, DECODE)
_OF_PROMPTS = ("attention prefill", "vision")
_OF_ANSWERS = ("attention decode", "attention shared prefix", "attention merge", "draft ", "medusa", "blockwise")
_PER_SEQUENCE = (
    "lm_head", "sampling", "top-k/top-p filter", "beam selection", "logits gather", "logits to host",
    "sampling on host", "state update", "host",
)  # fmt: skip
"""Operators whose work is by sequence; all others work on tokens, whoever they belong to."""


@dataclass
class Work:
    """What one operator did for one phase, on one GPU of each replica."""

    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    by_bound: dict[str, float] = field(default_factory=dict)
    """Seconds by what the operator waited for."""

    def add(self, op: OpCost, times: float) -> None:
        """So many runs of the operator's calls (a fraction of one where a step is shared)."""
        seconds = op.seconds * times
        self.seconds += seconds
        self.flops += op.calls * op.cost.flops * times
        self.bytes += op.calls * op.cost.bytes * times
        self.by_bound[op.cost.bound] = self.by_bound.get(op.cost.bound, 0.0) + seconds

    def take(self, other: Work) -> None:
        """Add what another operator did."""
        self.seconds, self.flops, self.bytes = (
            self.seconds + other.seconds,
            self.flops + other.flops,
            self.bytes + other.bytes,
        )
        for bound, seconds in other.by_bound.items():
            self.by_bound[bound] = self.by_bound.get(bound, 0.0) + seconds

    @property
    def intensity(self) -> float | None:
        """FLOPs per byte moved; None for what computes nothing or moves nothing."""
        return self.flops / self.bytes if self.bytes and self.flops else None

    @property
    def bound(self) -> str:
        """What it waited for most of the time."""
        return max(self.by_bound, key=lambda name: (self.by_bound[name], name), default="")


Operators = dict[tuple[str, str], Work]
"""(phase, operator) -> what it did."""


def operators_of(setup: Setup, result: RunResult) -> Operators:
    """Every operator of a run by phase.

    Up to 400 steps, spread evenly over the busy time of each pool, are priced again by the full formula; each speaks
    for an equal share of that time. A step may hold prompts and answers at once (chunked prefill): what works on all
    tokens is then shared out by tokens, what works per sequence by sequences. Weights that both use are read once, so
    answers that ride along with a prompt have a higher intensity than alone.
    """
    found: Operators = {}
    for timer, steps in pool_steps(setup, result):
        for shape, share_s in sampled_steps(timer, steps, setup.engine.kv_cache["block_size"]):
            ops = timer.explain(shape)
            times = share_s / sum(op.seconds for op in ops)
            for op in ops:
                for phase, share in _phases(op.name, shape):
                    found.setdefault((phase, op.name), Work()).add(op, times * share)
    return dict(sorted(found.items(), key=lambda item: (PHASES.index(item[0][0]), -item[1].seconds, item[0][1])))


def pool_steps(setup: Setup, result: RunResult) -> Iterator[tuple[StepPricer, Table]]:
    """The steps of each pool with the timer that priced them; one pool unless prefill and decode are apart."""
    if setup.decode is None:
        yield setup.timer, result.steps
        return
    first = setup.scenario.replicas.count
    yield setup.timer, result.steps.where(result.steps["replica"] < first)
    yield setup.decode.timer, result.steps.where(result.steps["replica"] >= first)


def _phases(name: str, shape: RunShape) -> Iterator[tuple[str, float]]:
    prompts = _share_of_prompts(name, shape)
    if prompts > 0:
        yield PREFILL, prompts
    if prompts < 1:
        yield DECODE, 1 - prompts


def _share_of_prompts(name: str, shape: RunShape) -> float:
    if name.startswith(_OF_PROMPTS):
        return 1.0
    if name.startswith(_OF_ANSWERS):
        return 0.0
    if name in _PER_SEQUENCE:
        return len(shape.chunks) / (len(shape.chunks) + shape.decodes)
    return 1 - shape.decodes / shape.new_tokens


def totals(operators: Operators) -> dict[str, Work]:
    """Each phase as one operator, and the whole run as `all`."""
    found = {phase: Work() for phase in (*PHASES, "all")}
    for (phase, _), work in operators.items():
        found[phase].take(work)
        found["all"].take(work)
    return found


@dataclass(frozen=True)
class Roofs:
    """Datasheet limits of one GPU: the tensor cores' rate in the format of the largest matrices, and HBM."""

    hardware: str
    compute: str
    flops_per_s: float
    bytes_per_s: float

    @classmethod
    def of(cls, setup: Setup) -> Roofs:
        """Those of the GPU that computes prompts."""
        gemm, experts, _ = setup.timer.forward.main_formats()
        form = gemm or experts
        compute = setup.gpu.default_dtype if form is None else form.compute
        return cls(
            setup.gpu.name, compute, float(setup.gpu.tensor_flops[compute]),  # type: ignore[index]
            float(setup.gpu.memory_bandwidth_bytes_per_s),
        )  # fmt: skip

    @property
    def ridge(self) -> float:
        """FLOPs per byte above which compute is the limit."""
        return self.flops_per_s / self.bytes_per_s

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "hardware": self.hardware, "compute_format": self.compute, "flops_per_s": self.flops_per_s,
            "bytes_per_s": self.bytes_per_s, "ridge_flops_per_byte": self.ridge,
        }  # fmt: skip


def operator_rows(operators: Operators, roofs: Roofs) -> list[dict[str, Any]]:
    """One row per phase and operator, ready for JSON and tables; shares are of all operators' time."""
    total = totals(operators)["all"].seconds
    return [{"phase": phase, "operator": name, **_figures(work, total, roofs)} for (phase, name), work in
            operators.items()]  # fmt: skip


def phase_rows(operators: Operators, roofs: Roofs) -> list[dict[str, Any]]:
    """The same of each phase, with the share of datasheet rates that it reached while it ran."""
    whole = totals(operators)
    rows = []
    for phase in PHASES:
        work = whole[phase]
        if work.seconds:
            reached = {
                "compute_utilisation": work.flops / work.seconds / roofs.flops_per_s,
                "bandwidth_utilisation": work.bytes / work.seconds / roofs.bytes_per_s,
            }
            rows.append({"phase": phase, **_figures(work, whole["all"].seconds, roofs), **reached})
    return rows


def _figures(work: Work, total_s: float, roofs: Roofs) -> dict[str, Any]:
    intensity = work.intensity
    return {
        "seconds": work.seconds,
        "share": work.seconds / total_s,
        "tflop": work.flops / 1e12,
        "gigabytes": work.bytes / 1e9,
        "flops_per_byte": intensity,
        "side_of_ridge": None if intensity is None else "compute" if intensity > roofs.ridge else "memory",
        "bound": work.bound,
        "bound_share": work.by_bound[work.bound] / work.seconds if work.seconds else 1.0,
    }
