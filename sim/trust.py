"""How far a run may be trusted: what the kernels' constants rest on, and how such runs compared with real servers.

`sim/data/envelope.yaml` holds the errors of runs that were predicted without their own model (reports/fidelity.md), by
model class, GPU, engine and traffic. A run is `validated` where that table has enough of its kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sim.documents import load_yaml, validate
from sim.specs.architecture import ModelArchitecture

LABELS = ("validated", "calibrated", "extrapolated", "datasheet")
"""From the most to the least that a run rests on."""
METRICS = ("ttft", "tpot", "e2e", "throughput")
FEWEST_RUNS = 5
"""A cell with fewer says nothing about the next run."""
_FILE = Path(__file__).parent / "data" / "envelope.yaml"
_FROZEN = ConfigDict(frozen=True, extra="forbid")

Traffic = Literal["open loop", "closed loop", "all at once"]


class Errors(BaseModel):
    """Errors of one metric in per cent of the measurement, and their logarithms' quantiles (measured / predicted)."""

    model_config = _FROZEN

    runs: int = Field(gt=0)
    median_pct: float = Field(ge=0)
    p90_pct: float = Field(ge=0)
    log_error: tuple[float, float]
    """Quantiles 5 and 95 %."""


class Cell(BaseModel):
    """Runs of one kind: what they were, and by metric how far off their predictions were."""

    model_config = _FROZEN

    model_class: str
    gpu: str
    engine: str
    traffic: Traffic
    runs: int = Field(gt=0)
    models: int = Field(gt=0)
    errors: dict[str, Errors]


class Envelope(BaseModel):
    """The whole table."""

    model_config = _FROZEN

    next_of_kin: dict[str, str] = Field(default={}, description="whose runs speak for a preset that lacks its own")
    cells: tuple[Cell, ...]

    def find(self, model_class: str, gpu: str, engine: str, traffic: str) -> Cell | None:
        """The cell of a run, if enough such runs were measured."""
        for name in (engine, self.next_of_kin.get(engine)):
            for cell in self.cells:
                kind = cell.model_class, cell.gpu, cell.engine, cell.traffic
                if kind == (model_class, gpu, name, traffic) and cell.runs >= FEWEST_RUNS:
                    return cell
        return None


@cache
def envelope() -> Envelope:
    """The shipped table; empty where there is none."""
    return validate(Envelope, load_yaml(_FILE)) if _FILE.is_file() else Envelope(cells=())


def model_class(architecture: ModelArchitecture) -> str:
    """dense, moe, mla moe, or hybrid (with linear attention): what errors are grouped by."""
    mlps = {group.mlp.kind for group in architecture.layers if group.mlp is not None}
    kinds = {type(group.attention).__name__ for group in architecture.layers if group.attention is not None}
    if "LinearAttention" in kinds:
        return "hybrid"
    return ("mla " if "LatentAttention" in kinds else "") + ("moe" if "moe" in mlps else "dense")


def traffic_of(workload: Mapping[str, Any]) -> Traffic:
    """The kind of traffic, from what a workload says of itself."""
    arrival = workload.get("arrival")
    kind = str(arrival.get("kind", "")) if isinstance(arrival, Mapping) else ""
    if kind == "closed_loop":
        return "closed loop"
    return "all at once" if kind == "all_at_once" else "open loop"


def cell_of(architecture: ModelArchitecture, gpu: str, engine: str, workload: Mapping[str, Any]) -> Cell | None:
    """What is known of runs like this one."""
    return envelope().find(model_class(architecture), gpu, engine, traffic_of(workload))
