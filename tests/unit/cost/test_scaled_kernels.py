"""Operator classes made slower or faster by a factor, and the errors that such factors are drawn from."""

from __future__ import annotations

import math

import pytest

from sim.build import build
from sim.cost.calibrated_kernels import class_errors
from sim.cost.ops import ForwardPass
from sim.cost.roofline import DatasheetKernels
from sim.cost.scaled_kernels import CLASSES, ScaledKernels
from sim.cost.uncertainty import DATASHEET_ERRORS, draw_factors
from sim.rng import stream
from sim.scenario import load_scenario
from sim.specs.hardware import load_gpu
from sim.specs.hf_config import load_model
from sim.specs.layout import Layout
from sim.specs.quantization import QuantScheme

OPERATORS = {
    "gemm": {"qkv", "o", "lm_head", "router"},
    "moe": {"experts"},
    "attention_decode": {"attention decode"},
    "attention_prefill": {"attention prefill"},
    "elementwise": {"norm + residual", "rotary + cache write", "routing", "embed", "sampling"},
    "collective": {"all-reduce", "logits gather"},
}


@pytest.mark.parametrize("op_class", CLASSES)
def test_a_factor_touches_its_class_alone(op_class: str) -> None:
    """Twice the time for one class, and the same time, FLOPs, bytes and bound for all others."""
    gpu, model = load_gpu("h100-sxm"), load_model("mistralai/Mixtral-8x7B-v0.1")
    scheme, plain = QuantScheme.unquantised(model), DatasheetKernels(gpu)
    passes = [ForwardPass(model, scheme, gpu, k, Layout(tp=2)) for k in (plain, ScaledKernels(plain, {op_class: 2.0}))]
    before, after = ([*p.rows(64), *p.head(8), *p.decode(8, 9000), *p.prefill([(0, 56)])] for p in passes)
    for one, other in zip(before, after, strict=True):
        factor = 2.0 if one.name in OPERATORS[op_class] else 1.0
        assert other.cost == one.cost._replace(seconds=one.cost.seconds * factor), one.name
    assert {op.name for op in before} == set().union(*OPERATORS.values())


def test_errors_come_from_the_calibration_or_are_wide() -> None:
    """A measured GPU has narrow errors for its classes; one that nobody measured has the wide default for all."""
    measured, unknown = (
        build(load_scenario({"model": "meta-llama/Llama-3.1-8B", "hardware": name, "workload": "chat"}))
        for name in ("h100-sxm", "l40s")
    )
    narrow = class_errors(measured.kernels, measured.timer.forward)
    assert set(narrow) == set(CLASSES)
    assert 0 < narrow["gemm"][0.95] < 0.2 < DATASHEET_ERRORS[0.95]
    assert class_errors(unknown.kernels, unknown.timer.forward) == dict.fromkeys(CLASSES, DATASHEET_ERRORS)


def test_drawn_factors_follow_the_errors() -> None:
    """Nine in ten factors lie between the 5 % and the 95 % quantile of the errors."""
    factors = [draw_factors({"gemm": DATASHEET_ERRORS}, stream(0, "u", i))["gemm"] for i in range(2000)]
    inside = sum(math.exp(-0.3) < factor < math.exp(0.3) for factor in factors) / len(factors)
    assert 0.86 < inside < 0.94
