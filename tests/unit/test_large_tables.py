"""What is worked out batch by batch does not depend on where a batch ends."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenarios import play, random_scenario
from sim import token_times
from sim.audit import audit
from sim.breakdown import breakdown
from sim.errors import InvariantError
from sim.metrics import summarise
from sim.request import State
from sim.results import FileColumns, RunResult, Table
from sim.series import Grid, Series, percentile_by_arrival, series_of, steps_by_sequences
from sim.token_times import Tally, decode_boundaries, decode_slices, inter_token_gaps, tokens_per_bin

SEEDS = st.integers(0, 60)
ROWS = st.integers(3, 60)
SETTINGS = settings(max_examples=20, deadline=None)


@cache
def played(seed: int) -> RunResult:
    """A random run: some preempt, some abort, some have several replicas or plan a step ahead."""
    return play(random_scenario(seed)).result()


def filed(table: Table, path: Path, rows: int) -> Table:
    """The same table in a file whose row groups, and so its batches, have so many rows."""
    pq.write_table(pa.table(dict(table.columns)), path, row_group_size=rows)
    return Table(FileColumns(path))


def in_batches(result: RunResult, directory: str, rows: int) -> RunResult:
    """The same run, read so many rows at a time."""
    tables = {"requests": result.requests, "steps": result.steps, "segments": result.segments}
    read = [filed(table, Path(directory) / f"{name}.parquet", rows) for name, table in tables.items()]
    return RunResult(*read, manifest=result.manifest)


@pytest.fixture(scope="module")
def directory() -> Iterator[str]:
    """One place for the files of all examples."""
    with tempfile.TemporaryDirectory() as place:
        yield place


def numbers(value: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one flat mapping, floats with nine digits."""
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: number for k, item in items for key, number in numbers(item, f"{name}.{k}").items()}
    return {name: f"{value:.9g}" if isinstance(value, float) else value}


def test_random_runs_have_what_makes_this_hard() -> None:
    """Among the runs below are preemptions, aborted requests and several replicas."""
    runs = [played(seed) for seed in range(61)]
    assert any(len(run.segments) > len(run.requests) for run in runs)
    assert any((run.requests["state"] == State.ABORTED).any() for run in runs)
    assert any(len(set(run.steps["replica"].tolist())) > 1 for run in runs)


@given(st.integers(0, 30), ROWS, st.lists(st.booleans(), min_size=30, max_size=30), st.data())
@settings(max_examples=20, deadline=None)
def test_batches_of_a_table_are_its_rows_in_order(
    directory: str, n: int, rows: int, mask: list[bool], data: st.DataObject
) -> None:
    """In memory, in a file, chosen by a mask, by numbers, or one after the other: no row is lost or repeated."""
    memory = Table({"a": np.arange(n) * 3, "b": np.arange(n).astype(np.int8), "c": -np.arange(n)})
    file = filed(memory, Path(directory) / "one.parquet", data.draw(ROWS))
    kept = np.array(mask[:n], dtype=bool)
    order = np.array(data.draw(st.permutations(range(n))), dtype=np.int64)
    for table in (memory, file):
        for some in (table, table.where(kept), table.where(order), table.where(kept).where(order[order < kept.sum()])):
            for name in ("a", "b", "c"):
                batches = list(some.batches([name, "a"], rows))
                assert [x for batch in batches for x in batch[name].tolist()] == some[name].tolist()
                assert all(0 < len(batch) <= rows for batch in batches)
                assert some[name].dtype == memory[name].dtype


@given(SEEDS, ROWS, st.integers(1, 50))
@SETTINGS
def test_slices_of_decode_steps_join_seamlessly(directory: str, seed: int, rows: int, most_steps: int) -> None:
    """However the step table is cut, each replica's slices follow each other and hold the ends of all its steps."""
    steps = played(seed).steps
    seen: dict[int, list[int]] = {}
    for part in decode_slices(filed(steps, Path(directory) / "steps.parquet", rows), rows, most_steps):
        so_far = seen.setdefault(part.replica, [0])
        assert (part.first, int(part.ends_ps[0])) == (len(so_far), so_far[-1])
        so_far += part.ends_ps[1:].tolist()
    for replica in set(steps["replica"].tolist()):
        own = steps.where((steps["replica"] == replica) & (steps["decodes"] > 0))
        columns = (own[name].tolist() for name in ("start_ps", "steps", "first_step_ps", "slope_ps"))
        ends = [s + j * f + d * j * (j - 1) // 2 for s, n, f, d in zip(*columns, strict=True) for j in range(1, n + 1)]
        assert seen.get(replica, [0]) == [0, *ends] == decode_boundaries(own).tolist()


@given(SEEDS, ROWS, st.integers(1, 50))
@SETTINGS
def test_gaps_and_tokens_do_not_depend_on_the_slices(directory: str, seed: int, rows: int, most_steps: int) -> None:
    """Every gap with its count, of all requests and of the completed ones, and the tokens of every interval."""
    whole = played(seed)
    sliced = in_batches(whole, directory, rows)
    completed = whole.requests["request_id"][whole.requests["state"] == State.COMPLETED]
    expected = [inter_token_gaps(whole), inter_token_gaps(whole, completed)]
    width = int(whole.requests["finish_ps"].max(initial=1)) // 7 + 1
    tokens = tokens_per_bin(whole, 0, width, 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_slices, "__defaults__", (rows, most_steps))
        patch.setattr(token_times, "_SLICE_STEPS", most_steps)
        for of_requests, gaps in zip((None, completed), expected, strict=True):
            found = inter_token_gaps(sliced, of_requests)
            assert (found.gap_ps.tolist(), found.count.tolist()) == (gaps.gap_ps.tolist(), gaps.count.tolist())
        assert tokens_per_bin(sliced, 0, width, 7).tolist() == tokens.tolist()
    assert tokens.sum() == whole.requests["output_tokens"].sum()


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), max_size=8), max_size=12), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_a_tally_counts_every_part(parts: list[list[tuple[int, int]]], patience: int) -> None:
    """Distinct values and their counts equal those of one long list, however often it merges what it holds."""
    tally, written_out = Tally(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_times, "_SLICE_STEPS", patience)
        for part in parts:
            values, counts = np.array(part, dtype=np.int64).reshape(-1, 2).T
            tally.add(values, counts)
            tally.add(values)
            written_out += np.repeat(values, counts + 1).tolist()
    values, counts = tally.sorted()
    assert np.repeat(values, counts).tolist() == sorted(written_out)
    assert len(set(values.tolist())) == len(values)


@given(SEEDS, ROWS)
@settings(max_examples=10, deadline=None)
def test_series_and_summary_do_not_depend_on_the_batches(directory: str, seed: int, rows: int) -> None:
    """All levels and rates over time, all statistics, the verdict: the same up to the rounding of sums."""
    whole = played(seed)
    # Steps that overlap: each state holds until the next one begins, also in the next batch.
    longer = {**whole.steps.columns, "first_step_ps": whole.steps["first_step_ps"] * 2}
    several_in_flight = RunResult(whole.requests, Table(longer), whole.segments, whole.manifest)
    _same_series(series_of(in_batches(several_in_flight, directory, rows)), series_of(several_in_flight))
    sliced = in_batches(whole, directory, rows)
    _same_series(series_of(sliced), series_of(whole))
    assert numbers(summarise(sliced)) == numbers(summarise(whole))
    assert steps_by_sequences(sliced.steps).tolist() == steps_by_sequences(whole.steps).tolist()


def _same_series(found: Series, expected: Series) -> None:
    for name in vars(expected):
        if name != "grid":
            level = getattr(expected, name)
            assert getattr(found, name) == pytest.approx(level, rel=1e-9, abs=1e-9 * (1 + abs(level).max())), name


@given(SEEDS, ROWS)
@SETTINGS
def test_the_audit_sees_across_batches(directory: str, seed: int, rows: int) -> None:
    """Honest books pass; a step that begins before the one before it ended does not, wherever the batches end."""
    run = played(seed)
    audit(in_batches(run, directory, rows), len(run.requests))
    first, *others = np.flatnonzero(run.steps["replica"] == run.steps["replica"][:1]) if len(run.steps) else [0]
    for row in others[:3]:
        columns = {name: column.copy() for name, column in run.steps.columns.items()}
        columns["start_ps"][row] = columns["start_ps"][first] - 1
        cooked = RunResult(run.requests, Table(columns), run.segments, run.manifest)
        with pytest.raises(InvariantError, match="two steps at once"):
            audit(in_batches(cooked, directory, rows), len(run.requests))


class Spy:
    """Stands in for a step timer: one operator per shape, so that the breakdown tells which rows were sampled."""

    spans: tuple[Any, ...] = ()

    def explain(self, shape: Any) -> list[Any]:
        """The shape itself is the operator's name."""

        class Part:
            name, seconds = f"{shape.decodes} {shape.context_tokens} {shape.chunks}", 1.0

            class cost:  # noqa: N801
                bound = "memory"

        return [Part()]


@given(SEEDS, ROWS)
@SETTINGS
def test_the_breakdown_samples_the_same_rows(directory: str, seed: int, rows: int) -> None:
    """The steps that are priced again are spread over the busy time, not over the batches."""
    steps = played(seed).steps
    timer: Any = Spy()
    assert breakdown(timer, filed(steps, Path(directory) / "steps.parquet", rows)) == breakdown(timer, steps)


def test_percentiles_by_arrival_are_those_of_each_interval() -> None:
    """Each interval's own requests, and NaN where none arrived."""
    requests = Table({"arrival_ps": np.array([7, 1, 0, 12, 2])})
    grid = Grid(0, 5, 4)
    values = np.array([10.0, 1.0, 2.0, 5.0, 4.0])
    found = percentile_by_arrival(requests, values, grid, 50)
    assert found.tolist() == pytest.approx([2.0, 10.0, 5.0, np.nan], nan_ok=True)


def test_a_run_does_not_import_what_it_does_not_need() -> None:
    """pandas and scipy.stats cost every run 40 MiB and half a second each; reading and writing tables needs neither."""
    code = """
import sys
from sim import load_scenario
from sim.metrics import summarise
from sim.results import RunResult
from sim.run import simulate
simulate(load_scenario("quickstart", {"workload.num_requests": 20})).save(sys.argv[1])
summarise(RunResult.load(sys.argv[1]))
print(*sorted({"pandas", "scipy.stats", "matplotlib"} & set(sys.modules)))
"""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-c", code, place]
        assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() == []
