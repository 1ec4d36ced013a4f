"""What a run leaves behind, saved and read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scenarios import play, random_scenario
from sim.errors import ConfigError
from sim.results import REQUEST_COLUMNS, SEGMENT_COLUMNS, STEP_COLUMNS, RunResult, Table


@pytest.fixture
def result() -> RunResult:
    """A small run with a manifest."""
    run = play(random_scenario(3))
    return RunResult(run.requests, run.steps, run.segments, {"seed": 3, "facts": {"gpus": 1}})


def test_a_saved_run_reads_back_the_same(result: RunResult, tmp_path: Path) -> None:
    """Values, types and order of the columns, and the manifest."""
    result.save(tmp_path / "run")
    again = RunResult.load(tmp_path / "run")
    for name, columns in (("requests", REQUEST_COLUMNS), ("steps", STEP_COLUMNS), ("segments", SEGMENT_COLUMNS)):
        saved, read = getattr(result, name), getattr(again, name)
        assert list(read.columns) == list(columns)
        for column in columns:
            assert read[column].dtype == saved[column].dtype
            assert read[column].tolist() == saved[column].tolist()
    assert again.manifest == result.manifest
    assert again.facts == {"gpus": 1}


def test_equal_runs_are_equal_bytes(result: RunResult, tmp_path: Path) -> None:
    """Saving twice writes the same files: there is no clock time in them."""
    for name in ("a", "b"):
        result.save(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["manifest.json", "requests.parquet", "segments.parquet", "steps.parquet"]
    assert [(tmp_path / "a" / f).read_bytes() for f in files] == [(tmp_path / "b" / f).read_bytes() for f in files]


def test_long_tables_are_saved_whole(tmp_path: Path) -> None:
    """Tables of several row groups, and empty ones, survive."""
    long = Table({name: np.arange(300_000).astype(code) for name, code in SEGMENT_COLUMNS.items()})
    empty = Table({name: np.empty(0, dtype=code) for name, code in STEP_COLUMNS.items()})
    RunResult(long, empty, long).save(tmp_path)
    again = RunResult.load(tmp_path)
    assert again.requests["start_ps"].tolist() == list(range(300_000))
    assert len(again.steps) == 0
    assert again.facts == {}


@pytest.mark.parametrize("missing", ["manifest.json", "requests.parquet", "steps.parquet", "segments.parquet"])
def test_a_missing_file_is_named(result: RunResult, tmp_path: Path, missing: str) -> None:
    """A directory without one of the files is not a saved run."""
    result.save(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ConfigError, match=f"is not a saved run \\({missing} is missing\\)"):
        RunResult.load(tmp_path)


@pytest.mark.parametrize("broken", ["manifest.json", "steps.parquet"])
def test_a_broken_file_is_reported(result: RunResult, tmp_path: Path, broken: str) -> None:
    """Garbage in a file is the user's error, in one line."""
    result.save(tmp_path)
    (tmp_path / broken).write_text("{ not this")
    with pytest.raises(ConfigError, match="is not a readable saved run") as caught:
        RunResult.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_manifest_is_readable_json(result: RunResult, tmp_path: Path) -> None:
    """Sorted keys, indented: people look into it."""
    result.save(tmp_path)
    text = (tmp_path / "manifest.json").read_text()
    assert json.loads(text) == result.manifest
    assert text.index('"facts"') < text.index('"seed"')
    assert text.endswith("}\n")


def test_rows_of_a_table_can_be_picked() -> None:
    """By a mask or by their numbers, all columns alike."""
    table = Table({"a": np.arange(5), "b": np.arange(5) * 10})
    picked = table.where(table["a"] >= 3)
    assert (len(picked), picked["b"].tolist()) == (2, [30, 40])
    assert table.where(np.array([4, 0]))["b"].tolist() == [40, 0]


def test_column_types_match_their_comments() -> None:
    """Times and counts that may exceed 2**31 have 64 bits: 24 days in picoseconds do."""
    for columns in (REQUEST_COLUMNS, STEP_COLUMNS, SEGMENT_COLUMNS):
        assert all(code == "q" for name, code in columns.items() if name.endswith(("_ps", "request_id")))
        assert set(columns.values()) <= {"b", "h", "i", "q"}
