"""The trace for Perfetto: valid, complete within its limits, and in microseconds."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from sim.report.timeline import timeline_bytes
from sim.results import RunResult

Runs = Callable[..., RunResult]


def events_of(run: RunResult, most: int = 200_000) -> list[dict[str, Any]]:
    """The trace's events, read back as a viewer would."""
    events: list[dict[str, Any]] = json.loads(gzip.decompress(timeline_bytes(run, most)))["traceEvents"]
    return events


def test_steps_of_a_track_do_not_overlap(toy_run: Runs) -> None:
    """Viewers draw slices of one track only when they nest or are disjoint."""
    tracks = defaultdict(list)
    for event in events_of(toy_run(n=60, replicas=2)):
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert set(tracks) == {(0, 0), (1, 0)}
    for slices in tracks.values():
        slices.sort()
        assert all(end <= begin + 1e-5 for (_, end), (begin, _) in pairwise(slices))


def test_steps_in_flight_together_get_tracks_of_their_own(toy_run: Runs) -> None:
    """With pipeline stages two steps run at once; each is on its own track."""
    run = toy_run(n=20)
    run.steps["start_ps"][1::2] = run.steps["start_ps"][::2][: len(run.steps["start_ps"][1::2])] + 1000
    assert {event["tid"] for event in events_of(run) if event["ph"] == "X"} >= {0, 1}


def test_request_slices_open_and_close_in_order(toy_run: Runs) -> None:
    """Every begin has its end, phases lie inside their request, and preemptions show."""
    depth: dict[int, list[str]] = defaultdict(list)
    names = set()
    for event in events_of(toy_run(n=60, blocks=200)):
        if event["ph"] == "b":
            depth[event["id"]].append(event["name"])
            names.add(event["name"])
        elif event["ph"] == "e":
            assert depth[event["id"]].pop() == event["name"]
    assert not any(depth.values()) and len(depth) == 60
    assert names == {"request", "queued", "prefill", "decode", "preempted"}


def test_times_are_microseconds_since_the_first_arrival(toy_run: Runs) -> None:
    """The first request begins at zero, and the last one ends with the run."""
    run = toy_run(n=30)
    span = int(run.requests["finish_ps"].max() - run.requests["arrival_ps"].min()) / 1e6
    requests = [event for event in events_of(run) if event["name"] == "request"]
    assert min(event["ts"] for event in requests) == 0
    assert max(event["ts"] for event in requests) == pytest.approx(span)


@pytest.mark.parametrize("most", [40, 400, 4000])
def test_long_runs_stay_within_the_cap_and_cover_all_time(toy_run: Runs, most: int) -> None:
    """Events get coarser, not cut off at the end."""
    run = toy_run(n=200)
    events = events_of(run, most)
    assert len(events) <= most + 20
    busy = sum(event["args"]["steps"] for event in events if event["ph"] == "X")
    assert busy == int(run.steps["steps"].sum())


def test_failures_are_marked_with_their_reason(toy_run: Runs) -> None:
    """A client that gave up leaves an instant."""
    marks = [event["name"] for event in events_of(toy_run(n=100, rate=60.0, patience_s=0.2)) if event["ph"] == "i"]
    assert marks and set(marks) == {"aborted: client_timeout"}


def test_an_empty_run_is_a_valid_trace(toy_run: Runs) -> None:
    """Only the names of the tracks."""
    assert {event["ph"] for event in events_of(toy_run(n=0))} == {"M"}
