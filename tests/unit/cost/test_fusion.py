"""Fusing operators saves bytes and launches, and its steps say so."""

from __future__ import annotations

from collections import Counter

import pytest

from sim.cost.fusion import activations, norms, rotaries
from sim.cost.kernel_options import FUSIONS, KernelOptions
from sim.cost.ops import Choices, ForwardPass
from sim.cost.roofline import DatasheetKernels
from sim.specs.hardware import load_gpu
from sim.specs.hf_config import load_model
from sim.specs.layout import ONE_GPU, Layout
from sim.specs.quantization_keys import parse_quantization

ALL, NONE = frozenset(FUSIONS), frozenset[str]()


def forward(without: str = "", layout: Layout = ONE_GPU) -> ForwardPass:
    gpu, architecture = load_gpu("a100-sxm-80gb"), load_model("meta-llama/Llama-3.1-8B")
    options = KernelOptions(fusion=ALL - {without})
    scheme = parse_quantization(None, architecture)
    return ForwardPass(architecture, scheme, gpu, DatasheetKernels(gpu), layout, Choices(kernels=options))


def moved(traffic: list[tuple[str, int, float]]) -> float:
    return sum(calls * size for _, calls, size in traffic)


def test_bytes_of_unfused_operators() -> None:
    """Per element: norm and residual 21 rows' worth against 4, activation 10 bytes against 6, rotary 20 against 4."""
    assert (moved(norms(ALL, 1, 8192)), moved(norms(NONE, 1, 8192))) == (4 * 8192, 21 * 8192)
    assert (moved(activations(ALL, 1, 100, gated=True)), moved(activations(NONE, 1, 100, gated=True))) == (600, 1000)
    assert (moved(rotaries(ALL, 1, 100, 64.0)), moved(rotaries(NONE, 1, 100, 64.0))) == (464, 2128)


@pytest.mark.parametrize(("group", "more"), [("norm", 64 * 6), ("activation", 32), ("rope", 32 * 10), ("qkv", 64)])
def test_launches_that_a_fusion_saves(group: str, more: int) -> None:
    """Of a model with 32 layers and 64 norms."""
    launches = [sum(op.calls for op in forward(without=w).rows(8)) for w in ("", group)]
    assert launches[1] - launches[0] == more


def test_unfused_projections_read_the_same_weights() -> None:
    """Queries 4096 wide, keys and values 1024 each: three products with the FLOPs of one."""
    fused, split = (
        [op for op in forward(without=w, layout=Layout(tp=2)).rows(64) if op.name == "qkv"] for w in ("", "qkv")
    )
    assert sum(op.calls * op.cost.flops for op in fused) == sum(op.calls * op.cost.flops for op in split)
    assert [op.calls for op in split] == [32, 64]
    assert sum(op.seconds for op in split) > sum(op.seconds for op in fused)


def test_expanded_latents_cost_more_than_absorbed_ones() -> None:
    """DeepSeek-V2-Lite: 16 heads of 128 + 128 are rebuilt from 512 for every cached token, and moved twice."""
    gpu, architecture = load_gpu("h100-sxm"), load_model("deepseek-ai/DeepSeek-V2-Lite")
    scheme = parse_quantization(None, architecture)
    flops = {}
    for form in ("absorbed", "expanded"):
        choices = Choices(kernels=KernelOptions(latent_attention=form))
        step = ForwardPass(architecture, scheme, gpu, DatasheetKernels(gpu), ONE_GPU, choices).decode(1, 9999)
        op = step[0]
        flops[form] = op.cost.flops, op.cost.bytes - 16 * (576 + 512) * 2
    assert flops["absorbed"] == (1e4 * 2 * 16 * (576 + 512), 1e4 * 576 * 2)
    assert flops["expanded"] == (1e4 * 2 * 16 * (192 + 128 + 512 * 256), 1e4 * (576 * 2 + 4 * 16 * 256))


def test_nothing_changes_by_default() -> None:
    """All fused is what an engine does when nothing is said."""
    gpu, architecture = load_gpu("a100-sxm-80gb"), load_model("meta-llama/Llama-3.1-8B")
    plain = ForwardPass(architecture, parse_quantization(None, architecture), gpu, DatasheetKernels(gpu))
    assert plain.rows(5) == forward().rows(5)
    assert Counter(op.name for op in plain.rows(5))["qkv"] == 1
