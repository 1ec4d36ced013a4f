"""Steps worked out by hand from a datasheet, an architecture and a pocket calculator, against the cost model."""

from __future__ import annotations

import pytest

from sim.cost.ops import ForwardPass, OpCost
from sim.cost.roofline import DatasheetKernels, Experts, Heads, MatmulFormat, PrefillWork
from sim.cost.shape import RunShape
from sim.cost.step_timer import RooflineStepTimer
from sim.specs.hardware import Gpu, load_gpu
from sim.specs.hf_config import load_model
from sim.specs.layout import Layout
from sim.specs.quantization import QuantScheme
from sim.specs.quantization_keys import parse_quantization

FP16 = MatmulFormat("fp16", 2.0, 2.0, "fp16")
ONE_SQUARE = {"k": 80_000, "n": 100_000}  # one matrix that stands for a model of 8 billion parameters


@pytest.fixture
def v100() -> Gpu:
    """A PCIe V100: 112 TFLOP/s and 900 GB/s."""
    rate = {"value": "112 TFLOP/s", "source": "LLM-Viewer hardware table"}
    return load_gpu("v100-sxm-32gb").replace(tensor_flops={"fp16": rate})


def forward(model: str, hardware: str = "h100-sxm", tp: int = 1, quantization: str | None = None) -> ForwardPass:
    """The forward pass of a model of the catalogue."""
    gpu, architecture = load_gpu(hardware), load_model(model)
    scheme = parse_quantization(quantization, architecture) if quantization else QuantScheme.unquantised(architecture)
    return ForwardPass(architecture, scheme, gpu, DatasheetKernels(gpu), Layout(tp=tp))


def flops(ops: list[OpCost]) -> float:
    """Of all runs of all operators."""
    return sum(op.calls * op.cost.flops for op in ops)


def moved(ops: list[OpCost], name: str) -> float:
    """Bytes of all runs of the operators of a name."""
    return sum(op.calls * op.cost.bytes for op in ops if op.name == name)


def test_a_decode_step_waits_for_the_weights(v100: Gpu) -> None:
    """16 GB at 80 % of 900 GB/s are 22.2 ms for 16 sequences, longer than their 3.3 ms of arithmetic: 720 token/s."""
    step = DatasheetKernels(v100).gemm(16, form=FP16, **ONE_SQUARE)
    assert step.bound == "memory"
    assert step.seconds == pytest.approx(22.2e-3, abs=0.05e-3)
    assert 16 / step.seconds == pytest.approx(720, rel=0.002)


def test_with_endless_bandwidth_it_would_wait_for_the_arithmetic(v100: Gpu) -> None:
    """2 x 8e9 x 16 FLOP at 70 % of 112 TFLOP/s are 3.3 ms once memory costs nothing."""
    step = DatasheetKernels(v100.replace(memory_bandwidth_bytes_per_s=1e18)).gemm(16, form=FP16, **ONE_SQUARE)
    assert step.bound == "compute"
    assert step.flops == 2 * 8e9 * 16
    assert step.seconds == pytest.approx(3.27e-3, abs=0.01e-3)


def test_the_larger_wins_not_the_sum(v100: Gpu) -> None:
    """Ten times the batch takes ten times the arithmetic, 32.7 ms, which hides the 22.2 ms of reading."""
    step = DatasheetKernels(v100).gemm(160, form=FP16, **ONE_SQUARE)
    assert step.bound == "compute"
    assert step.seconds == pytest.approx(32.65e-3, abs=0.05e-3)


def test_an_empty_kernel_costs_its_launch(v100: Gpu) -> None:
    """A product of next to nothing takes the 3 us of a launch."""
    tiny = DatasheetKernels(v100).gemm(1, 64, 64, FP16)
    assert tiny.bound == "launch"
    assert tiny.seconds == pytest.approx(3e-6, rel=0.01)


# Llama-2-7B: 32 layers of 4 x 4096 x 4096 and 3 x 4096 x 11008, and a vocabulary of 32000.
LAYER_PARAMETERS = 4 * 4096**2 + 3 * 4096 * 11008
PARAMETERS = 32 * LAYER_PARAMETERS + 4096 * 32000


@pytest.mark.parametrize("tokens", [1, 77, 2048])
def test_a_forward_pass_has_two_flops_per_parameter_and_token(tokens: int) -> None:
    """Llama-2-7B multiplies by 6.607 billion parameters, its embedding table not among them."""
    assert PARAMETERS == 6_607_077_376
    model = forward("meta-llama/Llama-2-7b-hf")
    assert flops(model.rows(tokens) + model.head(tokens)) == 2 * PARAMETERS * tokens


def test_only_sampled_tokens_meet_the_vocabulary() -> None:
    """A prompt of 1000 tokens passes the LM head once, for its last token."""
    model = forward("meta-llama/Llama-2-7b-hf")
    assert flops(model.rows(1000) + model.head(1)) == 2 * (32 * LAYER_PARAMETERS * 1000 + 4096 * 32000)


def test_prefill_attention_has_four_flops_per_pair_and_hidden_unit() -> None:
    """A prompt of S tokens: 32 layers x 4 x 4096 x S(S+1)/2; behind a cached prefix each token sees that too."""
    model = forward("meta-llama/Llama-2-7b-hf")
    assert flops(model.prefill([(0, 1000)])) == 32 * 4 * 4096 * (1000 * 1001 // 2)
    assert flops(model.prefill([(300, 1000)])) == 32 * 4 * 4096 * (1000 * 300 + 1000 * 1001 // 2)
    assert flops(model.prefill([(0, 10), (0, 10)])) == 2 * flops(model.prefill([(0, 10)]))


def test_decode_attention_reads_the_cache_once() -> None:
    """512 KiB per token: 16 sequences of 1000 tokens read 8.4 GB, and compute 4 x 4096 FLOP per token and layer."""
    model = forward("meta-llama/Llama-2-7b-hf")
    ops = model.decode(16, 16_000)
    cache = (16_000 + 16) * 524_288
    queries = 32 * 16 * 32 * (128 + 128) * 2
    assert moved(ops, "attention decode") == cache + queries
    assert flops(ops) == 32 * (16_000 + 16) * 4 * 4096


def test_grouped_heads_read_a_quarter() -> None:
    """Llama-3.1-8B has 8 key-value heads for 32 query heads: 128 KiB per token, the same FLOPs as 32 of them."""
    grouped, full = forward("meta-llama/Llama-3.1-8B"), forward("meta-llama/Llama-2-7b-hf")
    a, b = grouped.decode(1, 100_000), full.decode(1, 100_000)
    assert moved(a, "attention decode") == pytest.approx(100_001 * 131_072, rel=1e-4)
    assert moved(b, "attention decode") == pytest.approx(4 * moved(a, "attention decode"), rel=1e-3)
    assert flops(a) == flops(b)


def test_long_decode_takes_as_long_as_its_bytes() -> None:
    """64 sequences of 8000 tokens of Llama-3.1-8B: 67.1 GB at 75 % of 3.35 TB/s, and 12 us per layer."""
    model = forward("meta-llama/Llama-3.1-8B")
    (op,) = model.decode(64, 64 * 8000)
    bytes_ = 64 * 8001 * 131_072 + 32 * 64 * 32 * 256 * 2
    assert op.seconds == pytest.approx(bytes_ / (0.75 * 3.35e12) + 32 * 12e-6, rel=1e-6)


def test_a_whole_decode_step_of_an_8b_model() -> None:
    """Llama-3.1-8B on an H100, 16 sequences of 700 tokens: 15 GB of weights and 1.5 GB of cache, 7 ms with launches."""
    timer = RooflineStepTimer(forward("meta-llama/Llama-3.1-8B"))
    seconds = timer.run(RunShape(16, 16 * 700), 1).total_ps / 1e12
    reading = 15.01e9 / (0.8 * 3.35e12) + 1.47e9 / (0.75 * 3.35e12)  # 7.504e9 parameters outside the embedding
    launches = 32 * (4 * 3e-6 + 12e-6 + 4 * 3e-6)
    assert reading == pytest.approx(6.19e-3, abs=0.01e-3)
    assert seconds == pytest.approx(reading + launches, rel=0.03)


@pytest.mark.parametrize(("tp", "share"), [(2, 1 / 2), (4, 1 / 4), (8, 1 / 8)])
def test_tensor_parallelism_divides_the_work(tp: int, share: float) -> None:
    """Each of n GPUs has an n-th of the FLOPs of Llama-2-70B's matrices and, with its 8 heads, of its cache."""
    whole, part = forward("meta-llama/Llama-2-70b-hf"), forward("meta-llama/Llama-2-70b-hf", tp=tp)
    assert flops(part.rows(64)) == pytest.approx(share * flops(whole.rows(64)), rel=1e-9)
    assert flops(part.head(64)) == pytest.approx(share * flops(whole.head(64)), rel=1e-9)
    ratio = moved(part.decode(8, 8000), "attention decode") / moved(whole.decode(8, 8000), "attention decode")
    assert ratio == pytest.approx(share, rel=1e-9)


def test_all_reduces_of_a_step() -> None:
    """Two per layer and one for the embedding, each of tokens x 8192 x 2 bytes; over 4 GPUs 1.5 times that travels."""
    model = forward("meta-llama/Llama-2-70b-hf", "a100-sxm-80gb", tp=4)
    (op,) = [op for op in model.rows(100) if op.name == "all-reduce"]
    assert op.calls == 2 * 80 + 1
    assert op.cost.bytes == 100 * 8192 * 2
    assert op.cost.seconds == pytest.approx(5e-6 + 1.5 * 100 * 8192 * 2 / (0.75 * 300e9), rel=1e-9)
    assert [op for op in forward("meta-llama/Llama-2-70b-hf").rows(100) if op.name == "all-reduce"] == []


@pytest.mark.parametrize(("tokens", "touched"), [(0, 0.0), (1, 2.0), (2, 3.5), (3, 4.625), (4, 5.46875), (1000, 8.0)])
def test_expected_experts(tokens: int, touched: float) -> None:
    """Top 2 of 8: one token reaches 2, two reach 3.5 on average, 8 (1 - (3/4)^M), many reach all 8."""
    experts = Experts(4096, 14336, 8, 2, True, MatmulFormat("bf16", 2.0, 2.0, "bf16"))
    assert experts.touched(tokens) == pytest.approx(touched, rel=1e-12)


def test_mixtral_reads_the_experts_it_touches() -> None:
    """One token reads 2 of 8 experts of 3 x 4096 x 14336 in each of 32 layers, a thousand tokens all of them."""
    model = forward("mistralai/Mixtral-8x7B-v0.1")
    expert = 3 * 4096 * 14336 * 2
    assert moved(model.rows(1), "experts") == pytest.approx(32 * 2 * expert, rel=1e-3)
    activations = 2000 * (4096 * 4 + 4 * 14336)
    assert moved(model.rows(1000), "experts") == pytest.approx(32 * (8 * expert + activations), rel=1e-6)
    assert flops([op for op in model.rows(1) if op.name == "experts"]) == 32 * 2 * 2 * 3 * 4096 * 14336


def test_four_bit_weights_save_bytes_but_no_flops() -> None:
    """AWQ stores about 4.16 bits per parameter of the layers, so a decode step reads about a quarter of them."""
    plain = forward("meta-llama/Llama-2-7b-hf")
    awq = forward("meta-llama/Llama-2-7b-hf", quantization="awq")
    assert flops(awq.rows(1)) == flops(plain.rows(1))
    gemms = ("qkv", "o", "gate_up", "down")
    ratio = sum(moved(awq.rows(1), g) for g in gemms) / sum(moved(plain.rows(1), g) for g in gemms)
    assert 0.25 < ratio < 0.28
    assert moved(awq.head(1), "lm_head") == moved(plain.head(1), "lm_head")  # the LM head stays in 16 bit


def test_flash_attention_moves_keys_and_values_once() -> None:
    """Prefill of 2048 tokens with 8 key-value heads of 128: 8 MiB of cache, 32 MiB of queries and outputs, 34 GFLOP."""
    gpu = load_gpu("h100-sxm")
    heads = Heads(32, 8, 128, 128, 8 * 256 * 2, 2.0 * 32 * 256, 2.0 * 32 * 256, "bf16")
    cost = DatasheetKernels(gpu).prefill_attention(PrefillWork(2048, 2048 * 2049 // 2, 2048, 2048), heads)
    assert cost.bytes == 2**23 + 2**25
    assert cost.flops == pytest.approx(34.4e9, rel=0.01)
    assert cost.seconds == pytest.approx(11e-6 + cost.flops / (0.5 * 989.4e12), rel=1e-3)
