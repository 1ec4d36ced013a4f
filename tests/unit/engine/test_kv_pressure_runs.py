"""The shipped scenario in which memory is short."""

import pytest

from sim.metrics import summarise
from sim.run import simulate
from sim.scenario import load_scenario


def tokens_per_s(model: str, max_model_len: int, mode: str) -> float:
    """Output throughput of scenarios/kv-pressure.yaml with another model and way to preempt."""
    changes = {"model": model, "engine.max_model_len": max_model_len, "engine.preemption_mode": mode}
    return float(summarise(simulate(load_scenario("kv-pressure", changes)))["output_throughput"])


@pytest.mark.parametrize(
    ("model", "max_model_len", "swap_wins"),
    [("meta-llama/Llama-3.1-8B", 32768, True), ("meta-llama/Llama-2-7b-hf", 4096, False)],
)
def test_bytes_per_token_decide_between_swapping_and_recomputing(
    model: str, max_model_len: int, swap_wins: bool
) -> None:
    """Over PCIe 4, a model of 128 KiB per token serves more by swapping, and one of 512 KiB more by recomputing."""
    swapped, computed = (tokens_per_s(model, max_model_len, mode) for mode in ("swap", "recompute"))
    assert (swapped > computed) is swap_wins
    assert abs(swapped / computed - 1) > 0.01
