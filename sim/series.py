"""A run over time: every series is a mean or a rate per interval of one common grid, summed over the replicas."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from sim.request import State
from sim.results import Column, RunResult, Table
from sim.token_times import rows_by_replica, tokens_per_bin
from sim.units import PS_PER_S

Floats = npt.NDArray[np.float64]
MOST_BINS = 240
_LEAST_BINS = 24
_REQUESTS_PER_BIN = 4


@dataclass(frozen=True)
class Grid:
    """Equal intervals over a run, from its first arrival to the last request's end."""

    start_ps: int
    width_ps: int
    bins: int

    @property
    def edges_ps(self) -> npt.NDArray[np.int64]:
        """The `bins + 1` limits of the intervals."""
        return self.start_ps + self.width_ps * np.arange(self.bins + 1, dtype=np.int64)

    @property
    def edges_s(self) -> Floats:
        """The same limits in seconds since the first arrival."""
        return np.arange(self.bins + 1, dtype=np.float64) * self.width_s

    @property
    def middles_s(self) -> Floats:
        """The middle of each interval, in seconds since the first arrival."""
        return (np.arange(self.bins, dtype=np.float64) + 0.5) * self.width_s

    @property
    def width_s(self) -> float:
        """Length of an interval in seconds."""
        return self.width_ps / PS_PER_S

    def index(self, times_ps: Column) -> Column:
        """The interval each time falls into."""
        index: Column = np.clip((times_ps - self.start_ps) // self.width_ps, 0, self.bins - 1)
        return index

    def count(self, times_ps: Column, weights: Column | None = None) -> Floats:
        """How many of `times_ps` (or how much weight) fall into each interval."""
        return np.bincount(self.index(times_ps), weights=weights, minlength=self.bins).astype(np.float64)


@dataclass(frozen=True)
class KVLayout:
    """What the step table means in blocks: their size, those of every sequence's state, the most it stores."""

    block_size: int = 1
    fixed_blocks: int = 0
    bound_tokens: int | None = None

    @classmethod
    def of(cls, result: RunResult) -> KVLayout:
        """As the facts of a run say."""
        facts = result.facts
        return cls(int(facts.get("block_size") or 1), facts.get("kv_fixed_blocks") or 0, facts.get("kv_bound_tokens"))


def blocks_of_replicas(result: RunResult) -> list[int]:
    """KV blocks of each replica, by number."""
    facts = result.facts
    alike = [{"replicas": facts.get("replicas") or 1, "num_gpu_blocks": facts.get("num_gpu_blocks") or 0}]
    return [int(p["num_gpu_blocks"]) for p in facts.get("pools") or alike for _ in range(int(p["replicas"]))]


@dataclass(frozen=True)
class Series:
    """What happened in each interval of `grid`. Rates are per second, the rest are means over the interval's time."""

    grid: Grid
    arrivals_per_s: Floats
    completions_per_s: Floats
    output_tokens_per_s: Floats
    prefill_tokens_per_s: Floats
    waiting: Floats
    """In the system but in no batch: not admitted yet, or preempted. With several sequences per request, as the plans
    saw it: a request that has not forked counts once."""
    running: Floats
    batch_size: Floats
    """Sequences in the step in progress, over the time in which there is one; zero where there is none."""
    kv_blocks: Floats
    kv_blocks_filled: Floats
    """Blocks that the stored tokens would fill, and states of fixed size."""
    kv_blocks_unused: Floats
    """Room in `kv_blocks` that its requests never fill: internal fragmentation. The rest is reserved for what comes.

    What a request held unused at its end counts from its admission on, less the time it was preempted.
    """
    kv_blocks_shared: Floats
    """Blocks more that would be in use if sequences and requests shared none."""
    kv_blocks_stranded: Floats
    """Free, but refused to the request at the head of the queue: external fragmentation, and what is too little."""


def run_window_ps(requests: Table) -> tuple[int, int]:
    """The first arrival and the last request's end, in picoseconds; zeros without requests."""
    if not len(requests):
        return 0, 0
    start = int(requests["arrival_ps"].min())
    return start, max(start, int(requests["finish_ps"].max()))


def grid_over(start_ps: int, end_ps: int, bins: int) -> Grid:
    """`bins` equal intervals that cover start to end; at least 1 ps each, so that an empty run has a grid too."""
    return Grid(start_ps, max(1, -(-(end_ps - start_ps) // bins)), bins)


def series_of(result: RunResult, bins: int | None = None) -> Series:
    """All series of a run. The number of intervals follows the number of requests, so that bars are not mere noise."""
    requests, steps = result.requests, result.steps
    if bins is None:
        bins = int(np.clip(len(requests) // _REQUESTS_PER_BIN, _LEAST_BINS, MOST_BINS))
    grid = grid_over(*run_window_ps(requests), bins)
    arrived, ended, prefilled = (np.zeros(grid.bins) for _ in range(3))
    for batch in requests.batches(["arrival_ps", "finish_ps", "state"]):
        arrived += grid.count(batch["arrival_ps"])
        ended += grid.count(batch["finish_ps"][batch["state"] == State.COMPLETED])
    for batch in steps.batches([*DURATION_COLUMNS, "prefill_tokens"]):
        prefilled += grid.count(batch["start_ps"] + row_durations_ps(batch), batch["prefill_tokens"])
    cache = KVLayout.of(result)
    levels = _step_levels(result, grid, cache)
    empty = np.maximum(levels["kv_blocks"] - levels["kv_blocks_filled"], 0.0)
    return Series(
        grid,
        arrivals_per_s=arrived / grid.width_s,
        completions_per_s=ended / grid.width_s,
        output_tokens_per_s=tokens_per_bin(result, grid.start_ps, grid.width_ps, grid.bins) / grid.width_s,
        prefill_tokens_per_s=prefilled / grid.width_s,
        waiting=levels["waiting"] if forks(result) else _in_no_batch(requests, grid, levels["running"]),
        running=levels["running"],
        batch_size=levels["sequences"] / np.where(levels["busy"] > 0, levels["busy"], 1.0),
        kv_blocks=levels["kv_blocks"],
        kv_blocks_filled=levels["kv_blocks_filled"],
        kv_blocks_unused=np.minimum(_unused_tokens(requests, grid) / cache.block_size, empty),
        kv_blocks_shared=levels["kv_blocks_shared"],
        kv_blocks_stranded=levels["kv_blocks_stranded"],
    )


def forks(result: RunResult) -> bool:
    """Whether requests have several sequences, so that those in a batch may be more than the requests in flight."""
    return any(bool(batch["sequence"].any()) for batch in result.segments.batches(["sequence"]))


def _in_no_batch(requests: Table, grid: Grid, running: Floats) -> Floats:
    return np.maximum(requests_in_flight(requests, grid) - running, 0.0)


def requests_in_flight(requests: Table, grid: Grid) -> Floats:
    """Requests that have arrived and not ended: mean per interval."""
    batches = requests.batches(["arrival_ps", "finish_ps"])
    return _overlap(((batch["arrival_ps"], batch["finish_ps"]) for batch in batches), grid)


def waiting_for_admission(requests: Table, grid: Grid) -> Floats:
    """Requests that have arrived and were not yet admitted to a batch for the first time: mean per interval."""
    batches = requests.batches(["arrival_ps", "scheduled_ps", "finish_ps"])
    return _overlap(((batch["arrival_ps"], left_queue_ps(batch)) for batch in batches), grid)


def left_queue_ps(requests: Table) -> Column:
    """When each request was first admitted to a batch, or ended without."""
    return np.where(requests["scheduled_ps"] >= 0, requests["scheduled_ps"], requests["finish_ps"])


def percentile_by_arrival(requests: Table, values: Column, grid: Grid, percent: float) -> Floats:
    """A percentile of a per-request value in each interval of arrival; NaN where nothing arrived."""
    index, filled = np.empty(len(requests), dtype=np.int32), 0
    for batch in requests.batches(["arrival_ps"]):
        index[filled : filled + len(batch)] = grid.index(batch["arrival_ps"])
        filled += len(batch)
    out = np.full(grid.bins, np.nan)
    order = np.argsort(index, kind="stable")
    first = np.searchsorted(index, np.arange(grid.bins + 1), sorter=order).tolist()
    for i, (begin, end) in enumerate(pairwise(first)):
        if end > begin:
            out[i] = np.percentile(values[order[begin:end]], percent)
    return out


DURATION_COLUMNS = ("start_ps", "steps", "first_step_ps", "slope_ps")
"""What `row_durations_ps` reads, and when a row begins."""
_LEVEL_COLUMNS = (
    "replica", *DURATION_COLUMNS, "decodes", "prefill_sequences", "kv_blocks", "kv_tokens", "running",
    "kv_stranded_blocks", "kv_shared_blocks", "waiting",
)  # fmt: skip


def row_durations_ps(steps: Table) -> Column:
    """How long each row of the step table lasts: the sum of its steps."""
    n = steps["steps"].astype(np.int64)
    durations: Column = n * steps["first_step_ps"] + steps["slope_ps"] * (n * (n - 1) // 2)
    return durations


def sequences_per_step(steps: Table) -> Column:
    """Sequences that take part in each step of a row, decoding or prefilling."""
    return steps["decodes"].astype(np.int64) + steps["prefill_sequences"]


def steps_by_sequences(steps: Table) -> Floats:
    """How many steps had 0, 1, 2, ... sequences taking part."""
    counts: Floats = np.zeros(1)
    for batch in steps.batches(("steps", "decodes", "prefill_sequences")):
        here = np.bincount(sequences_per_step(batch), weights=batch["steps"], minlength=len(counts))
        counts = here.astype(np.float64) + np.pad(counts, (0, len(here) - len(counts)))
    return counts


def kv_growth(steps: Table, cache: KVLayout) -> tuple[Column, Column]:
    """Tokens and blocks that a row's steps add to what the table gives at its start.

    Every step stores one token per decoding sequence, until a bounded cache is full. Where blocks are taken on demand
    they follow; where they were reserved ahead (more than one block per sequence stands empty), the reserved room is
    filled first.
    """
    running = steps["running"].astype(np.int64)
    tokens = steps["decodes"].astype(np.int64) * steps["steps"].astype(np.int64)
    if cache.bound_tokens is not None:
        tokens = np.minimum(tokens, np.maximum(running * cache.bound_tokens - steps["kv_tokens"], 0))
    room = (steps["kv_blocks"].astype(np.int64) - running * cache.fixed_blocks) * cache.block_size - steps["kv_tokens"]
    reserved = np.maximum(room - running * cache.block_size, 0)
    return tokens, np.maximum(tokens - reserved, 0) / cache.block_size


def _step_levels(result: RunResult, grid: Grid, cache: KVLayout) -> dict[str, Floats]:
    """Time-weighted means of what the replicas held, zero while they did nothing."""
    total: dict[str, Floats] = defaultdict(lambda: np.zeros(grid.bins))
    for rows, until_ps in _with_next_start(result.steps):
        # With several steps in flight rows overlap; the state a row recorded holds until the next one starts.
        length = np.minimum(row_durations_ps(rows), until_ps - rows["start_ps"])
        for name, level in _levels(rows, cache).items():
            total[name] += _mean_level(rows["start_ps"], length, level, grid)
    return total


def _levels(steps: Table, cache: KVLayout) -> dict[str, Column]:
    """What the rows of a step table held while they lasted, on average."""
    grown_tokens, grown_blocks = kv_growth(steps, cache)
    states = steps["running"].astype(np.int64) * cache.fixed_blocks
    blocks = steps["kv_blocks"] + grown_blocks / 2
    return {
        "busy": np.ones(len(steps)),
        "sequences": sequences_per_step(steps),
        "running": steps["running"],
        "waiting": steps["waiting"],
        "kv_blocks": blocks,
        "kv_blocks_filled": np.minimum(states + (steps["kv_tokens"] + grown_tokens / 2) / cache.block_size, blocks),
        "kv_blocks_shared": steps["kv_shared_blocks"],
        "kv_blocks_stranded": steps["kv_stranded_blocks"],
    }


def _with_next_start(steps: Table) -> Iterator[tuple[Table, Column]]:
    """Pieces of the step table, each of one replica, with when the row after each of theirs begins."""
    held: dict[int, Table] = {}  # until the next batch says when the row after the last one begins
    for batch in steps.batches(_LEVEL_COLUMNS):
        for replica, rows in rows_by_replica(batch):
            piece = Table({name: batch[name][rows] for name in _LEVEL_COLUMNS})
            if replica in held:
                yield held[replica], np.append(held[replica]["start_ps"][1:], piece["start_ps"][0])
            held[replica] = piece
    for piece in held.values():
        yield piece, np.append(piece["start_ps"][1:], np.iinfo(np.int64).max)


def _mean_level(start: Column, length: Column, level: Column, grid: Grid) -> Floats:
    """Mean of a level that is `level[i]` during [start[i], start[i] + length[i]) and zero otherwise."""
    area = np.concatenate([[0.0], np.cumsum(level * length.astype(np.float64))])
    edges = grid.edges_ps
    row = np.searchsorted(start, edges, side="right") - 1
    inside = np.clip(edges - start[row], 0, length[row])
    up_to = np.where(row >= 0, area[row] + level[row] * inside.astype(np.float64), 0.0)
    return np.diff(up_to) / grid.width_ps


def _unused_tokens(requests: Table, grid: Grid) -> Floats:
    """Room that requests hold and never fill: mean per interval."""

    def held() -> Iterator[tuple[Column, Column, Column]]:
        for batch in requests.batches(["scheduled_ps", "finish_ps", "preempted_ps", "kv_unused_tokens"]):
            ran = batch.where((batch["scheduled_ps"] >= 0) & (batch["kv_unused_tokens"] > 0))
            begin, end = ran["scheduled_ps"], ran["finish_ps"]
            resident = 1.0 - ran["preempted_ps"] / np.maximum(end - begin, 1)
            yield begin, end, ran["kv_unused_tokens"] * resident

    return _overlap(held(), grid)


def _overlap(intervals: Iterable[tuple[Column, ...]], grid: Grid) -> Floats:
    """Mean number (of triples: weight) of the intervals [begin, end) that are open, in each interval of the grid."""
    open_time = np.zeros(grid.bins + 1)
    for begin, end, *weights in intervals:
        open_time += _time_since(begin, grid, *weights) - _time_since(end, grid, *weights)
    return np.diff(open_time) / grid.width_ps


def _time_since(moments: Column, grid: Grid, weights: Column | None = None) -> Floats:
    """For each edge of the grid, the summed (weighted) time since those of `moments` that lie before it."""
    weights = np.ones(len(moments)) if weights is None else weights
    order = np.argsort(moments, kind="stable")
    since_start, weights = (moments[order] - grid.start_ps).astype(np.float64), weights[order]
    edges = (grid.edges_ps - grid.start_ps).astype(np.float64)
    passed = np.searchsorted(since_start, edges, side="right")
    count, total = (np.concatenate([[0.0], np.cumsum(x)]) for x in (weights, since_start * weights))
    since: Floats = count[passed] * edges - total[passed]
    return since
