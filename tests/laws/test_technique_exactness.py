"""Techniques of attention and decoding under the engine's rule: runs of steps give what single steps give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim.acceptance import Acceptance
from sim.build import build
from sim.cost.shape import RunShape
from sim.metrics import summarise
from sim.request import Request
from sim.results import RunResult
from sim.run import simulate
from sim.scenario import load_scenario
from sim.token_times import inter_token_gaps, token_times, tokens_per_bin

CHAT: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B",
    "hardware": "h100-sxm",
    "workload": {
        "num_requests": 60,
        "arrival": {"kind": "poisson", "rate": 400},
        "input_tokens": {"kind": "uniform", "min": 20, "max": 600},
        "output_tokens": {"kind": "uniform", "min": 1, "max": 250},
        "shared_prefix": {"tokens": 700, "groups": 2},
    },
    "engine": {"num_gpu_blocks_override": 500},
    "seed": 3,
}
TECHNIQUES: dict[str, dict[str, Any]] = {
    "relay": {"shared_prefix_attention": "relay"},
    "hydragen": {"shared_prefix_attention": "hydragen"},
    "hydragen, eager": {"shared_prefix_attention": "hydragen", "kernels": {"cuda_graphs": False}},
    "naive kernels": {"kernels": {"attention": "standard", "fusion": False}, "max_model_len": 4096,
                      "max_num_batched_tokens": 2048},
}  # fmt: skip


def run(engine: dict[str, Any], workload: dict[str, Any], *, step_by_step: bool) -> RunResult:
    """The chat traffic with some keys changed; the audit is part of every run."""
    scenario = CHAT | {"engine": CHAT["engine"] | engine, "workload": CHAT["workload"] | workload}
    return simulate(load_scenario(scenario), step_by_step=step_by_step)


def assert_equal(engine: dict[str, Any], workload: dict[str, Any]) -> RunResult:
    """Requests and segments are the same either way."""
    leaping, stepping = (run(engine, workload, step_by_step=s) for s in (False, True))
    for name in ("requests", "segments"):
        a, b = getattr(leaping, name), getattr(stepping, name)
        for column in a.columns:
            assert np.array_equal(a[column], b[column]), column
    return leaping


@pytest.mark.parametrize("name", sorted(TECHNIQUES))
def test_leaping_is_single_stepping(name: str) -> None:
    """Also under preemptions, with two applications whose members come and go."""
    result = assert_equal(TECHNIQUES[name], {})
    assert int(result.requests["preemptions"].sum()) > 0


def test_samples_share_their_prompt() -> None:
    """Parallel samples are a group of their own; the run ends sooner than without."""
    shared = assert_equal(TECHNIQUES["hydragen"], {"n": 4, "shared_prefix": {"tokens": 2000}})
    plain = run({}, {"n": 4, "shared_prefix": {"tokens": 2000}}, step_by_step=False)
    assert int(shared.requests["finish_ps"].max()) < int(plain.requests["finish_ps"].max())


GUESSES: dict[str, dict[str, Any]] = {
    "ngram": {"method": "ngram", "num_speculative_tokens": 4, "acceptance": 0.7},
    "draft": {"method": "draft", "draft_model": "meta-llama/Llama-3.2-1B", "num_speculative_tokens": 2,
              "acceptance": 0.6, "acceptance_std": 0.1},
    "tree": {"method": "medusa", "num_speculative_tokens": 3, "acceptance": [0.8, 0.6, 0.5], "tree": [4, 6, 5]},
}  # fmt: skip


@pytest.mark.parametrize("scheduler", ["chunked", "continuous"])
@pytest.mark.parametrize("guesses", sorted(GUESSES))
def test_guessing_keeps_the_books(guesses: str, scheduler: str) -> None:
    """With preemptions and a prefix cache: the same either way, every answer whole, bursts in the gaps."""
    engine = {"speculative": GUESSES[guesses], "scheduler": scheduler, "max_num_seqs": 64}
    result = assert_equal(engine, {})
    requests, segments = result.requests, result.segments
    assert int(requests["preemptions"].sum()) > 0
    plain = run({}, {}, step_by_step=False).requests
    wanted = dict(zip(plain["request_id"].tolist(), plain["output_tokens"].tolist(), strict=True))
    assert dict(zip(requests["request_id"].tolist(), requests["output_tokens"].tolist(), strict=True)) == wanted
    together = int((segments["tokens"] - (segments["last_step"] - segments["first_step"] + 1)).sum())
    gaps = inter_token_gaps(result)
    assert int(gaps.count[gaps.gap_ps == 0].sum()) == together > 0
    found = summarise(result)
    assert found["spec_decode_accepted_tokens"] == together
    assert 1 < found["spec_decode_acceptance_length"] <= 1 + GUESSES[guesses]["num_speculative_tokens"]
    assert found["total_output_tokens"] == together + found["spec_decode_num_drafts"] + len(segments)
    times = token_times(result)
    assert {i: len(t) for i, t in times.items()} == wanted
    end = int(requests["finish_ps"].max()) + 1
    assert int(tokens_per_bin(result, 0, end, 1).sum()) == sum(wanted.values())


def test_a_batch_is_the_sum_of_its_members() -> None:
    """Twenty requests in one prompt step, then by hand: every member goes its own drawn way, one timer for all."""
    guesses = {**GUESSES["draft"], "acceptance_std": 0.0}
    workload = {"num_requests": 20, "arrival": {"kind": "all_at_once"}, "shared_prefix": None,
                "input_tokens": {"kind": "uniform", "min": 10, "max": 300}}  # fmt: skip
    host = {"request_s": 0.0, "prompt_token_s": 0.0}  # so that all are there when the first step is planned
    engine = {"speculative": guesses, "num_gpu_blocks_override": 5000, "host": host}
    loaded = load_scenario(CHAT | {"engine": engine, "workload": CHAT["workload"] | workload})
    requests, timer = simulate(loaded).requests, build(loaded).timer
    now = int(requests["first_token_ps"].max())
    assert now == int(requests["first_token_ps"].min())
    acceptance, members, ends = Acceptance(CHAT["seed"], (0.6, 0.6)), {}, {}
    for i, prompt, output in zip(*(requests[n].tolist() for n in ("request_id", "prompt_tokens", "output_tokens")),
                                 strict=True):  # fmt: skip
        member = Request(i, 0, prompt, output)
        member.emitted_tokens = 1
        members[i] = prompt, acceptance.progress(member)
    done = 0
    while members:
        for i in [i for i, (_, progress) in members.items() if done == len(progress) - 1]:
            ends[i] = now
            del members[i]
        if members:
            context = sum(prompt + progress[done] for prompt, progress in members.values())
            now += timer.run(RunShape(len(members), context), 1).total_ps
            done += 1
    assert ends == dict(zip(requests["request_id"].tolist(), requests["finish_ps"].tolist(), strict=True))


def test_samples_guess_for_themselves() -> None:
    """Forked sequences share their prompt and draw their own guesses; Hydragen goes with it."""
    engine = {"speculative": GUESSES["ngram"], "shared_prefix_attention": "hydragen", "max_num_seqs": 64}
    result = assert_equal(engine, {"n": 3})
    assert bool((result.requests["sibling_tokens"] > 0).any())


def test_a_lone_answer_takes_the_steps_that_were_drawn() -> None:
    """One request: its time is that of its prompt and of one verification per step, at the contexts it reaches."""
    guesses = GUESSES["ngram"]
    workload = {"num_requests": 1, "input_tokens": 500, "output_tokens": 400, "shared_prefix": None}
    scenario = CHAT | {"engine": {"speculative": guesses}, "workload": CHAT["workload"] | workload}
    loaded = load_scenario(scenario)
    result, timer = simulate(loaded), build(loaded).timer
    request = Request(0, 0, 500, 400)
    request.emitted_tokens = 1
    progress = Acceptance(CHAT["seed"], (0.7,) * 4).progress(request)
    took = [timer.run(RunShape(1, 500 + tokens), 1).total_ps for tokens in progress[:-1]]
    first, finish = (int(result.requests[name][0]) for name in ("first_token_ps", "finish_ps"))
    assert finish - first == sum(took)
