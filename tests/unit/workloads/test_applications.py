"""Applications: RAG, GraphRAG and agents as chains of requests that follow from each other."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from test_sessions import answer, by_session, play

from sim.errors import ConfigError
from sim.metrics import summarise
from sim.request import Request, State
from sim.run import simulate
from sim.scenario import load_scenario
from sim.units import PS_PER_S
from sim.workloads.base import Workload
from sim.workloads.builder import build_workload
from sim.workloads.rag import _drawn
from sim.workloads.spec import WorkloadSpec
from sim.workloads.trace_write import records_of_workload

BASE: dict[str, Any] = {
    "num_requests": 60,
    "arrival": {"kind": "poisson", "rate": 2},
    "input_tokens": {"kind": "uniform", "min": 5, "max": 60},
    "output_tokens": {"kind": "uniform", "min": 1, "max": 50},
    "shared_prefix": {"tokens": 40},
}
RAG = {"kind": "rag", "documents": 50, "document_tokens": 100, "passages": 3, "retrieval_time_s": 0.5}
GRAPH = {"kind": "graph_rag", "communities": 4, "community_tokens": 200, "map_output_tokens": 30}
AGENT = {
    "kind": "agent", "steps": {"kind": "uniform", "min": 1, "max": 5}, "most_steps": 8, "action_tokens": 20,
    "observation_tokens": {"kind": "uniform", "min": 10, "max": 90}, "tool_time_s": 2.0,
}  # fmt: skip
KINDS = {"rag": RAG, "rewritten": {**RAG, "rewrite_output_tokens": 7}, "graph_rag": GRAPH, "agent": AGENT}
SYSTEM = 48  # 40 tokens in whole blocks


def traffic(application: dict[str, Any], seed: int = 0, max_model_len: int | None = None, **keys: Any) -> Workload:
    """The workload of a spec."""
    spec = WorkloadSpec(**{**BASE, **keys, "application": application})
    return build_workload(spec, seed=seed, max_model_len=max_model_len)


def lengths(sent: list[Request]) -> dict[int, tuple[int, int, tuple[int, ...]]]:
    return {r.id: (r.prompt_tokens, r._output_tokens, r.traits.prefix_hashes) for r in sent}


def test_a_rag_prompt_is_system_passages_and_question() -> None:
    """System prompt and passages in whole blocks, the question behind them; it is sent when the search is over."""
    sent = play(traffic(RAG))
    assert len(sent) == 60
    for request in sent:
        assert 5 <= request.prompt_tokens - SYSTEM - 3 * 112 <= 60
        assert request.traits.prefix_hashes[:3] == (0, 1, 2) and len(request.traits.prefix_hashes) == 3 + 3 * 7
        assert request.arrival_ps >= PS_PER_S // 2
    assert sent[0].id == 0 and [r.id for r in sent] == sorted(r.id for r in sent)


def test_passages_have_one_identity_wherever_they_are_found() -> None:
    """Every passage is seven consecutive hashes of its own; popular ones recur, and none is in a prompt twice."""
    found: Counter[int] = Counter()
    for request in play(traffic(RAG, num_requests=300)):
        hashes = request.traits.prefix_hashes[3:]
        starts = hashes[::7]
        assert len(set(starts)) == 3
        assert hashes == tuple(h for start in starts for h in range(start, start + 7))
        assert all((start - 3) % 7 == 0 and 0 <= (start - 3) // 7 < 50 for start in starts)
        found.update((start - 3) // 7 for start in starts)
    assert found[0] > 3 * found[20]


def test_popular_passages_may_stand_first() -> None:
    """`order: popularity` sorts by rank, so that more prompts begin alike; the passages are the same."""
    plain, sorted_ = (play(traffic({**RAG, "order": order})) for order in ("relevance", "popularity"))
    for one, other in zip(plain, sorted_, strict=True):
        assert sorted(one.traits.prefix_hashes) == list(other.traits.prefix_hashes)


def test_documents_are_drawn_by_zipf_s_law_without_repetition() -> None:
    """The first of ten documents is drawn first with the probability 1 / H(10); all ten are drawn if all are wanted."""
    rng = np.random.default_rng(0)
    first = [_drawn(1, 10, 1.0, rng)[0] for _ in range(4000)]
    assert np.mean(np.array(first) == 0) == pytest.approx(1 / sum(1 / k for k in range(1, 11)), rel=0.06)
    assert sorted(_drawn(10, 10, 2.0, rng)) == list(range(10))


def test_a_question_may_be_rewritten_before_the_search() -> None:
    """Two requests per question: a short one at once, and the answer half a second after it has ended."""
    for first, second in by_session(play(traffic(KINDS["rewritten"]))):
        assert first._output_tokens == 7 and first.prompt_tokens < SYSTEM + 61
        assert second.arrival_ps == first.arrival_ps + PS_PER_S + PS_PER_S // 2
        assert second.prompt_tokens == first.prompt_tokens + 3 * 112


def test_graph_rag_maps_at_once_and_reduces_when_all_have_ended() -> None:
    """Four maps share their moment; the reduce begins with the last answer and holds all of them."""
    for requests in by_session(play(traffic(GRAPH))):
        *maps, reduce = requests
        question = maps[0].prompt_tokens - SYSTEM - 208
        assert len(maps) == 4 and len({r.arrival_ps for r in maps}) == 1
        assert reduce.arrival_ps == maps[0].arrival_ps + PS_PER_S
        assert reduce.prompt_tokens == SYSTEM + 4 * 30 + question
        assert [r.traits.prefix_hashes[3] for r in maps] == [3, 16, 29, 42]  # 13 blocks each, the same in every query


def test_a_map_that_fails_is_left_out() -> None:
    """The reduce works on what there is; without any answer the question has failed."""
    workload = traffic(GRAPH, num_requests=10)
    requests = iter(workload)
    for group, failures in (([next(requests) for _ in range(4)], 1), ([next(requests) for _ in range(4)], 4)):
        for request in group[:failures]:
            request.state = State.REJECTED
            assert list(workload.on_finish(request, PS_PER_S)) == []
        follow: list[Request] = []
        for request in group[failures:]:
            answer(request)
            follow += workload.on_finish(request, PS_PER_S)
        assert len(follow) == (failures == 1)
        if follow:
            assert follow[0].prompt_tokens == group[0].prompt_tokens - 208 + 3 * 30
    assert workload.describe()["queries"]["failed"] == 1


def test_an_agent_s_context_grows_by_action_and_observation() -> None:
    """Each prompt is the one before it, 20 tokens of action, and 10 to 90 that the tool returned two seconds later."""
    longest = 0
    for steps in by_session(play(traffic(AGENT, num_requests=200))):
        longest = max(longest, len(steps))
        for before, after in itertools.pairwise(steps):
            assert before._output_tokens == 20
            assert 10 <= after.prompt_tokens - before.prompt_tokens - 20 <= 90
            assert after.arrival_ps == before.arrival_ps + 3 * PS_PER_S
            shared = (before.prompt_tokens + 20) // 16
            assert after.traits.prefix_hashes[:shared] == before.traits.prefix_hashes[:shared]
    assert longest == 5


def test_tools_called_together_cost_the_slowest() -> None:
    """Three tools at once bring three observations, after the longest of their times."""
    one, three = (
        play(traffic({**AGENT, "steps": 2, "observation_tokens": 50, "parallel_tools": n})) for n in (1, 3)
    )  # fmt: skip
    (a, b), (c, d) = next(iter(by_session(one))), next(iter(by_session(three)))
    assert b.prompt_tokens - a.prompt_tokens == 70 and d.prompt_tokens - c.prompt_tokens == 170
    assert d.arrival_ps - c.arrival_ps == b.arrival_ps - a.arrival_ps


def test_a_task_that_outgrows_the_context_fails() -> None:
    """No later prompt exceeds the context; such tasks are counted as failed."""
    workload = traffic({**AGENT, "steps": 8, "observation_tokens": 100}, max_model_len=500)
    sent = play(workload)
    assert all(r.prompt_tokens + r.max_output_tokens <= 500 for r in sent)
    assert workload.describe()["queries"]["failed"] == workload.describe()["queries"]["begun"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_asked_does_not_depend_on_how_fast_answers_are(kind: str) -> None:
    """A slow server delays requests; their lengths and identities stay the same, and the seed decides them."""
    fast, slow = (lengths(play(traffic(KINDS[kind]), service)) for service in (1, 50 * PS_PER_S))
    assert fast == slow
    assert fast != lengths(play(traffic(KINDS[kind], seed=1)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_workload_can_be_played_again(kind: str) -> None:
    """Iterating anew starts from the beginning."""
    workload = traffic(KINDS[kind])
    assert lengths(play(workload)) == lengths(play(workload))


@pytest.mark.parametrize("kind", KINDS)
def test_clients_ask_one_question_at_a_time(kind: str) -> None:
    """Closed loop: never more questions open than clients, the next one a pause after the answer."""
    loop = {"kind": "closed_loop", "concurrency": 3, "think_time_s": 7.0}
    sent = play(traffic(KINDS[kind], arrival=loop))
    spans = [(r[0].arrival_ps, max(x.arrival_ps for x in r) + PS_PER_S) for r in by_session(sent)]
    assert len(sent) > 50
    for start, _ in spans:
        assert sum(begin <= start < end for begin, end in spans) <= 3


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_sent_after_the_end(kind: str) -> None:
    """`duration_s` holds for what follows too."""
    sent = play(traffic(KINDS[kind], num_requests=None, duration_s=20.0))
    assert 0 < max(r.arrival_ps for r in sent) < 20 * PS_PER_S


@pytest.mark.parametrize("kind", KINDS)
def test_every_request_and_question_is_accounted_for(kind: str) -> None:
    """A run with refusals and impatient clients: every request has one row, every question one outcome."""
    workload = {**BASE, "application": KINDS[kind], "client_timeout_s": 0.6, "arrival": {"kind": "poisson", "rate": 40}}
    scenario = {
        "model": "meta-llama/Llama-3.1-8B", "hardware": "l4", "workload": workload,
        "engine": {"max_model_len": 2048, "max_num_seqs": 8},
    }  # fmt: skip
    summaries = [summarise(simulate(load_scenario(scenario))) for _ in range(2)]
    summary = summaries[0]
    queries = summary["queries"]
    assert summaries[0] == summaries[1]
    assert queries["answered"] + queries["failed"] == queries["begun"]
    assert summary["completed"] + summary["failed"] == summary["num_prompts"] and summary["failed"] > 0
    assert queries["failed"] > 0


def test_latency_of_a_question_holds_search_and_tools() -> None:
    """Two steps of a second each with a tool of two seconds between them: four seconds."""
    workload = traffic({**AGENT, "steps": 2})
    play(workload)
    assert workload.describe()["queries"]["p50_latency_s"] == pytest.approx(4.0)


def test_applications_need_an_end_and_are_no_trace() -> None:
    """Errors for people."""
    with pytest.raises(ConfigError, match="application: has no arrival times"):
        records_of_workload(traffic(RAG))
    with pytest.raises(ValueError, match="num_requests"):
        traffic(RAG, num_requests=None)
    with pytest.raises(ValueError, match="does not go with sessions"):
        traffic(RAG, sessions={"turns": 2})
