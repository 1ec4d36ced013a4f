"""When requests arrive. A class here is one `arrival:` mapping of a workload file; its keys are its fields.

Times are drawn in chunks from streams keyed by (seed, chunk), so request i arrives at the same instant whatever the
number of requests. They are summed as integer picoseconds, which is exact in any order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import count
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from sim.errors import ConfigError
from sim.rng import stream
from sim.units import PS_PER_S, to_ps

Times = npt.NDArray[np.int64]
CHUNK = 16_384
"""Draws per stream. Part of the definition of the traffic: another value gives other numbers for the same seed."""

LATEST_PS = 2**62
"""53 days: later arrivals could run past the 64-bit clock of the result tables before they are served."""

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False, description="mean arrivals per second")]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Arrivals(BaseModel, ABC):
    """An open-loop arrival process: clients send without waiting for answers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @property
    @abstractmethod
    def mean_rate(self) -> float | None:
        """Mean arrivals per second over the whole run; None when the traffic has no rate of its own."""

    @abstractmethod
    def times_ps(self, seed: int, until_ps: int | None = None, *, part: int = 0) -> Iterator[Times]:
        """Arrival times before `until_ps`, non-decreasing, in chunks of at most CHUNK; endless without a limit.

        `part` separates processes of one kind in one run (the stages). Raises ConfigError when times leave the
        engine's clock before anyone stopped asking.
        """


class Renewal(Arrivals):
    """Independent gaps of mean 1/rate."""

    rate: Rate

    @property
    def mean_rate(self) -> float:
        return self.rate

    @abstractmethod
    def unit_gaps(self, rng: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
        """Gaps of mean 1."""

    def times_ps(self, seed: int, until_ps: int | None = None, *, part: int = 0) -> Iterator[Times]:
        last, limit = 0, LATEST_PS if until_ps is None else min(until_ps, LATEST_PS)
        for chunk in count():
            gaps = self.unit_gaps(stream(seed, "arrivals", part, chunk), CHUNK) * (PS_PER_S / self.rate)
            # In floats first: gaps of a very slow process do not fit in 64 bits.
            fits = int(np.searchsorted(np.cumsum(gaps), 1.5 * LATEST_PS - last))
            times = last + np.cumsum(np.rint(gaps[:fits]).astype(np.int64))
            inside = int(np.searchsorted(times, limit))
            if inside:
                yield times[:inside]
                last = int(times[inside - 1])
            if inside < CHUNK:
                break
        if until_ps is None:
            raise _too_long(self.rate)


class Poisson(Renewal):
    """Independent clients in large number: exponential gaps, coefficient of variation 1."""

    kind: Literal["poisson"] = "poisson"

    def unit_gaps(self, rng: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
        return rng.standard_exponential(size)


class Gamma(Renewal):
    """Gamma gaps, as `vllm bench serve --burstiness` draws them (shape = burstiness, mean 1/rate).

    The coefficient of variation of the gaps is 1/sqrt(burstiness): 1 is Poisson, below 1 is burstier, above 1 is more
    regular.
    """

    kind: Literal["gamma"] = "gamma"
    burstiness: float = Field(gt=0, allow_inf_nan=False, description="shape of the gamma law of the gaps; 1 is Poisson")

    def unit_gaps(self, rng: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
        return rng.standard_gamma(self.burstiness, size) / self.burstiness


class Weibull(Renewal):
    """Weibull gaps: shape 1 is Poisson, below 1 is burstier (some ServeGen clients, arXiv 2505.09999)."""

    kind: Literal["weibull"] = "weibull"
    shape: float = Field(ge=0.05, allow_inf_nan=False, description="shape of the Weibull law of the gaps; 1 is Poisson")

    def unit_gaps(self, rng: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
        return rng.weibull(self.shape, size) / math.gamma(1 + 1 / self.shape)


class Constant(Arrivals):
    """A metronome: request i arrives at i/rate."""

    kind: Literal["constant"] = "constant"
    rate: Rate

    @property
    def mean_rate(self) -> float:
        return self.rate

    def times_ps(self, seed: int, until_ps: int | None = None, *, part: int = 0) -> Iterator[Times]:
        gap = min(max(1, round(PS_PER_S / self.rate)), LATEST_PS)
        limit = LATEST_PS if until_ps is None else min(until_ps, LATEST_PS)
        total = -(-limit // gap)
        for start in range(0, total, CHUNK):
            yield np.arange(start, min(start + CHUNK, total), dtype=np.int64) * gap
        if until_ps is None:
            raise _too_long(self.rate)


class AllAtOnce(Arrivals):
    """Everything arrives at time 0: an offline batch (`rate: inf` of `vllm bench serve`)."""

    kind: Literal["all_at_once"] = "all_at_once"

    @property
    def mean_rate(self) -> None:
        return None

    def times_ps(self, seed: int, until_ps: int | None = None, *, part: int = 0) -> Iterator[Times]:
        while until_ps is None or until_ps > 0:
            yield np.zeros(CHUNK, np.int64)


class Stage(BaseModel):
    """A stretch of traffic at one rate."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    rate: float = Field(ge=0, allow_inf_nan=False, description="mean arrivals per second; 0 is a pause")
    duration_s: Seconds = Field(description="length of the stage, seconds")
    kind: Literal["poisson", "constant"] = "poisson"

    @property
    def arrivals(self) -> Arrivals:
        """The process of this stage, which must not be a pause."""
        return Poisson(rate=self.rate) if self.kind == "poisson" else Constant(rate=self.rate)


class Stages(Arrivals):
    """One rate after the other: a ramp, a spike, a day. The traffic ends with the last stage."""

    kind: Literal["stages"] = "stages"
    stages: tuple[Stage, ...] = Field(min_length=1, strict=False, description="list of {rate, duration_s, kind}")

    @property
    def duration_s(self) -> float:
        """Length of all stages, seconds."""
        return sum(stage.duration_s for stage in self.stages)

    @property
    def mean_rate(self) -> float:
        return sum(stage.rate * stage.duration_s for stage in self.stages) / self.duration_s

    def times_ps(self, seed: int, until_ps: int | None = None, *, part: int = 0) -> Iterator[Times]:
        start, limit = 0, LATEST_PS if until_ps is None else min(until_ps, LATEST_PS)
        for number, stage in enumerate(self.stages):
            end = start + to_ps(stage.duration_s)
            if stage.rate and start < limit:
                for times in stage.arrivals.times_ps(seed, min(end, limit) - start, part=number):
                    yield start + times
            start = end


class ClosedLoop(BaseModel):
    """A fixed number of clients, each of which waits for its answer before it sends the next request.

    All start at time 0; a client sends `think_time_s` after its previous request ended, however it ended. There is no
    arrival rate: the server sets the pace.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Literal["closed_loop"] = "closed_loop"
    concurrency: int = Field(gt=0, description="number of clients, hence the most requests in flight")
    think_time_s: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="pause of a client between answer and next request"
    )


def _too_long(rate: float) -> ConfigError:
    days = LATEST_PS / PS_PER_S / 86_400
    return ConfigError(
        f"the traffic lasts longer than {days:.0f} days of simulated time", key="arrival.rate", value=rate
    )
