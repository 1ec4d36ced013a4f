"""Shares of latencies, and fits of engine parameters from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sim.presets import load_preset
from sim.validation.serving.case import Case, Traffic
from sim.validation.serving.left_out import fit, leave_models_out, overrides_of, parameters_of, save_preset, with_values
from sim.validation.serving.predict import Predicted, predict
from sim.validation.serving.shares import total
from sim.validation.serving.table import one_part, same

COUNT = 32


def case(model: str = "meta-llama/Llama-3.1-8B", clients: int = 8, answer: int = 40) -> Case:
    """A closed loop against vLLM on one H100."""
    traffic = Traffic(same(512, COUNT), same(answer, COUNT), "closed_loop", concurrency=clients)
    scenario = {"model": model, "hardware": "h100-sxm", "engine": {"preset": "vllm-0.9", "sampling": "greedy"}}
    measured = {"ttft_mean": 1.0, "tpot_mean": 1.0, "out_tok_s": 1.0}
    labels = {"model": model, "gpu": "H100", "engine": "vllm 0.9", "class": "dense"}
    return Case(f"{model} {clients}", "own", labels, Path(__file__), scenario, traffic, parts=one_part(measured, COUNT))


def measured_as(one: Case, found: Predicted) -> Case:
    """The case whose measurements are what was predicted of it."""
    return replace(one, parts=one_part(found.parts[0], COUNT))


@pytest.fixture(scope="module")
def simulated() -> list[tuple[Case, Predicted]]:
    """Two loads of two models."""
    cases = [case(model, clients) for model in ("meta-llama/Llama-3.1-8B", "Qwen/Qwen3-32B") for clients in (2, 16)]
    return [(one, predict(one, with_shares=True)) for one in cases]


def test_shares_add_up_to_the_latencies(simulated: list[tuple[Case, Predicted]]) -> None:
    """Kernels, host work and waiting are all there is to TTFT and TPOT."""
    host = load_preset("vllm-0.9").host.model_dump()
    for _, found in simulated:
        for metric, name in (("ttft_mean", "ttft"), ("tpot_mean", "tpot")):
            assert total(found.shares[0][name], host) * 1e3 == pytest.approx(found.parts[0][metric], rel=1e-6)


def test_shares_foretell_another_host(simulated: list[tuple[Case, Predicted]], tmp_path: Path) -> None:
    """On the same schedule latencies are linear in the parameters."""
    slower = with_values(load_preset("vllm-0.9"), {"host.step_s": 3e-3, "gemm": 1.2})
    save_preset(slower, tmp_path / "slower.yaml")
    for one, found in simulated:
        again = predict(one, {"engine.preset": str(tmp_path / "slower.yaml")})
        foretold = total(found.shares[0]["tpot"], slower.host.model_dump(), {"gemm": 1.2}) * 1e3
        assert foretold == pytest.approx(again.parts[0]["tpot_mean"], rel=0.01)


def test_a_fit_finds_the_engine_that_made_the_measurements(
    simulated: list[tuple[Case, Predicted]], tmp_path: Path
) -> None:
    """Host times of a server that differs from its preset are recovered."""
    preset = load_preset("vllm-0.9")
    true = with_values(preset, {"host.step_s": 3e-3, "host.sequence_s": 1e-4})
    save_preset(true, tmp_path / "true.yaml")
    pairs = []
    for one, found in simulated:
        truth = predict(one, {"engine.preset": str(tmp_path / "true.yaml")})
        pairs.append((measured_as(one, truth), found))
    start = {name: value for name, value in parameters_of(preset).items() if name in ("host.step_s", "host.sequence_s")}
    values = fit(pairs, preset, values=start, few=True)
    assert values["host.step_s"] == pytest.approx(3e-3, rel=0.2)  # it can be told apart from sequences in part only
    host = with_values(preset, values).host.model_dump()
    for one, found in pairs:
        tpot_ms = total(found.shares[0]["tpot"], host) * 1e3
        assert tpot_ms == pytest.approx(one.parts[0].measured["tpot_mean"], rel=0.03)


def test_a_left_out_model_has_no_say(simulated: list[tuple[Case, Predicted]]) -> None:
    """Its measurements may be anything: the constants that it is predicted with stay the same."""
    model = "Qwen/Qwen3-32B"
    pairs = [(measured_as(one, found), found) for one, found in simulated]
    odd = []
    for one, found in pairs:
        wrong = {name: value * 3.0 for name, value in one.parts[0].measured.items()}
        odd.append((replace(one, parts=one_part(wrong, COUNT)) if one.labels["model"] == model else one, found))
    for fair, foul in zip(leave_models_out(pairs), leave_models_out(odd), strict=True):
        same_values = np.allclose(list(fair.values.values()), list(foul.values.values()))
        assert same_values is (fair.model == model)


def test_a_fold_is_replayed_with_its_own_preset(simulated: list[tuple[Case, Predicted]], tmp_path: Path) -> None:
    """The keys of a fold name a preset with the fold's constants, and the costs of the case's client."""
    pairs = [(replace(measured_as(one, found), client=""), found) for one, found in simulated]
    fold = leave_models_out(pairs)[0]
    keys = overrides_of(fold, pairs[0][0], tmp_path)
    assert load_preset(keys["engine.preset"]).host.step_s == pytest.approx(fold.values["host.step_s"], rel=1e-3)
    found = predict(pairs[0][0], keys)
    assert not found.problem
