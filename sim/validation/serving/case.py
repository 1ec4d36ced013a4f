"""One measured run as the simulator is asked to repeat it: scenario, traffic, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Client = Literal["trace", "at_once", "closed_loop"]
WHOLE_RUN = -1


@dataclass(frozen=True)
class Traffic:
    """The requests of a run, one entry per request in the order in which clients send them.

    `client` says when: at `arrival_s` (seconds), all at once, or whenever one of `concurrency` clients is free.
    `prompt_id` tells prompts apart where the same ones come again; equal ids are equal prompts, token for token.
    """

    input_tokens: Ints
    output_tokens: Ints
    client: Client = "at_once"
    arrival_s: Floats | None = None
    concurrency: int = 0
    prompt_id: Ints | None = None
    timeout_s: float | None = None

    def __len__(self) -> int:
        return len(self.input_tokens)


@dataclass(frozen=True)
class Part:
    """A stretch of a run with its own measurements: requests `first` to before `last`, in order of arrival.

    `measured` maps metric names (the table's columns without their units) to values, times in ms. `tails_from` is the
    request from which percentiles 95 and 99 are taken on both sides: the first ones warm the server up.
    """

    stage: int
    first: int
    last: int
    measured: Mapping[str, float]
    tails_from: int = 0


@dataclass(frozen=True)
class Nominal:
    """What a table states about a closed loop, from which its derived columns follow."""

    osl: int = 0
    concurrency: int = 0
    num_gpus: int = 1


@dataclass(frozen=True)
class Case:
    """A row, or the stages of a run, of a table.

    `scenario` is what `roofserve run` would read, less its workload. `overloaded` is what was measured: True when the
    queue grew without end, None where the traffic cannot say. `remarks` name what is only approximately so; `problem`
    says why there is no prediction; `doubt` why its figures contradict themselves, though it is predicted; `suspect`
    rows are bad measurements by their publisher's own account.
    """

    id: str
    table: str
    labels: Mapping[str, str]
    path: Path
    scenario: Mapping[str, Any] = field(default_factory=dict)
    traffic: Traffic | None = None
    config: Mapping[str, Any] | None = None
    """The config.json of a model that the catalogue lacks."""
    parts: tuple[Part, ...] = ()
    nominal: Nominal = Nominal()
    never_evicts: bool = False
    """The server admits a request only if its final length fits (TensorRT-LLM's GUARANTEED_NO_EVICT)."""
    overloaded: bool | None = None
    client: str = ""
    """A client whose requests cost its server more than others do, and so has constants of its own."""
    remarks: tuple[str, ...] = ()
    doubt: str = ""
    doubted_metrics: tuple[str, ...] = ()
    """Beginnings of the metrics that contradict themselves where the others do not."""
    problem: str = ""
    suspect: bool = False

    def without(self, problem: str, *, suspect: bool = False) -> Case:
        """The same row, not predicted."""
        return replace(self, problem=problem, suspect=suspect)
