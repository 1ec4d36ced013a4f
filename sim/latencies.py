"""The latencies of a run, in seconds per request and as samples whose percentiles are exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from sim.request import State
from sim.results import Column, RunResult, Table
from sim.token_times import inter_token_gaps
from sim.units import PS_PER_S


@dataclass(frozen=True)
class Sample:
    """Observations with their multiplicities; statistics equal those of the list written out in full."""

    values: Column
    """Ascending."""
    counts: Column | None = None
    """How often each occurred; None: once."""

    @classmethod
    def of(cls, values: Column, counts: Column | None = None) -> Sample:
        """Sort once, so that every percentile is a look-up."""
        if counts is None:
            return cls(np.sort(values))
        order = np.argsort(values, kind="stable")
        return cls(values[order], counts[order])

    def __len__(self) -> int:
        return len(self.values) if self.counts is None else int(self.counts.sum())

    def _at(self, positions: Column) -> Column:
        """The observations at some places of the sorted list."""
        if self.counts is None:
            return self.values[positions]
        return self.values[np.searchsorted(np.cumsum(self.counts), positions, side="right")]

    def percentile(self, percent: float) -> float:
        """Linear interpolation between order statistics, as `numpy.percentile`; NaN of nothing."""
        return float(self.percentiles(np.array([percent]))[0])

    def percentiles(self, percents: Column) -> Column:
        """Several at once."""
        if not len(self.values):
            return np.full(len(percents), math.nan)
        position = (len(self) - 1) * percents / 100
        below = np.floor(position).astype(np.int64)
        low, high = self._at(below), self._at(np.ceil(position).astype(np.int64))
        return low + (high - low) * (position - below)

    def mean(self) -> float:
        """NaN of nothing."""
        return float(self._sum(self.values) / len(self)) if len(self.values) else math.nan

    def std(self) -> float:
        """Population standard deviation, as vLLM reports it."""
        if not len(self.values):
            return math.nan
        return float(np.sqrt(self._sum((self.values - self.mean()) ** 2) / len(self)))

    def _sum(self, values: Column) -> float:
        return float(np.sum(values if self.counts is None else values * self.counts))


class LatencySamples(Mapping[str, Sample]):
    """The latencies of a run in seconds, over the completed requests; what is asked for of them is not kept.

    `ttft`, `tpot`, `itl` and `e2el` as vLLM defines them, and where the time went: `queue_time`, `prefill_time`,
    `decode_time`, `preempted_time`. A request with one output token has no TPOT and is left out of that sample only.
    Only the gaps between tokens are worked out at once and held: theirs are the costly ones, and few are distinct.
    """

    def __init__(self, result: RunResult) -> None:
        everyone = result.requests
        completed = everyone["state"] == State.COMPLETED
        self._done = everyone if completed.all() else everyone.where(completed)
        gaps = inter_token_gaps(result, None if completed.all() else self._done["request_id"])
        self._itl = Sample(gaps.gap_ps / PS_PER_S, gaps.count)

    def __getitem__(self, name: str) -> Sample:
        return self._itl if name == "itl" else Sample.of(_OF_REQUESTS[name](self._done))

    def __iter__(self) -> Iterator[str]:
        yield from ("itl", *_OF_REQUESTS)

    def __len__(self) -> int:
        return 1 + len(_OF_REQUESTS)


def ttft_s(requests: Table) -> Column:
    """Arrival to first token, queueing included."""
    return _span_s(requests, "arrival_ps", "first_token_ps")


def tpot_s(requests: Table) -> Column:
    """(E2E - TTFT) / (output tokens - 1), one value per request; zero where there is one token only.

    Of a request with several sequences the tokens are those of the longest: the pace at which one answer is written.
    """
    tpot = _span_s(requests, "first_token_ps", "finish_ps")
    tpot /= np.maximum(_longest(requests) - 1, 1)
    return tpot


def _longest(requests: Table) -> Column:
    """Output tokens of the longest sequence of each request."""
    longest: Column = requests["output_tokens"].astype(np.int64) - requests["sibling_tokens"]
    return longest


def e2e_s(requests: Table) -> Column:
    """Arrival to last token."""
    return _span_s(requests, "arrival_ps", "finish_ps")


_OF_REQUESTS: Mapping[str, Callable[[Table], Column]] = {
    "ttft": ttft_s,
    "tpot": lambda completed: tpot_s(completed.where(_longest(completed) > 1)),
    "e2el": e2e_s,
    "queue_time": lambda completed: _span_s(completed, "arrival_ps", "scheduled_ps"),
    "prefill_time": lambda completed: _span_s(completed, "scheduled_ps", "first_token_ps"),
    "decode_time": lambda completed: _span_s(completed, "first_token_ps", "finish_ps"),
    "preempted_time": lambda completed: completed["preempted_ps"] / PS_PER_S,
}


def _span_s(requests: Table, begin: str, end: str) -> Column:
    spans, filled = np.empty(len(requests)), 0
    for batch in requests.batches((begin, end)):
        np.divide(batch[end] - batch[begin], PS_PER_S, out=spans[filled : filled + len(batch)])
        filled += len(batch)
    return spans
