"""What quantisation costs: unpacking that grows with the batch, inserted operators, and caches that are widened."""

from __future__ import annotations

from typing import Any

import pytest

from sim.cost.calibrated_kernels import CalibratedKernels
from sim.cost.calibration_source import find_calibration
from sim.cost.formats import matmul_format
from sim.cost.ops import ForwardPass
from sim.cost.roofline import DatasheetKernels, Heads, Kernels
from sim.format_checks import with_kernel
from sim.specs.hardware import load_gpu
from sim.specs.hf_config import load_model
from sim.specs.layout import ONE_GPU, Layout
from sim.specs.number_formats import FORMATS
from sim.specs.quantization import QuantScheme
from sim.specs.quantization_keys import parse_quantization
from sim.specs.weight_kernels import KERNELS

LLAMA = load_model("meta-llama/Llama-3.1-8B")
A100 = "a100-sxm-80gb"


def kernels(hardware: str) -> Kernels:
    gpu = load_gpu(hardware)
    found = find_calibration(gpu)
    return DatasheetKernels(gpu) if found is None else CalibratedKernels(found[0], DatasheetKernels(gpu), "vllm")


def forward(value: Any, hardware: str = A100) -> ForwardPass:
    gpu = load_gpu(hardware)
    scheme = with_kernel(parse_quantization(value, LLAMA), LLAMA, gpu, "vllm", ONE_GPU)
    return ForwardPass(LLAMA, scheme, gpu, kernels(hardware))


def gemm_ms(value: Any, rows: int, hardware: str = A100) -> float:
    return 1e3 * sum(op.seconds for op in forward(value, hardware).rows(rows) if op.name in ("qkv", "gate_up", "down"))


def named(value: Any, rows: int = 256, hardware: str = A100) -> dict[str, float]:
    found: dict[str, float] = {}
    for op in forward(value, hardware).rows(rows):
        found[op.name] = found.get(op.name, 0.0) + op.seconds
    return found


def test_four_bit_weights_win_when_memory_binds_and_lose_when_compute_does() -> None:
    """Marlin's INT4 is at least twice as fast at one row, slower at thousands, and crosses over in between once."""
    ratio = [gemm_ms(None, rows) / gemm_ms("gptq", rows) for rows in (1, 16, 64, 128, 256, 1024, 4096)]
    assert ratio[0] > 2.0
    assert ratio[-1] < 0.85
    signs = [value > 1.0 for value in ratio]
    assert signs == sorted(signs, reverse=True)


def test_taking_away_the_bytes_takes_away_the_gain() -> None:
    """Weights as wide as 16 bit, unpacked all the same, are never faster: there is no factor on the time."""
    gpu = load_gpu(A100)
    form = matmul_format(parse_quantization("gptq", LLAMA), "gate_up", gpu)
    wide, plain = form._replace(weight_bytes=2.0), form._replace(weight_bytes=2.0, unpacking=None, name="bf16")
    for price in (kernels(A100), DatasheetKernels(gpu)):
        for rows in (1, 64, 2048):
            assert price.gemm(rows, 4096, 28672, wide).seconds >= 0.9 * price.gemm(rows, 4096, 28672, plain).seconds
    free = form._replace(unpacking=form.unpacking and form.unpacking._replace(operations=0.0, mma_share=1.0))
    assert DatasheetKernels(gpu).gemm(4096, 4096, 28672, free) == DatasheetKernels(gpu).gemm(
        4096, 4096, 28672, form._replace(unpacking=None)
    )


def test_kernels_that_write_weights_out_lose_at_small_batches_only() -> None:
    """AWQ's own kernels beat Marlin once 256 rows share a pass over the weights, and lose far below."""
    assert gemm_ms("awq_gemm", 2048) < gemm_ms("awq_marlin", 2048)
    assert gemm_ms("awq_gemm", 128) > gemm_ms("awq_marlin", 128)


def test_eight_bit_weights_unpack_slower_than_four_bit_ones() -> None:
    """To bf16, Marlin's INT8 takes more operations a weight than INT4, so large batches are slower (A100, measured)."""
    assert gemm_ms("gptq_int8", 2048) > gemm_ms("gptq", 2048) > gemm_ms(None, 2048)


def test_a_look_up_costs_by_the_bit() -> None:
    """T-MAC does one pass of its tables per bit."""
    tmac = KERNELS["t-mac"]
    costs = [tmac.unpacking(FORMATS[f"int{bits}"], "fp16").operations for bits in (2, 3, 4)]
    assert costs == [2 * costs[0] / 2, 3 * costs[0] / 2, 4 * costs[0] / 2]


def test_the_steps_of_the_int8_recipe() -> None:
    """Inserted operators cost time; fusing them gives it back, INT8 products gain, and keeping O saves its own pass."""
    recipe = {"weights": "int8", "activations": "int8"}
    inserted = named({**recipe, "compute": "16-bit", "fuse": "none"})
    fused = named({**recipe, "compute": "16-bit", "fuse": "all"})
    replaced = named({**recipe, "fuse": "all"})
    kept = named({**recipe, "fuse": "all", "keep": ["o_proj"]})
    plain = named(None)
    assert {"quantise", "dequantise"} <= inserted.keys()
    assert "dequantise" not in fused and fused["quantise"] < inserted["quantise"]
    assert "quantise" not in kept
    total = {name: sum(ops.values()) for name, ops in
             {"plain": plain, "inserted": inserted, "fused": fused, "replaced": replaced}.items()}  # fmt: skip
    assert total["inserted"] > total["fused"] > total["plain"] > total["replaced"]
    assert kept["o"] == plain["o"]


def test_scaling_results_apart_is_a_pass_over_them() -> None:
    """Without an epilogue that scales, 32-bit sums are read and 16-bit results written by an operator of its own."""
    assert "dequantise" in named({"weights": "int8", "activations": "int8", "fuse": "none"})
    assert "dequantise" not in named("smoothquant")


def test_static_scales_save_a_reading_of_the_activations() -> None:
    """Scales known beforehand need no pass for the largest element; where the pass was measured they change nothing."""
    assert gemm_ms("smoothquant_static", 2048) < gemm_ms("smoothquant", 2048)
    assert gemm_ms("fp8_static", 2048, "h100-sxm") == gemm_ms("fp8", 2048, "h100-sxm")


def test_fused_quantisation_drops_the_measured_pass() -> None:
    """H100's FP8 products were measured with their quantisation; an operator before that does it takes it away."""
    fused = gemm_ms({"scheme": "fp8", "fuse": "all"}, 2048, "h100-sxm")
    assert 0.6 < fused / gemm_ms("fp8", 2048, "h100-sxm") < 0.99


def test_layers_that_stay_cost_what_they_did() -> None:
    """Keeping all layers is not quantising; keeping some lies between, in time and in bytes."""
    gpu = load_gpu(A100)
    some = {"scheme": "gptq", "keep_layers": [4, 4]}
    every = {"scheme": "gptq", "keep_layers": [16, 16]}
    assert gemm_ms(every, 1) == pytest.approx(gemm_ms(None, 1))
    assert gemm_ms("gptq", 1) < gemm_ms(some, 1) < gemm_ms(None, 1)
    sizes = [LLAMA.weight_bytes(parse_quantization(value, LLAMA)) for value in ("gptq", some, every, None)]
    assert sizes[0] < sizes[1] < sizes[2] == sizes[3]
    assert gpu.supports("bf16")


@pytest.mark.parametrize("hardware", [A100, "l40s", "h100-sxm"])
def test_a_quantised_cache_is_read_faster_but_not_by_its_bytes_alone(hardware: str) -> None:
    """Fewer bytes per token speed attention up, widening them takes some of it back.

    On the A100, whose kernel pads eight-fold grouped queries to full tiles, compute is in the way already at INT8.
    """
    times = [
        sum(op.seconds for op in forward({"kv_cache": form}, hardware).decode(32, 32 * 8000))
        for form in ("auto", "int8_per_token_head", "int4_per_token_head")
    ]
    assert times[0] > 1.15 * times[1]
    assert times[0] > 1.15 * times[2]
    assert times[0] / times[2] < 16 / 4.25
    assert hardware == A100 or times[1] > 1.3 * times[2]


def test_experts_without_a_measured_format_take_the_sixteen_bit_kernel_with_their_bytes() -> None:
    """FP8 experts on an A100 gain at small batches from their bytes, and pay for unpacking at large ones."""
    model, gpu = load_model("Qwen/Qwen3-30B-A3B"), load_gpu(A100)
    price = {}
    for value in (None, "fp8"):
        scheme = with_kernel(parse_quantization(value, model), model, gpu, "vllm", ONE_GPU)
        found = ForwardPass(model, scheme, gpu, kernels(A100))
        for rows in (8, 8192):
            price[value, rows] = sum(op.seconds for op in found.rows(rows) if op.name == "experts")
    assert price["fp8", 8] < price[None, 8]
    assert price["fp8", 8192] > price[None, 8192]


def test_widening_a_cache_takes_time() -> None:
    """The same bytes without widening them would be faster, in the datasheet's roofline and beside fitted constants."""
    heads = Heads(32, 8, 128, 128, 8 * 256 * 0.53, 32 * 512.0, 32 * 512.0, "bf16", 0, 8 * 256 * 1.75)
    gpu = load_gpu(A100)
    for price in (DatasheetKernels(gpu), kernels(A100)):
        free = price.decode_attention(32, 32 * 8000, heads._replace(unpack_operations=1e-9))
        assert price.decode_attention(32, 32 * 8000, heads).seconds > 1.001 * free.seconds


def test_tensor_parallelism_cuts_experts() -> None:
    """Two GPUs hold half of every expert each, and multiply half as much."""
    model, gpu = load_model("Qwen/Qwen3-30B-A3B"), load_gpu(A100)
    passes = (
        ForwardPass(model, QuantScheme.unquantised(model), gpu, DatasheetKernels(gpu), Layout(tp)) for tp in (1, 2)
    )
    one, two = (next(op.cost.flops for op in found.rows(256) if op.name == "experts") for found in passes)
    assert one == 2 * two
