"""The API server between clients and schedulers."""

from __future__ import annotations

import signal

import pytest

from sim.engine.front_end import FrontEnd
from sim.metrics import summarise
from sim.request import Request, State
from sim.run import simulate
from sim.scenario import load_scenario


def requests(*prompts: int) -> list[Request]:
    """Requests with prompts of these lengths."""
    return [Request(i, 0, prompt, 1) for i, prompt in enumerate(prompts)]


def test_the_way_delays_each_request_alone() -> None:
    """The way there and back is the same for a request alone and for one of many."""
    front = FrontEnd(request_ps=500, prompt_token_ps=0)
    assert [front.delay_ps(request, 0) for request in requests(10, 20, 30)] == [500, 500, 500]


def test_tokenising_is_one_after_the_other() -> None:
    """Requests that come together wait for the prompts before theirs; a late one finds the tokeniser idle."""
    front = FrontEnd(request_ps=7, prompt_token_ps=2)
    first, second, third = requests(10, 20, 30)
    assert front.delay_ps(first, 0) == 20 + 7
    assert front.delay_ps(second, 5) == 20 + 40 - 5 + 7
    assert front.delay_ps(third, 1000) == 60 + 7


def test_clients_wait_longer_for_first_tokens_only() -> None:
    """A front end of 20 ms adds 20 ms to TTFT; time per output token stays where it was but for other batches."""
    found = []
    for request_s in (0.0, 0.02):
        scenario = {
            "model": "meta-llama/Llama-3.1-8B", "hardware": "h100-sxm",
            "workload": {"arrival": {"kind": "poisson", "rate": 5}, "num_requests": 30, "input_tokens": 50,
                         "output_tokens": 40},
            "engine": {"host": {"request_s": request_s, "prompt_token_s": 0.0}},
        }  # fmt: skip
        found.append(summarise(simulate(load_scenario(scenario))))
    ttft, tpot = ([float(one[f"mean_{name}_ms"]) for one in found] for name in ("ttft", "tpot"))
    assert ttft[1] - ttft[0] == pytest.approx(20, abs=4)
    assert tpot[1] == pytest.approx(tpot[0], rel=0.1)


@pytest.mark.parametrize(("way_s", "late_s"), [(0.5, 0.0), (0.06, 0.03)])
def test_patience_counts_from_the_client(way_s: float, late_s: float) -> None:
    """A client gives up after 0.1 s: at once if its request is on the way for longer, else when a step has ended."""
    scenario = {
        "model": "meta-llama/Llama-3.1-8B", "hardware": "h100-sxm",
        "workload": {"arrival": {"kind": "all_at_once"}, "num_requests": 1, "input_tokens": 50,
                     "output_tokens": 400, "client_timeout_s": 0.1},
        "engine": {"host": {"request_s": way_s}},
    }  # fmt: skip
    result = simulate(load_scenario(scenario))
    assert 0.1e12 <= int(result.requests["finish_ps"][0]) <= (0.1 + late_s) * 1e12
    assert (int(result.requests["output_tokens"][0]) > 0) == (way_s < 0.1)


def test_every_replica_has_its_own_api_server() -> None:
    """Eight long prompts at once: with as many replicas nobody waits for another's tokeniser, and each gets one.

    The router hears of requests on their way: if it did not, the first replica would be given them all.
    """
    scenario = {
        "model": "meta-llama/Llama-3.1-8B", "hardware": "h100-sxm",
        "workload": {"arrival": {"kind": "all_at_once"}, "num_requests": 8, "input_tokens": 1000, "output_tokens": 4},
        "engine": {"host": {"request_s": 0.01, "prompt_token_s": "100 us"}},
        "replicas": {"count": 8, "router": "least_outstanding_requests"},
    }  # fmt: skip
    result = simulate(load_scenario(scenario))
    assert sorted(result.requests["replica"].tolist()) == list(range(8))
    assert set(result.requests["scheduled_ps"].tolist()) == {round(0.11e12)}


def test_who_is_under_way_when_the_run_is_interrupted_is_counted() -> None:
    """Ctrl-C while requests pass the API server: they end as unfinished, and the replica has none left."""
    scenario = {
        "model": "meta-llama/Llama-3.1-8B", "hardware": "h100-sxm",
        "workload": {"arrival": {"kind": "all_at_once"}, "num_requests": 20, "input_tokens": 1000, "output_tokens": 2},
        "engine": {"host": {"request_s": 0.01, "prompt_token_s": "100 us"}},
    }  # fmt: skip
    interrupted = [False]

    def interrupt(ended: int, total: int | None) -> None:
        if ended >= 1 and not interrupted[0]:
            interrupted[0] = True
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sim.engine.cluster._TIDY_EVERY", 1)
        result = simulate(load_scenario(scenario), on_progress=interrupt)
    assert result.manifest["interrupted"]
    states = result.requests["state"].tolist()
    assert len(states) == 20 and states.count(State.UNFINISHED) >= 10
