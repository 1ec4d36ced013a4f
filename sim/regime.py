"""Did the system keep up with its traffic? STABLE, BACKLOGGED or OVERLOADED (the words of inference-sim, "BLIS").

The test follows the over-saturation detection of guidellm: both the backlog and the TTFT must rise significantly
while requests still arrive. What happens after the last arrival says nothing about a load that never ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate

import numpy as np

from sim.request import Reason, State
from sim.results import Column, Table
from sim.series import (
    Floats,
    Grid,
    grid_over,
    left_queue_ps,
    percentile_by_arrival,
    requests_in_flight,
    run_window_ps,
    waiting_for_admission,
)
from sim.units import PS_PER_S

_BINS = 20
_WARM_UP_BINS = 2
_LEAST_REQUESTS = 40
_SIGNIFICANCE = 0.001
_DOUBT = 0.05
_MATERIAL_GROWTH = 0.8
"""Rise over the arrival period as a share of the mean: a queue that grows steadily from nothing rises by 2 means."""
_QUEUE_SHARE = 0.5
_GAVE_UP_SHARE = 0.05
_AT_ONCE_SHARE = 0.01
_STEADY_SPANS = 2.0


class Regime(StrEnum):
    """How a system stands to its load."""

    STABLE = "STABLE"
    """Requests are admitted about as they come."""
    BACKLOGGED = "BACKLOGGED"
    """Requests wait longer to be admitted than for their prefill, but the queue does not grow without end."""
    OVERLOADED = "OVERLOADED"
    """More arrives than can be served: the longer the run, the longer the wait."""


@dataclass(frozen=True)
class Verdict:
    """The regime, why, and whether percentiles of the whole run describe a steady state."""

    regime: Regime
    steady_state: bool
    reason: str
    queue_share_of_ttft: float
    """Mean queue wait over mean TTFT, of the requests that got a first token."""
    waiting_growth: float
    """Requests by which the queue grew over the arrival period (Theil-Sen trend)."""


@dataclass(frozen=True)
class _Trend:
    growth: float = 0.0
    material: bool = False
    p_value: float = 1.0

    @property
    def rises(self) -> bool:
        return self.material and self.growth > 0 and self.p_value < _SIGNIFICANCE


@dataclass(frozen=True)
class _Findings:
    """What the verdict is drawn from."""

    queue_share: float
    mean_waiting: float
    gave_up: float
    queue: _Trend
    ttft: _Trend
    in_flight: _Trend
    closed_loop: bool
    at_once: bool


def judge(requests: Table, arrival_kind: str = "") -> Verdict:
    """The regime of a run, from its requests alone.

    * OVERLOADED: the queue of requests not yet admitted and the median TTFT both rise over the arrival period
      (Kendall's tau, p < 0.001, and a Theil-Sen rise of 0.8 of the mean), and waiting is most of the TTFT. Or one
      client in twenty gave up, or no request was served at all.
    * BACKLOGGED: not so, but the mean request waits longer to be admitted than it is prefilled, and on average at
      least one request per replica waits. (A short wait for the step in progress is no backlog.)
    * STABLE: neither; and every closed loop, whose clients slow down with the server.

    A steady state needs arrivals spread over at least twice the median end-to-end latency, 40 completed requests, and
    no trend in the queue or the requests in flight. `arrival_kind` ("closed_loop", "all_at_once") says what the
    request table alone cannot.
    """
    served = requests.where((requests["first_token_ps"] >= 0) & (requests["scheduled_ps"] >= 0))
    found = _findings(requests, served, arrival_kind)
    regime, reason = _regime(found) if len(served) else _nothing_served(requests)
    not_steady = _why_not_steady(requests, regime, found)
    return Verdict(
        regime,
        not not_steady,
        f"{reason}; not a steady state: {not_steady}" if not_steady else reason,
        found.queue_share,
        found.queue.growth,
    )


def _findings(requests: Table, served: Table, arrival_kind: str) -> _Findings:
    queue = ttft = in_flight = _Trend()
    if len(served) >= _LEAST_REQUESTS:
        start, end = int(requests["arrival_ps"].min()), int(requests["arrival_ps"].max())
        grid = grid_over(start, end, _BINS)
        queue = _trend(waiting_for_admission(requests, grid), grid)
        in_flight = _trend(requests_in_flight(requests, grid), grid)
        ttft_ps: Column = served["first_token_ps"] - served["arrival_ps"]
        ttft = _trend(percentile_by_arrival(served, ttft_ps, grid, 50), grid)
    gave_up = float(np.mean(requests["reason"] == Reason.CLIENT_TIMEOUT)) if len(requests) else 0.0
    at_once = _at_once(requests, arrival_kind)
    waiting = _queue_share(served), _mean_waiting(requests)
    return _Findings(*waiting, gave_up, queue, ttft, in_flight, arrival_kind == "closed_loop", at_once)


def _regime(found: _Findings) -> tuple[Regime, str]:
    waits = f"waiting for admission is {found.queue_share:.0%} of the mean TTFT"
    waits += f" ({found.mean_waiting:,.1f} waiting requests per replica)"
    if found.gave_up >= _GAVE_UP_SHARE:
        return Regime.OVERLOADED, f"{found.gave_up:.0%} of the clients gave up waiting"
    if found.closed_loop:
        return Regime.STABLE, f"a closed loop cannot outrun its server; {waits}"
    waited = found.queue_share > _QUEUE_SHARE
    if waited and not found.at_once and found.queue.rises and found.ttft.rises:
        longer = f"{found.queue.growth:,.0f} requests, the median TTFT by {found.ttft.growth / PS_PER_S:.3g} s"
        return Regime.OVERLOADED, f"while requests arrived, the queue grew by {longer}"
    if waited and found.mean_waiting >= 1:
        return Regime.BACKLOGGED, f"{waits}, but the queue does not grow without end"
    return Regime.STABLE, f"{waits}, and the queue does not grow"


def _nothing_served(requests: Table) -> tuple[Regime, str]:
    if len(requests):
        return Regime.OVERLOADED, f"none of {len(requests):,} requests was served"
    return Regime.STABLE, "there was no request"


def _mean_waiting(requests: Table) -> float:
    """Mean number of requests per replica that wait for their first admission, over the whole run."""
    start, end = run_window_ps(requests)
    batches = requests.batches(["arrival_ps", "scheduled_ps", "finish_ps"])
    waited = sum(float(np.sum(left_queue_ps(b) - b["arrival_ps"], dtype=np.float64)) for b in batches)
    return waited / max(end - start, 1) / max(1, len(np.unique(requests["replica"])))


def _queue_share(served: Table) -> float:
    ttft = queued = 0.0
    for batch in served.batches(["arrival_ps", "scheduled_ps", "first_token_ps"]):
        ttft += float(np.sum(batch["first_token_ps"] - batch["arrival_ps"], dtype=np.float64))
        queued += float(np.sum(batch["scheduled_ps"] - batch["arrival_ps"], dtype=np.float64))
    return queued / ttft if ttft > 0 else 0.0


def _at_once(requests: Table, arrival_kind: str) -> bool:
    if arrival_kind == "all_at_once":
        return True
    start, end = run_window_ps(requests)
    span = int(requests["arrival_ps"].max()) - start if len(requests) else 0
    return len(requests) > 1 and span <= _AT_ONCE_SHARE * (end - start)


def _why_not_steady(requests: Table, regime: Regime, found: _Findings) -> str:
    completed = requests.where(requests["state"] == State.COMPLETED)
    if found.at_once:
        return "all requests arrived at once"
    if len(completed) < _LEAST_REQUESTS:
        return f"only {len(completed)} requests completed"
    if regime is Regime.OVERLOADED:
        return "its percentiles depend on how long the run was"
    if np.ptp(requests["arrival_ps"]) < _STEADY_SPANS * np.median(completed["finish_ps"] - completed["arrival_ps"]):
        return "requests arrived for less than twice the median end-to-end latency"
    if found.in_flight.rises and not found.closed_loop:
        return "the number of requests in flight was still growing"
    # The bar is lower than for OVERLOADED: here a doubt is enough.
    if regime is Regime.BACKLOGGED and found.queue.material and found.queue.p_value < _DOUBT:
        return "the backlog was still growing" if found.queue.growth > 0 else "an early backlog was being worked off"
    return ""


def _trend(values: Floats, grid: Grid) -> _Trend:
    # The first intervals fill an empty system, whatever the load.
    known = np.isfinite(values) & (np.arange(grid.bins) >= _WARM_UP_BINS)
    at, values = grid.middles_s[known], values[known]
    if len(values) < grid.bins // 2 or np.ptp(values) == 0:
        return _Trend()
    growth = median_slope(at, values) * grid.width_s * grid.bins
    material = abs(growth) >= _MATERIAL_GROWTH * float(np.mean(values))
    return _Trend(growth, material, trend_p_value(values))


# scipy.stats has both of these, but importing it takes a second and 45 MiB of every run.
def median_slope(at: Floats, values: Floats) -> float:
    """The Theil-Sen estimator: the median slope of all pairs of points (Sen, JASA 63, 1968)."""
    first, second = np.triu_indices(len(at), 1)
    return float(np.median((values[second] - values[first]) / (at[second] - at[first])))


def trend_p_value(values: Floats) -> float:
    """Two-sided p-value of Kendall's tau between time and values (the Mann-Kendall test).

    Without ties it is exact, from the number of orderings with so many inversions; with ties, from the normal
    approximation with the variance corrected for them (Kendall, "Rank Correlation Methods", 1970, chapters 4 and 5).
    """
    n = len(values)
    first, second = np.triu_indices(n, 1)
    rises = np.sign(values[second] - values[first])
    concordant, discordant = np.count_nonzero(rises > 0), np.count_nonzero(rises < 0)
    if concordant + discordant == len(rises):
        orderings = [1]
        for size in range(2, n + 1):  # the element inserted last makes 0 .. size - 1 inversions
            room = [0] * (size - 1)
            upto = list(accumulate([*orderings, *room]))
            orderings = [here - before for here, before in zip(upto, [0, *room, *upto], strict=False)]
        tail = sum(orderings[: min(concordant, discordant) + 1])
        return min(1.0, 2 * tail / math.factorial(n))
    ties = np.unique(values, return_counts=True)[1]
    variance = (n * (n - 1) * (2 * n + 5) - np.sum(ties * (ties - 1) * (2 * ties + 5))) / 18
    return math.erfc(abs(concordant - discordant) / math.sqrt(2 * variance))
