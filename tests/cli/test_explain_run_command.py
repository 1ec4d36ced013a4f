"""`roofserve explain SCENARIO`: a whole run, and its waterfall, as a user sees them."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import Command

SMALL = ["--requests", "20", "--jobs", "1", "--set", "slo={ttft_p99_ms: 100}"]

ALL_AT_ONCE = ["--requests", "10", "--jobs", "1", "--set", "workload.arrival={kind: all_at_once}"]


def test_a_run_is_explained_in_words_and_tables(roofserve: Command, scenario: Path) -> None:
    """Phases, operators, single requests, the bound and the next best change, on one screen."""
    answer = roofserve("explain", scenario, *SMALL)
    assert answer.code == 0, answer.err
    for words in ("prefill", "decode", "gate_up", "TTFT p99", "Bound by", "Next best change", "Not tried"):
        assert words in answer.out, words


def test_json_holds_every_part(roofserve: Command, scenario: Path) -> None:
    """What the screen shows is in the JSON, and the same command gives the same bytes."""
    first, second = (roofserve("explain", scenario, *ALL_AT_ONCE, "--format", "json") for _ in range(2))
    found = json.loads(first.out)
    assert first.out == second.out
    assert {"phases", "operators", "latency", "bound", "changes", "next_best_change", "roofs"} <= set(found)
    assert abs(sum(row["share"] for row in found["operators"]) - 1) < 1e-9


def test_nothing_need_be_tried(roofserve: Command, scenario: Path) -> None:
    """`--no-changes` takes the run apart and leaves it there."""
    found = json.loads(roofserve("explain", scenario, "--no-changes", "--format", "json").out)
    assert found["changes"] == [] and found["next_best_change"] is None and found["operators"]


def test_out_holds_page_figures_and_json(roofserve: Command, scenario: Path, tmp_path: Path) -> None:
    """One self-contained page with its figures inline, the figures as files, and the JSON."""
    answer = roofserve("explain", scenario, *ALL_AT_ONCE, "--out", "o")
    page = (tmp_path / "o" / "explain.html").read_text()
    assert answer.code == 0 and "http" not in page.replace("http://www.w3.org", "")
    for name in ("roofline", "latency_parts", "changes"):
        assert f'id="{name}"' in page and (tmp_path / "o" / "figures" / f"{name}.png").exists()
    assert json.loads((tmp_path / "o" / "explain.json").read_text())["bound"]["bound_by"]


def test_the_waterfall_is_shown_and_written(roofserve: Command, scenario: Path, tmp_path: Path) -> None:
    """Each technique on in turn and off alone, as tables, JSON and figure."""
    answer = roofserve("explain", scenario, "--waterfall", *ALL_AT_ONCE, "--format", "json", "--out", "w")
    found = json.loads(answer.out)
    assert found["steps"][0]["name"] == "naive" and len(found["without"]) == len(found["steps"]) - 1
    assert (tmp_path / "w" / "waterfall.html").exists() and (tmp_path / "w" / "figures" / "waterfall.svg").exists()


def test_a_file_in_the_way_is_said_in_a_line(roofserve: Command, scenario: Path, tmp_path: Path) -> None:
    """`--out` below a file is refused with exit code 2."""
    (tmp_path / "there").write_text("")
    answer = roofserve("explain", scenario, "--no-changes", "--out", "there/below")
    assert answer.code == 2 and answer.err.count("\n") == 1
