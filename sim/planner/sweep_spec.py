"""The schema of a sweep file: which scenario, and which of its keys take which values."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from sim import catalog
from sim.documents import canonical_json, load_yaml, validate
from sim.errors import ConfigError
from sim.rng import stream
from sim.scenario import load_scenario

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)
_MOST_POINTS = 1_000_000


def _dotted(key: str) -> str:
    if not all(key.split(".")):
        raise ValueError("expected a dotted key of the scenario, such as engine.max_num_seqs")
    return key


Key = Annotated[str, AfterValidator(_dotted)]


class Law(BaseModel):
    """A law that values of a key are drawn from."""

    model_config = _STRICT

    kind: Literal["uniform", "log_uniform", "integer", "choice"] = Field(description="which law")
    low: float | None = Field(default=None, allow_inf_nan=False, description="smallest value")
    high: float | None = Field(default=None, allow_inf_nan=False, description="largest value")
    values: list[Any] = Field(default=[], description="of a choice: each equally likely")

    @model_validator(mode="after")
    def _complete(self) -> Law:
        if self.kind == "choice":
            if not self.values or self.low is not None or self.high is not None:
                raise ValueError("a choice needs values, and neither low nor high")
        elif self.low is None or self.high is None or self.values:
            raise ValueError(f"{self.kind} needs low and high, and no values")
        elif self.low > self.high or (self.kind == "log_uniform" and self.low <= 0):
            raise ValueError(f"low ({self.low:g}) must be at most high ({self.high:g}), and above 0 if log_uniform")
        return self

    def draw(self, rng: np.random.Generator) -> Any:
        """One value."""
        if self.kind == "choice":
            return self.values[int(rng.integers(len(self.values)))]
        low, high = float(self.low or 0.0), float(self.high or 0.0)
        if self.kind == "integer":
            return int(rng.integers(math.ceil(low), math.floor(high) + 1))
        if self.kind == "uniform":
            return float(rng.uniform(low, high))
        return float(np.exp(rng.uniform(math.log(low), math.log(high))))


class Sampled(BaseModel):
    """Points drawn at random: for spaces too large for a grid."""

    model_config = _STRICT

    points: int = Field(gt=0, le=_MOST_POINTS, description="how many")
    seed: int = Field(default=0, ge=0, description="of the draws; more points never change the first ones")
    keys: dict[Key, Law] = Field(min_length=1, description="key of the scenario -> law")


class SweepSpec(BaseModel):
    """Many runs of one scenario. `list`, `grid` and `sample` may stand together: every combination is a point."""

    model_config = _STRICT

    name: str = Field(default="", description="default: the file's name")
    description: str = Field(default="", description="free text for people")
    scenario: str | dict[str, Any] = Field(description="a shipped scenario, a path, or the mapping itself")
    set: dict[Key, Any] = Field(default={}, description="overrides for all points, as --set")
    grid: dict[Key, Annotated[list[Any], Field(min_length=1)]] = Field(
        default={}, description="key -> values: every combination"
    )
    points: list[dict[Key, Any]] = Field(default=[], alias="list", description="overrides written out, point by point")
    sample: Sampled | None = Field(default=None, description="points drawn at random")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        default=[], description="every point is run with each of these seeds; default: the scenario's"
    )

    @model_validator(mode="after")
    def _some_points(self) -> SweepSpec:
        if not (self.grid or self.points or self.sample or self.seeds):
            raise ValueError("names no points: give a grid, a list, a sample or several seeds")
        count = math.prod(len(v) for v in self.grid.values()) * max(1, len(self.points)) * max(1, len(self.seeds))
        if count * (self.sample.points if self.sample else 1) > _MOST_POINTS:
            raise ValueError(f"has more than {_MOST_POINTS:,} points")
        return self

    def combinations(self) -> Iterator[dict[str, Any]]:
        """The overrides of each point, without those of all; the last key of the grid turns fastest."""
        listed = self.points or [{}]
        grid = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        seeds = [{"seed": seed} for seed in self.seeds] or [{}]
        for parts in itertools.product(listed, self._drawn(), grid, seeds):
            yield {key: value for part in parts for key, value in part.items()}

    def _drawn(self) -> list[dict[str, Any]]:
        if self.sample is None:
            return [{}]
        rngs = {key: stream(self.sample.seed, f"sweep.{key}") for key in self.sample.keys}
        return [{key: law.draw(rngs[key]) for key, law in self.sample.keys.items()} for _ in range(self.sample.points)]


@dataclass(frozen=True)
class Point:
    """One run of a sweep: a scenario and what is overridden in it."""

    scenario: str | Mapping[str, Any]
    common: Mapping[str, Any]
    varied: Mapping[str, Any]

    @property
    def overrides(self) -> dict[str, Any]:
        """Those of all points, then its own."""
        return {**self.common, **self.varied}


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read."""

    spec: SweepSpec
    points: tuple[Point, ...]

    @property
    def keys(self) -> list[str]:
        """What varies from point to point, in the order of writing."""
        return list(dict.fromkeys(key for point in self.points for key in point.varied))


def load_sweep(path: str | Path, settings: Mapping[str, Any] | None = None) -> Sweep:
    """The sweep in a YAML file; `settings` override its `set`. Raises ConfigError naming file, line and key.

    The scenario is read once to refuse what no point could mend; each point is checked when it runs.
    """
    path = Path(path)
    document = load_yaml(path)
    spec = validate(SweepSpec, document)
    common = {**spec.set, **(settings or {})}
    scenario = spec.scenario
    if isinstance(scenario, str):
        with document.blamed(("scenario",)):
            scenario = str(catalog.find("scenario", scenario, beside=path))
            load_yaml(scenario)
    if not spec.name:
        spec = spec.model_copy(update={"name": path.stem})
    return Sweep(spec, tuple(Point(scenario, common, varied) for varied in spec.combinations()))


def digest(point: Point) -> str:
    """A name for a point's result: another scenario, override, profile, workload or version gives another."""
    source = point.scenario if isinstance(point.scenario, Mapping) else load_yaml(point.scenario).data
    said: dict[str, Any] = {"scenario": source, "set": point.overrides, "version": _version()}
    try:
        loaded = load_scenario(point.scenario, point.overrides)
    except ConfigError:
        pass  # it will fail again in the same words
    else:
        scenario = loaded.scenario
        said["files"] = [
            _file_digest(str(found))
            for kind, name in (("hardware", scenario.hardware), ("workload", scenario.workload))
            if isinstance(name, str) and (found := _found(kind, name, loaded.path)) is not None
        ]
    return hashlib.sha256(canonical_json(said).encode()).hexdigest()[:24]


def _found(kind: str, name: str, beside: Path | None) -> Path | None:
    try:
        return catalog.find(kind, name, beside=beside)
    except ConfigError:
        return None


@lru_cache(maxsize=256)
def _file_digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _version() -> str:
    try:
        return version("roofserve")
    except PackageNotFoundError:
        return "unknown"
