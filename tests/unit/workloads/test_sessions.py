"""Conversations: what each turn asks, when it is sent, and what it shares with the turns before."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sim.build import build
from sim.errors import ConfigError
from sim.request import Request, State
from sim.run import run_setup
from sim.scenario import load_scenario
from sim.units import PS_PER_S
from sim.workloads.base import Workload
from sim.workloads.builder import build_workload
from sim.workloads.sessions import LognormalTime
from sim.workloads.spec import WorkloadSpec
from sim.workloads.trace_write import records_of_workload

BASE: dict[str, Any] = {
    "num_requests": 60,
    "arrival": {"kind": "poisson", "rate": 2},
    "input_tokens": {"kind": "uniform", "min": 5, "max": 60},
    "output_tokens": {"kind": "uniform", "min": 1, "max": 50},
    "sessions": {"turns": {"kind": "uniform", "min": 1, "max": 5}, "think_time_s": {"kind": "exponential", "mean": 4}},
}


def traffic(max_model_len: int | None = None, seed: int = 0, **keys: Any) -> Workload:
    """The workload of a spec."""
    return build_workload(WorkloadSpec(**{**BASE, **keys}), seed=seed, max_model_len=max_model_len)


def answer(request: Request) -> None:
    """The request is complete."""
    request.state, request.emitted_tokens = State.COMPLETED, request._output_tokens


def play(workload: Workload, service_ps: int = PS_PER_S) -> list[Request]:
    """Every request in order of sending, each answered after a fixed time."""
    todo, sent = [*workload], []
    while todo:
        request = min(todo, key=lambda r: (r.arrival_ps, r.id))
        todo.remove(request)
        sent.append(request)
        answer(request)
        todo += workload.on_finish(request, request.arrival_ps + service_ps)
    return sent


def by_session(sent: list[Request]) -> Iterator[list[Request]]:
    """The turns of each session."""
    for name in {r.traits.session: 0 for r in sent}:
        yield [r for r in sent if r.traits.session == name]


def test_each_prompt_is_all_that_was_said_and_what_the_user_adds() -> None:
    """Prompts grow by the answer and by 5 to 60 tokens; turns of a session are numbered, and so are their ids."""
    sent = play(traffic())
    assert len(sent) == traffic().num_requests == 60
    assert sorted(r.id for r in sent) == list(range(60))
    longest = 0
    for turns in by_session(sent):
        longest = max(longest, len(turns))
        assert [r.traits.turn for r in turns] == list(range(len(turns)))
        assert [r.id for r in turns] == list(range(turns[0].id, turns[0].id + len(turns)))
        for before, after in itertools.pairwise(turns):
            assert 5 <= after.prompt_tokens - before.prompt_tokens - before._output_tokens <= 60
            assert after.arrival_ps > before.arrival_ps + PS_PER_S
    assert longest == 5


def test_a_turn_begins_with_the_identity_of_the_turns_before() -> None:
    """Hashes of one session agree as far as the shorter goes, and cover the longest answer; others share nothing."""
    sent = play(traffic(max_output_tokens=80, shared_prefix={"tokens": 50, "groups": 2}))
    for turns in by_session(sent):
        for request in turns:
            hashes = request.traits.prefix_hashes
            assert request.traits.hashes_output
            assert len(hashes) == -(-(request.prompt_tokens + 80) // 16)
            assert hashes == turns[-1].traits.prefix_hashes[: len(hashes)]
    first = [next(iter(turns)).traits.prefix_hashes for turns in by_session(sent)]
    assert {hashes[:3] for hashes in first} == {(0, 1, 2), (3, 4, 5)}
    own = [h for turns in by_session(sent) for h in turns[-1].traits.prefix_hashes[3:]]
    assert len(own) == len(set(own))
    assert min(own) > 5


def test_lengths_do_not_depend_on_how_fast_answers_are() -> None:
    """A slow server delays turns; what they ask stays the same."""
    fast, slow = (play(traffic(), service) for service in (1, 1000 * PS_PER_S))
    assert [r.id for r in fast] != [r.id for r in slow]
    lengths = [{r.id: (r.prompt_tokens, r._output_tokens) for r in sent} for sent in (fast, slow)]
    assert lengths[0] == lengths[1]


def test_a_session_ends_before_the_turn_that_does_not_fit() -> None:
    """No later turn with its longest answer exceeds the context; a first one is the server's to refuse."""
    sent = play(traffic(max_model_len=100, num_requests=300))
    assert all(r.prompt_tokens + r.max_output_tokens <= 100 for r in sent if r.traits.turn)
    assert any(r.prompt_tokens + r.max_output_tokens > 100 for r in sent)
    assert len(sent) == 300


@pytest.mark.parametrize("state", [State.ABORTED, State.REJECTED])
def test_a_turn_that_fails_ends_its_session(state: State) -> None:
    """Nobody goes on talking to a server that has not answered."""
    workload = traffic(sessions={"turns": 3})
    first = next(iter(workload))
    first.state = state
    assert list(workload.on_finish(first, PS_PER_S)) == []


def test_nothing_is_sent_after_the_end() -> None:
    """`duration_s` holds for later turns too."""
    sent = play(traffic(num_requests=None, duration_s=20.0))
    assert max(r.arrival_ps for r in sent) < 20 * PS_PER_S
    assert max(r.traits.turn for r in sent) > 0


def test_clients_hold_one_session_after_the_other() -> None:
    """Closed loop: never more sessions at a time than clients, each a pause after the one before."""
    loop = {"kind": "closed_loop", "concurrency": 3, "think_time_s": 7.0}
    sent = play(traffic(arrival=loop))
    assert len(sent) == 60
    assert sum(r.arrival_ps == 0 for r in sent) == 3
    spans = [(turns[0].arrival_ps, turns[-1].arrival_ps + PS_PER_S) for turns in by_session(sent)]
    for start, _ in spans:
        assert sum(begin <= start < end for begin, end in spans) <= 3
        assert start == 0 or any(end + 7 * PS_PER_S == start for _, end in spans)


@pytest.mark.parametrize(("law", "std"), [({"kind": "exponential", "mean": 8}, 8), (LognormalTime(mean=8, std=5), 5)])
def test_pauses_follow_their_law(law: Any, std: float) -> None:
    """Mean and standard deviation of what is drawn are those of the keys."""
    drawn = WorkloadSpec(**{**BASE, "sessions": {"turns": 1, "think_time_s": law}}).sessions.think_time_s.draw(
        np.random.default_rng(0), 100_000
    )
    assert drawn.mean() == pytest.approx(8, rel=0.02)
    assert drawn.std() == pytest.approx(std, rel=0.05)


def test_a_constant_pause() -> None:
    """A number of seconds, and no pause by default."""
    for pause, keys in ((3, {"think_time_s": 3}), (0, {})):
        workload = traffic(sessions={"turns": 2, **keys})
        first = next(iter(workload))
        answer(first)
        (second,) = workload.on_finish(first, 10 * PS_PER_S)
        assert second.arrival_ps == (10 + pause) * PS_PER_S


def test_sessions_cannot_be_written_as_a_trace_and_need_an_end() -> None:
    """Errors for people."""
    with pytest.raises(ConfigError, match="sessions: have no arrival times"):
        records_of_workload(traffic())
    with pytest.raises(ValueError, match="num_requests"):
        traffic(num_requests=None)
    with pytest.raises(ValueError, match="sessions does not go with a trace"):
        WorkloadSpec(trace="x.csv", sessions={"turns": 1})


@pytest.mark.parametrize("match", ["hash_block", "radix"])
def test_a_later_turn_finds_all_that_was_said(match: str) -> None:
    """With memory to spare, all but the last token of the answer before is found, in whole blocks or by the token."""
    scenario = {
        "model": "meta-llama/Llama-3.1-8B",
        "hardware": "h100-sxm",
        "workload": {**BASE, "sessions": {"turns": 4, "think_time_s": 1}},
        "engine": {"kv_cache": {"prefix_cache": {"match": match}}},
    }
    setup = build(load_scenario(scenario, {}))
    table = run_setup(setup).requests
    rows = sorted(zip(*(table[c].tolist() for c in ("request_id", "prompt_tokens", "output_tokens", "cached_tokens")),
                      strict=True))  # fmt: skip
    size = setup.engine.kv_cache["block_size"]
    assert [row[3] for row in rows[::4]] == [0] * 15
    for (_, prompt, output, _), (turn, _, _, cached) in itertools.pairwise(rows):
        if turn % 4:
            assert cached == (prompt + output - 1) // size * size
