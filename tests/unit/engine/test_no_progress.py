"""Runs that could never end are stopped, and the request that shows it is named."""

from __future__ import annotations

import pytest

from sim.errors import ConfigError
from sim.run import simulate
from sim.scenario import load_scenario


def test_clients_who_give_up_at_once_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed loop whose clients wait a nanosecond gets nowhere; the message names key, count and a request."""
    monkeypatch.setattr("sim.engine.cluster._MOST_IN_VAIN", 1000)
    scenario = {
        "model": "meta-llama/Llama-3.1-8B", "hardware": "h100-sxm",
        "workload": {"duration_s": 5, "arrival": {"kind": "closed_loop", "concurrency": 4}, "input_tokens": 500,
                     "output_tokens": 100, "client_timeout_s": 1e-9},
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"workload: can never end: 1,000 requests in a row, up to number 999"):
        simulate(load_scenario(scenario))


def test_an_open_loop_of_refused_requests_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody sends again, any number of refusals in a row is a result, not a mistake."""
    monkeypatch.setattr("sim.engine.cluster._MOST_IN_VAIN", 10)
    scenario = {
        "model": "meta-llama/Llama-3.1-8B", "hardware": "h100-sxm", "engine": {"num_gpu_blocks_override": 10},
        "workload": {"num_requests": 50, "arrival": {"kind": "all_at_once"}, "input_tokens": 500, "output_tokens": 9},
    }  # fmt: skip
    assert len(simulate(load_scenario(scenario)).requests) == 50
