"""Attention kernels without what made them fast."""

from __future__ import annotations

import pytest

from sim.cost.chosen_kernels import ChosenKernels
from sim.cost.kernel_options import KernelOptions
from sim.cost.roofline import DatasheetKernels, Heads, MatmulFormat, PrefillWork
from sim.specs.hardware import load_gpu

GROUPED = Heads(16, 2, 128, 128, 2 * 2 * 128 * 2, 2.0 * 16 * 256, 2.0 * 16 * 256, "bf16")
"""16 query and 2 KV heads of 128: the layer of the Flash-Decoding blog."""
PLAIN = Heads(32, 32, 128, 128, 2 * 32 * 128 * 2, 2.0 * 32 * 256, 2.0 * 32 * 256, "bf16")


def kernels(hardware: str = "a100-sxm-40gb", **options: object) -> ChosenKernels:
    gpu = load_gpu(hardware)
    return ChosenKernels(DatasheetKernels(gpu), gpu, KernelOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sequences", "context", "measured_us"),
    [(256, 256, 390.5), (32, 2048, 352.0), (8, 8192, 529.2), (1, 65536, 2300.6), (1, 131072, 4592.2)],
)
def test_a_block_per_head_gets_an_sms_share_of_the_bandwidth(sequences: int, context: int, measured_us: float) -> None:
    """Within 20 % of FlashAttention 2.0.9 on an A100 without splitting (Flash-Decoding blog, table)."""
    found = kernels(split_kv=False).decode_attention(sequences, sequences * context - sequences, GROUPED)
    assert found.seconds * 1e6 == pytest.approx(measured_us, rel=0.2)


def test_splitting_gains_nothing_for_large_batches() -> None:
    """With thousands of sequences every SM has a block anyway; with one it is 20 times faster."""
    split, unsplit = kernels(), kernels(split_kv=False)
    few = [k.decode_attention(1, 65535, GROUPED).seconds for k in (split, unsplit)]
    many = [k.decode_attention(4096, 4096 * 2000, PLAIN).seconds for k in (split, unsplit)]
    assert few[1] > 20 * few[0]
    assert many[1] == pytest.approx(many[0], rel=0.02)


def test_standard_attention_moves_the_scores() -> None:
    """4096 tokens, 32 heads: 4 x 32 x 4096^2 x 2 B = 4.3 GB of scores beside 0.13 GB, and no causal saving."""
    work = PrefillWork(4096, 4096 * 4097 // 2, 4096, 4096)
    found = kernels(attention="standard").prefill_attention(work, PLAIN)
    assert found.bytes == pytest.approx(4 * 32 * 4096**2 * 2 + 4096 * 16384 + 4096 * 32 * 256 * 2)
    assert found.flops == pytest.approx(4 * 4096**2 * 4096)
    flash = kernels().prefill_attention(work, PLAIN)
    assert found.seconds > 3 * flash.seconds


def test_standard_attention_is_no_worse_for_short_prompts() -> None:
    """At 64 tokens three small kernels cost no more than one call of the fused one."""
    work = PrefillWork(64, 64 * 65 // 2, 64, 64)
    ratio = kernels(attention="standard").prefill_attention(work, PLAIN).seconds
    assert ratio < 1.2 * kernels().prefill_attention(work, PLAIN).seconds


def test_without_pipelining_compute_and_memory_add_up() -> None:
    """A balanced product takes about twice as long with one stage; many stages cost next to nothing."""
    form = MatmulFormat("bf16", 2.0, 2.0, "bf16")
    plain = DatasheetKernels(load_gpu("a100-sxm-40gb")).gemm(256, 8192, 8192, form).seconds
    one, many = (kernels(pipeline_stages=s).gemm(256, 8192, 8192, form).seconds for s in (1, 8))
    assert 1.5 * plain < one < 4 * plain
    assert plain <= many < 1.2 * plain
