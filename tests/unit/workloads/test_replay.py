"""Traces as traffic: windows, scales, contexts that are too long, sessions, other arrival processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sim.errors import ConfigError
from sim.units import PS_PER_S
from sim.workloads.base import Workload
from sim.workloads.builder import build_workload, load_workload
from sim.workloads.spec import WorkloadSpec

ROWS = "arrival_s,input_tokens,output_tokens\n" + "".join(f"{i},{100 * (i + 1)},{10 * (i + 1)}\n" for i in range(10))
SESSIONS = (
    '{"session_id": "a", "timestamp": 1000, "input_length": 100, "output_length": 5}\n'
    '{"session_id": "b", "timestamp": 1500, "input_length": 200, "output_length": 6}\n'
    '{"session_id": "a", "delay": 500, "input_length": 300, "output_length": 7}\n'
    '{"session_id": "a", "delay": 0, "input_length": 400, "output_length": 8}\n'
)
AGENT = (
    '{"session_id": "t", "arrival_time_ns": 1000, "sub_requests": [{"input_toks": 9, "output_toks": 2, '
    '"tool_duration_ns": 3000}, {"input_toks": 20, "output_toks": 4, "tool_duration_ns": 0}]}\n'
    '{"input_toks": 7, "output_toks": 1, "arrival_time_ns": 2000}\n'
)


def replay(folder: Path, text: str = ROWS, max_model_len: int | None = None, **keys: Any) -> Workload:
    """The traffic of a trace with some keys of the spec."""
    path = folder / "trace.txt"
    path.write_text(text)
    return build_workload(WorkloadSpec(trace=str(path), **keys), max_model_len=max_model_len)


def rows(workload: Workload) -> list[tuple[float, int, int]]:
    """(arrival in seconds, prompt, answer) of every first request."""
    return [(r.arrival_ps / PS_PER_S, r.prompt_tokens, r._output_tokens) for r in workload]


def test_a_trace_is_replayed_at_its_own_times(tmp_path: Path) -> None:
    """Without further keys a replay is the trace, row by row."""
    traffic = replay(tmp_path)
    assert rows(traffic) == [(float(i), 100 * (i + 1), 10 * (i + 1)) for i in range(10)]
    assert traffic.num_requests == 10
    assert traffic.notes == ()
    assert len(traffic.describe()["sha256"]) == 64


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"max_requests": 2}, [(0, 100, 10), (1, 200, 20)]),
        ({"start_s": 3.0, "end_s": 5.0}, [(0, 400, 40), (1, 500, 50)]),
        ({"start_s": 8.5}, [(0.5, 1000, 100)]),
        ({"time_scale": 0.5, "max_requests": 2}, [(0, 100, 10), (0.5, 200, 20)]),
        ({"start_s": 3.0, "time_scale": 2.0, "max_requests": 2}, [(0, 400, 40), (2, 500, 50)]),
        ({"scale_input": 1.5, "scale_output": 0.01, "max_requests": 2}, [(0, 150, 1), (1, 300, 1)]),
        ({"max_output_tokens": 15, "max_requests": 2}, [(0, 100, 10), (1, 200, 15)]),
    ],
)
def test_keys_cut_and_scale_a_trace(
    keys: dict[str, Any], expected: list[tuple[float, int, int]], tmp_path: Path
) -> None:
    """Windows count from the first request and begin at time 0; scales apply to what is inside."""
    assert rows(replay(tmp_path, **keys)) == expected


def test_an_empty_window_is_refused(tmp_path: Path) -> None:
    """A window after the end of the trace is a mistake, and the span is told."""
    with pytest.raises(ConfigError, match="it spans 9 s"):
        replay(tmp_path, start_s=100.0)


def test_rows_too_long_are_refused_by_default(tmp_path: Path) -> None:
    """By default they are sent, for the engine to refuse; how many is said beforehand."""
    traffic = replay(tmp_path, max_model_len=980)
    assert len(rows(traffic)) == 10
    assert traffic.notes == ("2 rows longer than max_model_len (980), will be refused (of 10 in the file)",)


def test_rows_too_long_can_be_dropped(tmp_path: Path) -> None:
    """on_too_long: drop leaves them out, counts them, and fills max_requests with others."""
    traffic = replay(tmp_path, max_model_len=980, on_too_long="drop")
    assert len(rows(traffic)) == 8
    assert traffic.num_requests == 8
    assert "2 rows dropped" in traffic.notes[0]
    assert len(rows(replay(tmp_path, max_model_len=980, on_too_long="drop", max_requests=8))) == 8


def test_rows_too_long_can_be_clipped(tmp_path: Path) -> None:
    """on_too_long: clip keeps the prompt where it fits and cuts the answer to the room left."""
    traffic = replay(tmp_path, max_model_len=950, on_too_long="clip")
    assert [row[1:] for row in rows(traffic)][7:] == [(800, 80), (900, 50), (949, 1)]
    assert "2 rows clipped" in traffic.notes[0]


def test_rows_too_long_can_stop_the_run(tmp_path: Path) -> None:
    """on_too_long: fail refuses the trace and says how many rows and how long."""
    with pytest.raises(ConfigError, match=r"2 of 10 rows exceed max_model_len \(980\); the longest has 1100 tokens"):
        replay(tmp_path, max_model_len=980, on_too_long="fail")
    assert rows(replay(tmp_path, max_model_len=980, on_too_long="fail", max_requests=5))


def test_later_turns_wait_for_the_answer(tmp_path: Path) -> None:
    """A line with a delay is sent so long after the previous line of its session ended, and not before."""
    traffic = replay(tmp_path, SESSIONS)
    first, other = list(traffic)
    assert (first.id, first.traits.session, first.arrival_ps) == (0, "a", 0)
    assert (other.id, other.traits.session, other.arrival_ps) == (1, "b", PS_PER_S // 2)
    assert traffic.num_requests == 4
    (second,) = traffic.on_finish(first, 10 * PS_PER_S)
    assert (second.id, second.prompt_tokens, second.arrival_ps) == (2, 300, 10.5 * PS_PER_S)
    (third,) = traffic.on_finish(second, 11 * PS_PER_S)
    assert (third.id, third.prompt_tokens, third.arrival_ps) == (3, 400, 11 * PS_PER_S)
    assert not list(traffic.on_finish(third, 12 * PS_PER_S))
    assert not list(traffic.on_finish(other, 12 * PS_PER_S))


def test_agents_wait_for_their_tools(tmp_path: Path) -> None:
    """LLMServingSim sub-requests follow each other after the tool's duration; flat rows may stand beside them."""
    traffic = replay(tmp_path, AGENT)
    agent, flat = list(traffic)
    assert (agent.prompt_tokens, flat.prompt_tokens, flat.arrival_ps) == (9, 7, 10**6)
    (step,) = traffic.on_finish(agent, 10**9)
    assert (step.prompt_tokens, step.arrival_ps) == (20, 10**9 + 3 * 10**6)
    assert not list(traffic.on_finish(flat, 10**9))


def test_another_arrival_process_drives_the_lengths(tmp_path: Path) -> None:
    """`arrival` beside a trace replaces its times and keeps its rows."""
    traffic = replay(tmp_path, arrival={"kind": "constant", "rate": 4})
    assert rows(traffic) == [(i / 4, 100 * (i + 1), 10 * (i + 1)) for i in range(10)]
    loop = replay(tmp_path, arrival={"kind": "closed_loop", "concurrency": 9})
    sent = list(loop)
    assert len(sent) == 9
    (last,) = loop.on_finish(sent[0], PS_PER_S)
    assert (last.id, last.prompt_tokens) == (9, 1000)
    assert not list(loop.on_finish(last, PS_PER_S))


def test_clipped_prompts_have_no_hashes_beyond_their_end(tmp_path: Path) -> None:
    """A prompt that was shortened keeps the identity of the blocks it still has."""
    line = '{"timestamp": 0, "input_length": 1500, "output_length": 5, "hash_ids": [4, 5, 6]}'
    (request,) = replay(tmp_path, line, max_model_len=600, on_too_long="clip")
    assert request.traits.prefix_hashes == (4, 5)
    assert request.traits.prefix_block_tokens == 512


def test_paths_are_found_beside_the_file_that_names_them(tmp_path: Path) -> None:
    """A relative trace path is looked for from the current directory, then beside the YAML."""
    (tmp_path / "t.csv").write_text(ROWS)
    (tmp_path / "w.yaml").write_text("trace: t.csv\nmax_requests: 3\n")
    spec, path = load_workload(str(tmp_path / "w.yaml"))
    assert len(list(build_workload(spec, beside=path))) == 3
    with pytest.raises(ConfigError, match=r"trace: 't.csv': no such file"):
        build_workload(spec)


def test_a_trace_file_is_a_workload(tmp_path: Path) -> None:
    """Where a workload is asked for, the path of a trace will do."""
    (tmp_path / "t.csv").write_text(ROWS)
    spec, path = load_workload(str(tmp_path / "t.csv"))
    assert len(list(build_workload(spec, beside=path))) == 10
