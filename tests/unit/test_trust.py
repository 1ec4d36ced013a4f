"""The envelope of errors, and the labels that are read from it."""

from __future__ import annotations

import pytest

from sim.run import simulate
from sim.scenario import load_scenario
from sim.specs.hf_config import load_model
from sim.trust import FEWEST_RUNS, Cell, Envelope, Errors, envelope, model_class, traffic_of
from sim.validation.serving.envelope import Point, coverage, interval

CELL = Cell(
    model_class="dense", gpu="h100-sxm", engine="vllm-v1", traffic="open loop", runs=9, models=3,
    errors={"tpot": Errors(runs=9, median_pct=2.0, p90_pct=6.0, log_error=(-0.05, 0.06))},
)  # fmt: skip
QUICK = {"model": "meta-llama/Llama-3.1-8B", "hardware": "h100-sxm", "name": "one", "workload": {
    "num_requests": 3, "arrival": {"kind": "poisson", "rate": 1}, "input_tokens": 10, "output_tokens": 3}}  # fmt: skip


def test_a_run_is_validated_where_enough_like_it_were_measured() -> None:
    """A cell with too few runs, or another GPU, engine, class or traffic says nothing."""
    table = Envelope(next_of_kin={"vllm-0.15": "vllm-v1"}, cells=(CELL,))
    assert table.find("dense", "h100-sxm", "vllm-v1", "open loop") is CELL
    assert table.find("dense", "h100-sxm", "vllm-0.15", "open loop") is CELL
    assert table.find("moe", "h100-sxm", "vllm-v1", "open loop") is None
    assert table.find("dense", "h100-sxm", "vllm-v1", "closed loop") is None
    few = Envelope(cells=(CELL.model_copy(update={"runs": FEWEST_RUNS - 1}),))
    assert few.find("dense", "h100-sxm", "vllm-v1", "open loop") is None


def test_the_shipped_envelope_labels_runs() -> None:
    """A dense model with vLLM on an H100 was measured; the same with a scheduler of its own was not."""
    assert envelope().cells
    facts = simulate(load_scenario(QUICK)).facts
    assert facts["trust"] == "validated"
    assert facts["envelope"]["errors"]["tpot"]["median_pct"] > 0
    static = simulate(load_scenario(QUICK, {"engine.scheduler": "static"})).facts
    assert static["trust"] == "calibrated"
    assert "envelope" not in static


def test_classes_and_kinds_of_traffic_have_the_names_of_the_table() -> None:
    """What a scenario says is found again in the envelope."""
    assert model_class(load_model("meta-llama/Llama-3.1-8B")) == "dense"
    assert model_class(load_model("deepseek-ai/DeepSeek-R1")) == "mla moe"
    kinds = [traffic_of({"arrival": {"kind": kind}}) for kind in ("poisson", "closed_loop", "all_at_once")]
    assert kinds == ["open loop", "closed loop", "all at once"]
    assert traffic_of({"kind": "trace"}) == "open loop"


def test_a_stated_interval_comes_from_other_models() -> None:
    """Whatever a model's own errors are, the interval it is held against does not know them."""
    kind = ("dense", "h100-sxm", "vllm-v1", "open loop")
    known = [
        Point(f"{model} {i}", kind, model, "tpot", error)
        for model, shift in (("a", 0.0), ("b", 0.02), ("odd", 5.0))
        for i, error in enumerate([shift - 0.1 + 0.2 * j / 19 for j in range(20)])
    ]
    low, high = interval(known, kind, "tpot", without="odd")
    assert -0.2 < low < -0.05
    assert 0.05 < high < 0.2
    assert coverage([point for point in known if point.model != "odd"])["tpot"] == pytest.approx(0.9, abs=0.1)
    assert coverage(known)["tpot"] < 0.7
