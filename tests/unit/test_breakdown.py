"""Where the time of a run went, derived from its step table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scenarios import Scenario, play
from sim.breakdown import breakdown
from sim.cost.ops import ForwardPass
from sim.cost.roofline import DatasheetKernels
from sim.cost.shape import RunShape
from sim.cost.step_timer import HostWork, RooflineStepTimer
from sim.results import Table
from sim.specs.hardware import load_gpu
from sim.specs.hf_config import load_model
from sim.specs.quantization import QuantScheme


def timer_of(model: str) -> RooflineStepTimer:
    gpu, architecture = load_gpu("h100-sxm"), load_model(model)
    scheme = QuantScheme.from_checkpoint(architecture)
    return RooflineStepTimer(ForwardPass(architecture, scheme, gpu, DatasheetKernels(gpu)), HostWork(1e-4))


def steps_of(timer: RooflineStepTimer, scenario: Scenario) -> Table:
    return play(replace(scenario, spans=timer.spans), timer=timer).steps


DECODING = Scenario(tuple((i, 0, 100, 400, 400) for i in range(16)), max_num_batched_tokens=4096)
PREFILLING = Scenario(tuple((i, i * 10**11, 2000, 1, 1) for i in range(20)), max_num_batched_tokens=4096)


@pytest.mark.parametrize("model", ["meta-llama/Llama-3.1-8B", "openai/gpt-oss-20b"])
@pytest.mark.parametrize("scenario", [DECODING, PREFILLING], ids=["decoding", "prefilling"])
def test_shares_add_up_to_the_busy_time(model: str, scenario: Scenario) -> None:
    """The operators' seconds add up to the time in which the replicas computed."""
    timer = timer_of(model)
    steps = steps_of(timer, scenario)
    n = steps["steps"].astype("int64")
    busy = float((n * steps["first_step_ps"] + steps["slope_ps"] * (n * (n - 1) // 2)).sum()) / 1e12
    assert sum(row["seconds"] for row in breakdown(timer, steps)) == pytest.approx(busy, rel=1e-9)


def test_rows_are_sorted_and_named() -> None:
    """The largest share first; an operator appears once per bound."""
    timer = timer_of("meta-llama/Llama-3.1-8B")
    rows = breakdown(timer, steps_of(timer, DECODING))
    assert [row["seconds"] for row in rows] == sorted((row["seconds"] for row in rows), reverse=True)
    assert len({(row["operator"], row["bound"]) for row in rows}) == len(rows)
    assert {row["operator"] for row in rows} >= {"qkv", "gate_up", "attention decode", "lm_head", "host"}


def test_decoding_waits_for_memory_and_prefill_for_compute() -> None:
    """What a roofline says of the two phases shows in the shares of the MLP."""
    timer = timer_of("meta-llama/Llama-3.1-8B")
    for scenario, bound in ((DECODING, "memory"), (PREFILLING, "compute")):
        rows = [row for row in breakdown(timer, steps_of(timer, scenario)) if row["operator"] == "gate_up"]
        assert rows[0]["bound"] == bound


def test_shares_of_like_steps_are_those_of_one() -> None:
    """If all steps are nearly alike, the shares are those of the operators of a single step."""
    timer = timer_of("meta-llama/Llama-3.1-8B")
    one = Scenario(((0, 0, 10_000, 50, 50),), max_num_batched_tokens=20_000)
    steps = steps_of(timer, one)
    decodes = steps.where(steps["decodes"] > 0)
    rows = {row["operator"]: row["seconds"] for row in breakdown(timer, decodes)}
    ops = timer.explain(RunShape(1, 10_025))
    whole, total = sum(op.seconds for op in ops), sum(rows.values())
    for name in ("qkv", "gate_up", "attention decode", "lm_head"):
        share = sum(op.seconds for op in ops if op.name == name) / whole
        assert rows[name] / total == pytest.approx(share, rel=1e-2)


def test_no_steps_no_shares() -> None:
    """A run that refused everything has no breakdown."""
    timer = timer_of("meta-llama/Llama-3.1-8B")
    assert breakdown(timer, steps_of(timer, replace(DECODING, max_model_len=10))) == []
