"""The operators of a forward pass: which there are, how often they run, and in which format they multiply."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from sim.cost.formats import matmul_format
from sim.cost.ops import ForwardPass, OpCost, spans_of
from sim.cost.roofline import DatasheetKernels
from sim.cost.shape import Span
from sim.specs.hardware import load_gpu
from sim.specs.hf_config import load_model
from sim.specs.layout import Layout
from sim.specs.quantization import QuantScheme
from sim.specs.quantization_keys import parse_quantization


def forward(model: str, *, tp: int = 1, hardware: str = "h100-sxm", quantization: str | None = None) -> ForwardPass:
    gpu, architecture = load_gpu(hardware), load_model(model)
    scheme = parse_quantization(quantization, architecture)
    return ForwardPass(architecture, scheme, gpu, DatasheetKernels(gpu), Layout(tp=tp))


def calls(ops: list[OpCost]) -> dict[str, int]:
    counts = Counter[str]()
    for op in ops:
        counts[op.name] += op.calls
    return dict(counts)


def test_operators_of_a_dense_model() -> None:
    """Each of 32 layers has four products, two norms, rotary, cache write and activation; the head runs once."""
    model = forward("meta-llama/Llama-3.1-8B")
    assert calls(model.rows(5)) == {
        "qkv": 32, "o": 32, "gate_up": 32, "down": 32, "norm + residual": 64, "rotary + cache write": 32,
        "activation": 32, "embed": 1,
    }  # fmt: skip
    assert calls(model.head(5)) == {"lm_head": 1, "sampling": 1}
    assert calls(model.decode(5, 50)) == {"attention decode": 32}
    assert calls(model.prefill([(0, 5)])) == {"attention prefill": 32}


def test_operators_of_a_mixture_of_experts() -> None:
    """Mixtral routes in all of its 32 layers instead of a dense MLP."""
    rows = calls(forward("mistralai/Mixtral-8x7B-v0.1").rows(5))
    assert rows["experts"] == rows["router"] == rows["routing"] == 32
    assert "gate_up" not in rows


def test_shared_experts_activate_beside_the_others() -> None:
    """DeepSeek-V2-Lite: one dense layer of 27, and an expert in each of the 26 others that sees all tokens."""
    assert calls(forward("deepseek-ai/DeepSeek-V2-Lite").rows(5))["activation"] == 27


def test_routing_reads_scores_and_moves_rows() -> None:
    """Mixtral: eight 32-bit scores per token, and two rows of 4096 16-bit elements out and in again."""
    (routing,) = (op for op in forward("mistralai/Mixtral-8x7B-v0.1").rows(5) if op.name == "routing")
    assert routing.cost.bytes == 5 * (8 * 4 + 2 * 2 * 4096 * 2)


def test_activations_are_cut_over_the_gpus() -> None:
    """Each GPU activates what its own part of the matrices yields."""
    whole, half = (
        [op.cost.bytes for op in forward("meta-llama/Llama-3.1-8B", tp=tp).rows(5) if op.name == "activation"]
        for tp in (1, 2)
    )
    assert whole == [2 * half[0]]


def test_tensor_parallelism_adds_collectives() -> None:
    """Two all-reduces per layer, one for the embedding, and a gather of the logits; alone there is none."""
    split = forward("meta-llama/Llama-3.1-8B", tp=2)
    assert calls(split.rows(5))["all-reduce"] == 2 * 32 + 1
    assert calls(split.head(5))["logits gather"] == 1
    assert "all-reduce" not in calls(forward("meta-llama/Llama-3.1-8B").rows(5))


def test_layers_are_sorted_by_how_far_they_see() -> None:
    """gpt-oss alternates: 18 layers see a window of 128 tokens, 18 everything."""
    architecture = load_model("openai/gpt-oss-120b")
    assert spans_of(architecture) == (Span(128),)
    model = forward("openai/gpt-oss-120b")
    assert calls(model.decode(4, 4000)) == {"attention decode": 18}
    assert calls(model.decode(4, 4 * 128, 0)) == {"attention decode": 18}
    assert calls(model.prefill([(0, 1000)])) == {"attention prefill": 36}


def test_chunked_attention_and_sparse_attention_have_spans() -> None:
    """Llama-4 sees its chunk of 8192 tokens; DeepSeek-V3.2 the 2048 tokens its indexer picks, which itself sees all."""
    assert spans_of(load_model("meta-llama/Llama-4-Scout-17B-16E-Instruct")) == (Span(8192, chunked=True),)
    assert spans_of(load_model("deepseek-ai/DeepSeek-V3.2")) == (Span(2048),)
    assert spans_of(load_model("meta-llama/Llama-3.1-8B")) == ()
    model = forward("deepseek-ai/DeepSeek-V3.2", hardware="h200-sxm", tp=8)
    assert calls(model.decode(1, 10_000)) == {"attention decode": 61}
    assert calls(model.decode(1, 2048, 0)) == {"attention decode": 61}


def test_windowed_layers_stop_paying() -> None:
    """Behind a full window, more context costs the layers with full attention only."""
    model = forward("openai/gpt-oss-120b")
    full = [sum(op.cost.bytes * op.calls for op in model.decode(1, c)) for c in (1000, 2000)]
    assert full[1] > full[0]
    assert Span(128).visible(1000) == Span(128).visible(2000) == 127  # and the token itself


def test_states_of_linear_attention_do_not_grow() -> None:
    """Gated DeltaNet layers read and write a state of fixed size per sequence, however long its context."""
    model = forward("Qwen/Qwen3.5-35B-A3B")
    short, long = model.decode(8, 800), model.decode(8, 800_000)
    states = [[op for op in ops if op.name == "state update"] for ops in (short, long)]
    assert states[0] == states[1] != []
    assert sum(op.calls for op in states[0]) == 30  # three of four layers of 40
    double = [op for op in model.decode(16, 800) if op.name == "state update"]
    assert double[0].cost.bytes == 2 * states[0][0].cost.bytes


def test_latent_attention_reads_the_latent_once() -> None:
    """DeepSeek-V3 caches 512 + 64 elements per token and layer, which all heads of a GPU read together."""
    model = forward("deepseek-ai/DeepSeek-V3", hardware="h200-sxm", tp=8)
    ops = model.decode(1, 100_000)
    per_token = sum(op.calls * op.cost.bytes for op in ops) / 100_001 / 61
    assert per_token == pytest.approx(576 * 2, rel=0.01)


def test_parts_scale_with_what_they_depend_on() -> None:
    """Rows with tokens, the head with samples, prefill with chunks: none of them with anything else."""
    model = forward("meta-llama/Llama-3.1-8B")
    for part in (model.rows, model.head):
        one, two = (sum(op.calls * op.cost.flops for op in part(n)) for n in (100, 200))
        assert two == 2 * one
    assert model.rows(64) == model.rows(64)


@pytest.mark.parametrize("model", ["openai/gpt-oss-20b", "Qwen/Qwen3.5-35B-A3B", "deepseek-ai/DeepSeek-V2-Lite"])
def test_the_short_way_to_price_chunks_is_the_sum_of_the_operators(model: str) -> None:
    """What the hot path adds up without naming operators is what the breakdown shows, for any chunks."""
    found = forward(model)
    for chunks in ([(0, 1)], [(0, 4000)], [(100, 50), (9000, 700), (0, 3)]):
        assert found.prefill_seconds(chunks) == pytest.approx(
            sum(op.seconds for op in found.prefill(chunks)), rel=1e-12
        )


def test_formats_a_gpu_lacks_are_expanded() -> None:
    """FP8 weights on an A100 are stored in 8 bit and multiplied in 16, as vLLM does; an H100 multiplies them as FP8."""
    architecture = load_model("meta-llama/Llama-3.1-8B")
    scheme = parse_quantization("fp8", architecture)
    hopper, ampere = (matmul_format(scheme, "qkv", load_gpu(name)) for name in ("h100-sxm", "a100-sxm-80gb"))
    assert (hopper.compute, hopper.weight_bytes, hopper.activation_bytes) == ("fp8", 1.0, 1.0)
    assert (ampere.compute, ampere.weight_bytes, ampere.activation_bytes) == ("bf16", 1.0, 2.0)


def test_weight_only_formats_multiply_in_sixteen_bit() -> None:
    """AWQ saves bytes, not FLOPs; on a V100 the 16-bit type is FP16."""
    architecture = replace(load_model("meta-llama/Llama-2-7b-hf"), dtype="float16")
    scheme = parse_quantization("awq", architecture)
    form = matmul_format(scheme, "gate_up", load_gpu("v100-sxm-32gb"))
    assert form.compute == "fp16"
    assert form.weight_bytes < 0.6
    assert matmul_format(scheme, "lm_head", load_gpu("v100-sxm-32gb")).weight_bytes == 2.0


def test_an_fp8_cache_halves_the_bytes_of_attention() -> None:
    """The format of the KV cache is independent of weights and activations."""
    gpu, architecture = load_gpu("h100-sxm"), load_model("meta-llama/Llama-3.1-8B")
    bytes_ = []
    for kv in (None, "fp8"):
        scheme = parse_quantization(None, architecture, kv_cache_dtype=kv)
        ops = ForwardPass(architecture, scheme, gpu, DatasheetKernels(gpu)).decode(1, 10**6)
        bytes_.append(sum(op.calls * op.cost.bytes for op in ops))
    assert bytes_[1] / bytes_[0] == pytest.approx(0.5, rel=1e-3)


def test_seconds_of_an_operator_count_all_its_calls() -> None:
    """An operator that runs in 32 layers takes 32 times the time of one."""
    op = forward("meta-llama/Llama-3.1-8B").rows(1)[0]
    assert op.seconds == op.calls * op.cost.seconds


@pytest.mark.parametrize("model", ["meta-llama/Llama-3.1-8B", "openai/gpt-oss-20b", "Qwen/Qwen3-30B-A3B-FP8"])
def test_every_operator_takes_time(model: str) -> None:
    """No operator is free and none has negative work."""
    found = forward(model)
    scheme = QuantScheme.from_checkpoint(load_model(model))
    assert scheme.name
    for op in found.rows(3) + found.head(2) + found.decode(2, 99) + found.prefill([(10, 3)]):
        assert op.calls > 0
        assert op.cost.seconds > 0
        assert op.cost.flops >= 0 < op.cost.bytes
