"""Open-loop traffic drawn from laws: an arrival process and two distributions of lengths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, count, islice
from typing import Any

from sim.errors import ConfigError
from sim.request import Request
from sim.units import to_ps
from sim.workloads.arrivals import Arrivals, Stages
from sim.workloads.sizes import RequestRows


class OpenLoop:
    """Requests that arrive whether or not the server keeps up.

    Stops after `num_requests` or at `duration_s`, whichever comes first; `Stages` also stop by themselves. Raises
    ConfigError when nothing would stop it.
    """

    def __init__(
        self,
        arrivals: Arrivals,
        sizes: RequestRows,
        *,
        seed: int = 0,
        num_requests: int | None = None,
        duration_s: float | None = None,
    ) -> None:
        stops_itself = isinstance(arrivals, Stages)
        if num_requests is None and not stops_itself and (duration_s is None or arrivals.mean_rate is None):
            raise ConfigError("say after how many requests this traffic ends", key="num_requests")
        self.arrivals, self.sizes, self.seed, self.duration_s = arrivals, sizes, seed, duration_s
        self.num_requests = num_requests if duration_s is None and not stops_itself else None
        self.notes: tuple[str, ...] = sizes.notes
        self.has_prefixes = sizes.has_prefixes
        self._limit = num_requests

    def __iter__(self) -> Iterator[Request]:
        until_ps = None if self.duration_s is None else to_ps(self.duration_s)
        chunks = self.arrivals.times_ps(self.seed, until_ps)
        times = chain.from_iterable(chunk.tolist() for chunk in chunks)
        # `map` and `islice` keep the loop out of Python: making the Request itself is what costs.
        return islice(map(Request, count(), times, *self.sizes.columns(self.seed)), self._limit)

    def on_finish(self, request: Request, now_ps: int) -> Iterable[Request]:
        """Nothing follows: the clients of open-loop traffic do not wait for answers."""
        return ()

    def describe(self) -> dict[str, Any]:
        """The process with its keys, its mean rate in requests per second, and mean lengths in tokens."""
        return {
            "arrival": self.arrivals.model_dump(mode="json"),
            "mean_rate": self.arrivals.mean_rate,
            "num_requests": self._limit,
            "duration_s": self.duration_s,
            **self.sizes.describe(),
        }
