"""A forward pass's operators priced by fitted constants."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sim.cost.calibrated_kernels import CalibratedKernels, op_class
from sim.cost.calibration import Calibration, Entry, Key
from sim.cost.calibration_source import find_calibration
from sim.cost.kernels.attention_decode import DecodeFormat, DecodeKernel
from sim.cost.kernels.attention_decode import Heads as KernelHeads
from sim.cost.kernels.attention_prefill import prefill_s
from sim.cost.kernels.elementwise import ElementwiseKernel, ElementwiseParams
from sim.cost.kernels.gemm import GemmKernel, GemmParams, gemm_s
from sim.cost.roofline import DatasheetKernels, Experts, Heads, MatmulFormat, PrefillWork
from sim.cost.schemes import gemm_scheme
from sim.specs.hardware import load_gpu

BF16 = MatmulFormat("bf16", 2.0, 2.0, "bf16")
HEADS = Heads(32, 8, 128, 128, 8 * 256 * 2.0, 32 * 512.0, 32 * 512.0, "bf16")


@pytest.fixture(scope="module")
def kernels() -> CalibratedKernels:
    """Those of an H100 under vLLM."""
    gpu = load_gpu("h100-sxm")
    found = find_calibration(gpu)
    assert found is not None
    return CalibratedKernels(found[0], DatasheetKernels(gpu))


@pytest.mark.parametrize(
    ("form", "scheme"),
    [
        (BF16, "bf16"),
        (MatmulFormat("fp16", 2.0, 2.0, "fp16"), "bf16"),
        (MatmulFormat("fp8", 1.0, 1.0, "fp8"), "fp8"),
        (MatmulFormat("fp8", 1.0002, 1.0, "fp8_block"), "fp8_block"),
        (MatmulFormat("int8", 1.0, 1.0, "int8"), "w8a8_int8"),
        (MatmulFormat("bf16", 1.0, 2.0, "fp8"), "w8a16"),
        (MatmulFormat("bf16", 0.52, 2.0, "int4-awq"), "w4a16"),
        (MatmulFormat("bf16", 0.53, 2.0, "mxfp4"), "w4a16_mxfp4"),
    ],
)
def test_formats_find_their_measured_scheme(form: MatmulFormat, scheme: str) -> None:
    """How weights are stored and multiplied decides which measurements apply."""
    assert gemm_scheme(form) == scheme


def test_a_projection_is_priced_cold(kernels: CalibratedKernels) -> None:
    """The price is that of the fitted kernel with weights from HBM."""
    entry = kernels.calibration.find("gemm", "bf16")
    assert entry is not None
    cost = kernels.gemm(16, 4096, 14336, BF16)
    assert cost.seconds == gemm_s(16, 14336, 4096, entry.kernel)  # type: ignore[arg-type]
    assert cost.bound == "memory" and cost.flops == 2.0 * 16 * 4096 * 14336


def _with(kernels: CalibratedKernels, key: Key, entry: Entry) -> Calibration:
    return Calibration(kernels.calibration.chip, {**kernels.calibration.entries, key: entry})


def test_an_integer_cache_is_priced_by_its_own_kernel_where_it_was_measured(kernels: CalibratedKernels) -> None:
    """A stack measured with a 4-bit cache pays what its kernel takes, unpacking included; others do not see it."""
    narrow = HEADS._replace(kv_bytes_per_token=8 * 256 * 0.53, unpack_operations=1e6)
    entry = kernels.calibration.find("attention_decode", "fp8")
    assert entry is not None and isinstance(entry.kernel, DecodeKernel)
    half = replace(entry, kernel=replace(entry.kernel, format=DecodeFormat(0.53)))
    measured = _with(kernels, Key("attention_decode", "int4", "roofserve-kernels"), half)
    work = (64, 64 * 4096, narrow)
    own = CalibratedKernels(measured, kernels.rest, "roofserve-kernels").decode_attention(*work)
    fp8 = kernels.decode_attention(64, 64 * 4096, HEADS._replace(kv_bytes_per_token=8 * 256 * 1.0))
    assert 0.5 < own.seconds / fp8.seconds < 0.75
    assert CalibratedKernels(measured, kernels.rest).decode_attention(*work) == kernels.decode_attention(*work)


def test_a_stacks_own_pass_goes_before_what_stands_in(kernels: CalibratedKernels) -> None:
    """A stack measured with its fused norm is priced by it; others do not see it."""
    entry = kernels.calibration.find("elementwise", "static_fp8_quant")
    assert entry is not None and isinstance(entry.kernel, ElementwiseKernel)
    slow = replace(entry, kernel=replace(entry.kernel, params=ElementwiseParams(1e-3)))
    measured = _with(kernels, Key("elementwise", "add_rms_norm", "roofserve-kernels"), slow)
    assert CalibratedKernels(measured, kernels.rest, "roofserve-kernels").elementwise(1e6).seconds > 1e-3
    assert CalibratedKernels(measured, kernels.rest).elementwise(1e6) == kernels.elementwise(1e6)


def test_look_up_weights_are_priced_by_their_own_kernel_where_it_was_measured(kernels: CalibratedKernels) -> None:
    """NF4 is not integer weights, where both were measured."""
    entry = kernels.calibration.find("gemm", "w4a16")
    assert entry is not None and isinstance(entry.kernel, GemmKernel)
    slow = replace(entry, kernel=replace(entry.kernel, params=GemmParams(1e-3)))
    calibration = _with(kernels, Key("gemm", "nf4", "roofserve-kernels"), slow)
    nf4, int4 = (MatmulFormat("bf16", 0.52, 2.0, name) for name in ("nf4", "int4-awq"))
    own = CalibratedKernels(calibration, kernels.rest, "roofserve-kernels")
    assert own.gemm(16, 4096, 14336, nf4).seconds > 1e-3 > own.gemm(16, 4096, 14336, int4).seconds
    assert kernels.gemm(16, 4096, 14336, nf4) == kernels.gemm(16, 4096, 14336, int4)


def test_chunks_of_one_length_cost_what_the_chunks_cost(kernels: CalibratedKernels) -> None:
    """The engine hands over sums; for equal chunks nothing is lost."""
    entry = kernels.calibration.find("attention_prefill", "bf16")
    assert entry is not None
    work = PrefillWork(4 * 512, 4 * 512 * 513 // 2, 4 * 512, 512)
    exact = prefill_s([(512, 0)] * 4, KernelHeads(32, 8, 128), entry.kernel)  # type: ignore[arg-type]
    assert kernels.prefill_attention(work, HEADS).seconds == pytest.approx(exact)


def test_decode_attention_grows_with_the_context(kernels: CalibratedKernels) -> None:
    """Eight times the context costs at least four times the time once memory-bound."""
    short, long = (kernels.decode_attention(64, 64 * context, HEADS).seconds for context in (2_000, 16_000))
    assert long > 4 * short


def test_a_full_window_counts_as_outgrown(kernels: CalibratedKernels) -> None:
    """Sequences that see all of their window pay the window's extra cost; shorter ones do not."""
    windowed = HEADS._replace(window=1024)
    outgrown = kernels.decode_attention(16, 16 * 1024, windowed).seconds
    assert outgrown > kernels.decode_attention(16, 16 * 1024, HEADS).seconds


def test_experts_follow_the_distinct_ones_reached(kernels: CalibratedKernels) -> None:
    """One token reads two of eight experts, a hundred read all: about four times the weights."""
    layer = Experts(4096, 7168, 8, 2, True, BF16, 2)
    one, many = (kernels.experts(tokens, layer).seconds for tokens in (1, 100))
    assert 2.0 < many / one < 5.0


def test_what_nobody_measured_falls_back(kernels: CalibratedKernels) -> None:
    """Attention on latent vectors is in no table: the datasheet's price with default efficiencies stands in."""
    latent = HEADS._replace(query_dim=576, value_dim=512, kv_heads=1)
    assert kernels.decode_attention(16, 16_000, latent) == kernels.rest.decode_attention(16, 16_000, latent)


def test_all_reduces_are_those_inside_a_graph(kernels: CalibratedKernels) -> None:
    """A decode-sized all-reduce takes single microseconds, not the tens of an eager launch."""
    assert kernels.collective("all_reduce", 64 * 8192.0, 4).seconds < 15e-6


def test_every_operator_has_an_error_class(kernels: CalibratedKernels) -> None:
    """Projections count as GEMMs, host work as exact, and a measured class has a spread around zero."""
    assert [op_class(name) for name in ("qkv", "experts", "all-reduce", "host")] == ["gemm", "moe", "collective", None]
    quantiles = kernels.log_error_quantiles("gemm", "bf16")
    assert quantiles[0.05] < 0 < quantiles[0.95]
    assert kernels.log_error_quantiles("gemm", "ternary") == {}
