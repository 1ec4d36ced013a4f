"""The roofline itself, and the prices that datasheet kernels derive from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios import examples
from sim.cost.collectives import ring_seconds
from sim.cost.roofline import DatasheetKernels, Experts, Heads, MatmulFormat, PrefillWork, roofline
from sim.errors import ConfigError
from sim.specs.efficiency import LinkEfficiency, OpEfficiency
from sim.specs.hardware import Gpu, load_gpu

EFF = OpEfficiency(launch_floor_s=1e-6, tensor_fraction=0.5, bandwidth_fraction=0.8)
BF16 = MatmulFormat("bf16", 2.0, 2.0, "bf16")
HEADS = Heads(32, 8, 128, 128, 4096.0, 16384.0, 16384.0, "bf16")


@pytest.fixture
def h100() -> Gpu:
    """An H100 SXM."""
    return load_gpu("h100-sxm")


def test_each_roof_can_bound() -> None:
    """Compute, memory or launch: whichever takes longest, on top of the launch floor."""
    compute = roofline(1e12, 1.0, 1e15, 1e12, EFF)
    assert (compute.bound, compute.seconds) == ("compute", pytest.approx(1e-6 + 2e-3))
    memory = roofline(1.0, 1e9, 1e15, 1e12, EFF)
    assert (memory.bound, memory.seconds) == ("memory", pytest.approx(1e-6 + 1.25e-3))
    launch = roofline(1.0, 1.0, 1e15, 1e12, EFF)
    assert (launch.bound, launch.seconds) == ("launch", pytest.approx(1e-6, rel=1e-4))


@given(flops=st.floats(0, 1e18), moved=st.floats(0, 1e13))
@examples(100)
def test_no_operator_beats_either_roof(flops: float, moved: float) -> None:
    """The time is at least that of the arithmetic, of the traffic and of a launch, and keeps both counts."""
    cost = roofline(flops, moved, 1e15, 1e12, EFF)
    assert cost.seconds >= max(flops / 1e15, moved / 1e12, 1e-6)
    assert (cost.flops, cost.bytes) == (flops, moved)


def test_gemm_moves_weights_input_and_output_once(h100: Gpu) -> None:
    """mk + kn + mn elements, each in its own format; the output has 16 bit."""
    fp8 = MatmulFormat("fp8", 1.0, 1.0, "fp8")
    assert DatasheetKernels(h100).gemm(10, 100, 1000, BF16).bytes == 2 * (10 * 100 + 100 * 1000 + 10 * 1000)
    assert DatasheetKernels(h100).gemm(10, 100, 1000, fp8).bytes == 10 * 100 + 100 * 1000 + 2 * 10 * 1000


def test_a_format_multiplies_at_its_own_peak(h100: Gpu) -> None:
    """Large FP8 products take half as long as BF16 ones on an H100."""
    kernels, fp8 = DatasheetKernels(h100), MatmulFormat("fp8", 1.0, 1.0, "fp8")
    slow, quick = kernels.gemm(8192, 8192, 8192, BF16), kernels.gemm(8192, 8192, 8192, fp8)
    assert slow.bound == quick.bound == "compute"
    assert slow.seconds / quick.seconds == pytest.approx(2.0, rel=0.01)


def test_decode_attention_is_bound_by_memory(h100: Gpu) -> None:
    """One query per sequence cannot keep the tensor cores busy: time follows the bytes of the cache."""
    kernels = DatasheetKernels(h100)
    once, twice = (kernels.decode_attention(64, 64 * c, HEADS) for c in (10_000, 20_000))
    assert once.bound == twice.bound == "memory"
    floor = h100.efficiency.attention_decode.launch_floor_s
    assert (twice.seconds - floor) / (once.seconds - floor) == pytest.approx(2.0, rel=1e-3)


def test_long_prefill_is_bound_by_compute(h100: Gpu) -> None:
    """Pairs grow with the square of the prompt, bytes only with its length."""
    kernels = DatasheetKernels(h100)
    cost = kernels.prefill_attention(PrefillWork(8192, 8192 * 8193 // 2, 8192, 8192), HEADS)
    assert cost.bound == "compute"
    assert cost.flops == 16384.0 * 8192 * 8193 / 2


def test_experts_read_only_what_is_touched(h100: Gpu) -> None:
    """More tokens touch more experts, up to all of them; ungated experts have two matrices instead of three."""
    kernels = DatasheetKernels(h100)
    gated, plain = (Experts(2048, 768, 128, 8, gated, BF16) for gated in (True, False))
    bytes_ = [kernels.experts(n, gated).bytes for n in (1, 16, 512)]
    assert bytes_ == sorted(bytes_)
    assert bytes_[0] == pytest.approx(8 * 3 * 2048 * 768 * 2, rel=0.01)
    assert kernels.experts(64, gated).flops == 1.5 * kernels.experts(64, plain).flops


@given(tokens=st.integers(0, 10_000), top=st.integers(1, 8), more=st.integers(0, 248))
@examples(100)
def test_touched_experts_stay_within_bounds(tokens: int, top: int, more: int) -> None:
    """Never more than all experts or than tokens times top-k, never fewer than top-k once there is a token."""
    touched = Experts(1, 1, top + more, top, True, BF16).touched(tokens)
    assert touched <= min(top + more, tokens * top) + 1e-9
    assert touched >= (top if tokens else 0) - 1e-9


def test_elementwise_is_nothing_but_traffic(h100: Gpu) -> None:
    """Bytes at the fraction of the bandwidth that such kernels reach."""
    cost = DatasheetKernels(h100).elementwise(1e9)
    eff = h100.efficiency.elementwise
    assert cost.flops == 0
    assert cost.seconds == pytest.approx(
        eff.launch_floor_s + 1e9 / (float(h100.memory_bandwidth_bytes_per_s) * eff.bandwidth_fraction)
    )


def test_all_reduce_travels_twice_less_one_share(h100: Gpu) -> None:
    """2 (n-1)/n of the tensor per direction; small ones cost their launch, large ones wait for the link."""
    eff = LinkEfficiency(launch_floor_s=5e-6, link_fraction=0.5)
    assert ring_seconds("all_reduce", 8e9, 2, 100e9, eff)[0] == pytest.approx(5e-6 + 8e9 / 50e9)
    assert ring_seconds("all_reduce", 8e9, 8, 100e9, eff)[0] == pytest.approx(5e-6 + 1.75 * 8e9 / 50e9)
    kernels = DatasheetKernels(h100)
    assert kernels.collective("all_reduce", 1e3, 8).bound == "launch"
    assert kernels.collective("all_reduce", 1e9, 8).bound == "link"
    with pytest.raises(ConfigError, match="at least two"):
        kernels.collective("all_reduce", 1e3, 1)


def test_trust_label() -> None:
    """Prices from a datasheet say so."""
    assert DatasheetKernels.trust == "datasheet"
