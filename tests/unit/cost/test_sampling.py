"""Choosing the next token: by vocabulary, by method, on the GPU and on the host."""

from __future__ import annotations

import math

import pytest

from sim.cost.ops import Choices, ForwardPass
from sim.cost.roofline import DatasheetKernels
from sim.cost.sampling import GREEDY, Sampler, cpu_sampling, gpu_sampling
from sim.specs.hardware import load_gpu
from sim.specs.hf_config import load_model
from sim.specs.layout import ONE_GPU
from sim.specs.quantization import QuantScheme

KERNELS = DatasheetKernels(load_gpu("h100-sxm"))
PCIE = 64e9


def test_bytes_by_method() -> None:
    """Greedy moves 10 bytes per logit, a filter what its constants say, beams 12 more; of the whole vocabulary."""
    found = dict(gpu_sampling(KERNELS, Sampler(1e-4, 60.0, beams=True), 8, 16_000, 2))
    assert {name: cost.bytes for name, cost in found.items()} == {
        "sampling": 8 * 16_000 * 10,
        "top-k/top-p filter": 8 * 32_000 * 60,
        "beam selection": 8 * 32_000 * 12,
    }
    assert found["top-k/top-p filter"].seconds > 1e-4
    assert [name for name, _ in gpu_sampling(KERNELS, GREEDY, 8, 16_000, 2)] == ["sampling"]


def test_the_host_copies_and_looks() -> None:
    """32 rows of 128,256 logits: 8.2 MB over PCIe, and 0.4 ns per logit to find the largest."""
    (_, copy), (_, look) = cpu_sampling(GREEDY, 32, 128_256, PCIE)
    assert copy.seconds == pytest.approx(2 * 32 * 128_256 / PCIE)
    assert look.seconds == pytest.approx(32 * 128_256 * 0.4e-9)
    assert (copy.bound, look.bound) == ("link", "host")


def test_sorting_is_what_makes_the_host_slow() -> None:
    """V log2 V comparisons of 4 ns: 9 ms for one row of 128,256 logits; a small vocabulary is a quarter of that."""
    large = cpu_sampling(Sampler(filters=True), 1, 128_256, PCIE)[1][1]
    assert large.seconds == pytest.approx(128_256 * (2.4e-9 + 4e-9 * math.log2(128_256)))
    assert 0.008 < large.seconds < 0.01
    small = cpu_sampling(Sampler(filters=True), 1, 32_000, PCIE)[1][1]
    assert large.seconds > 4 * small.seconds


def test_a_step_with_the_choice_on_the_host_is_longer() -> None:
    """At 64 sequences greedy sampling costs microseconds on the GPU and milliseconds on the host."""
    gpu, model = load_gpu("h100-sxm"), load_model("meta-llama/Llama-3.1-8B")
    seconds = []
    for sampler in (GREEDY, Sampler(on_cpu=True), Sampler(filters=True, on_cpu=True)):
        forward = ForwardPass(
            model, QuantScheme.from_checkpoint(model), gpu, DatasheetKernels(gpu), ONE_GPU, Choices(sampler)
        )
        seconds.append(sum(op.seconds for op in forward.head(64) if op.name != "lm_head"))
    assert seconds[0] < 1e-4 < 1e-3 < seconds[1] < 0.01 < 0.4 < seconds[2]
