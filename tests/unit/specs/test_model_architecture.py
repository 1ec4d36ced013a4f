"""Architectures: matrices, parameters, weight bytes per GPU and KV cache bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.specs.architecture import (
    FullAttention,
    Indexer,
    LatentAttention,
    LayerGroup,
    LinearAttention,
    Mlp,
    ModelArchitecture,
)
from sim.specs.hf_config import list_models, load_model
from sim.specs.layout import Layout

POWERS = st.sampled_from([1, 2, 4, 8, 16])
MODELS = st.sampled_from(list_models())

LLAMA_8B = ModelArchitecture(
    name="llama",
    hidden_size=4096,
    vocab_size=128256,
    layers=(LayerGroup(32, FullAttention(32, 8, 128, 128), Mlp("dense", 14336)),),
    max_model_len=8192,
)
TINY_MOE = ModelArchitecture(
    name="moe",
    hidden_size=64,
    vocab_size=100,
    layers=(LayerGroup(2, FullAttention(4, 2, 16, 16), Mlp("moe", 32, num_experts=8, experts_per_token=2)),),
)


def shapes(model: ModelArchitecture) -> dict[str, tuple[int, int, int]]:
    return {m.role: (m.k, m.n, m.count) for m in model.matrices() if m.is_gemm}


def test_gemms_of_a_dense_model() -> None:
    """A Llama has fused QKV and gate-up projections in every layer and one LM head."""
    assert shapes(LLAMA_8B) == {
        "qkv": (4096, (32 + 2 * 8) * 128, 32),
        "o": (4096, 4096, 32),
        "gate_up": (4096, 2 * 14336, 32),
        "down": (14336, 4096, 32),
        "lm_head": (4096, 128256, 1),
    }


def test_two_matrix_mlp_is_narrower() -> None:
    """An MLP without a gate has one up projection of the intermediate width."""
    up, down = Mlp("dense", 16, gated=False).matrices(4)
    assert (up.k, up.n, down.k, down.n) == (4, 16, 16, 4)


def test_experts_are_counted_per_layer_and_per_token() -> None:
    """Experts exist layers x experts times, and a token passes through top-k of them."""
    expert = next(m for m in TINY_MOE.matrices() if m.role == "expert_gate_up")
    assert (expert.count, expert.parameters, expert.active_parameters) == (16, 16 * 64 * 64, 4 * 64 * 64)
    difference = TINY_MOE.num_parameters - TINY_MOE.active_parameters
    assert difference == 2 * (8 - 2) * 3 * 64 * 32


def test_tied_lm_head_is_multiplied_but_not_stored() -> None:
    """Tying removes one vocabulary matrix from the bytes and none from the GEMMs."""
    tied = replace(LLAMA_8B, tie_word_embeddings=True)
    assert LLAMA_8B.num_parameters - tied.num_parameters == 4096 * 128256
    assert shapes(tied) == shapes(LLAMA_8B)


def test_latent_attention_projects_through_ranks() -> None:
    """MLA lists its down- and up-projections, and a plain query projection when queries have no rank."""
    attention = LatentAttention(16, 512, None, 128, 64, 128)
    assert {(m.role, m.k, m.n) for m in attention.matrices(2048) if m.is_gemm} == {
        ("q", 2048, 16 * 192),
        ("kv_a", 2048, 576),
        ("kv_b", 512, 16 * 256),
        ("o", 16 * 128, 2048),
    }
    ranked = {m.role for m in replace(attention, q_lora_rank=256).matrices(2048)}
    assert {"q_a", "q_b"} <= ranked
    assert "q" not in ranked


def test_kv_heads_are_replicated_beyond_their_number() -> None:
    """With more GPUs than KV heads, each GPU projects one whole KV head."""
    qkv = next(m for m in LLAMA_8B.matrices() if m.role == "qkv")
    assert qkv.per_gpu(8) == (4096, (4 + 2) * 128)
    assert qkv.per_gpu(16) == (4096, (2 + 2) * 128)


def test_expert_parallelism_holds_whole_experts() -> None:
    """Tensor and expert parallelism store the same share of the experts, cut differently."""
    expert = next(m for m in TINY_MOE.matrices() if m.role == "expert_gate_up")
    assert (
        expert.parameters_per_gpu(Layout(tp=4))
        == expert.parameters_per_gpu(Layout(tp=4, ep=4))
        == expert.parameters // 4
    )
    assert expert.per_gpu(4) == (64, 16)
    assert expert.parameters_per_gpu(Layout(tp=4, dp=4, ep=8)) == expert.parameters // 16


def test_pipeline_stages_share_the_layers() -> None:
    """The fullest of four stages has a quarter of the layers and one of the two vocabulary matrices."""
    layers = LLAMA_8B.weight_bytes() - 2 * (2 * 4096 * 128256 + 4096)
    assert LLAMA_8B.weight_bytes(layout=Layout(pp=4)) == layers // 4 + 2 * (4096 * 128256 + 4096)


def test_norms_are_replicated() -> None:
    """Tensor parallelism divides the matrices of a model and repeats its norms."""
    norms = 2 * sum(m.parameters for m in LLAMA_8B.matrices() if m.role == "norm")
    assert LLAMA_8B.weight_bytes(layout=Layout(tp=2)) == (LLAMA_8B.weight_bytes() - norms) // 2 + norms


@given(MODELS, POWERS)
def test_tensor_parallel_gpus_hold_the_whole_model_together(model: ModelArchitecture, tp: int) -> None:
    """Cutting a model over GPUs loses no weights, and no GPU holds more than before."""
    one, share = model.weight_bytes(), model.weight_bytes(layout=Layout(tp=tp))
    assert one <= share * tp
    assert share <= one


@given(MODELS, POWERS, POWERS)
def test_expert_and_pipeline_parallelism_never_need_more(model: ModelArchitecture, ep: int, pp: int) -> None:
    """Spreading experts or layers over more GPUs never raises the bytes of one."""
    assert model.weight_bytes(layout=Layout(dp=ep, ep=ep)) <= model.weight_bytes()
    assert model.weight_bytes(layout=Layout(pp=pp)) <= model.weight_bytes()


@given(MODELS, POWERS, POWERS)
def test_kv_cache_never_grows_with_parallelism(model: ModelArchitecture, tp: int, more: int) -> None:
    """More GPUs never mean more KV cache bytes on one of them, and together they hold all of it."""
    few, many = model.kv_bytes_per_token(tp=tp), model.kv_bytes_per_token(tp=tp * more)
    assert many <= few
    assert many * tp * more >= model.kv_bytes_per_token()
    assert model.kv_bytes_per_sequence_fixed(tp=tp * more) <= model.kv_bytes_per_sequence_fixed(tp=tp)


@given(MODELS, st.integers(1, 300_000), st.integers(0, 5_000))
def test_kv_bytes_grow_with_context_below_the_bound(model: ModelArchitecture, context: int, more: int) -> None:
    """A longer context never needs less cache, and per-token plus fixed bytes bound it from above."""
    assert model.kv_bytes(context) <= model.kv_bytes(context + more)
    assert model.kv_bytes(context) <= context * model.kv_bytes_per_token() + model.kv_bytes_per_sequence_fixed()


@given(MODELS)
def test_active_parameters_are_a_part(model: ModelArchitecture) -> None:
    """Only mixture-of-experts models activate fewer parameters than they have."""
    assert (model.active_parameters < model.num_parameters) == model.is_moe


def test_grouped_query_cache_divides_by_its_heads_only() -> None:
    """A cache with 8 KV heads stops shrinking at 8 GPUs, a latent cache does not shrink at all."""
    assert LLAMA_8B.kv_bytes_per_token(tp=8) == LLAMA_8B.kv_bytes_per_token(tp=64) == 131_072 // 8
    deepseek = load_model("deepseek-ai/DeepSeek-V3")
    assert deepseek.kv_bytes_per_token(tp=8) == deepseek.kv_bytes_per_token()


def test_pipeline_stages_cache_their_own_layers() -> None:
    """A stage of a pipeline caches only its own layers."""
    assert LLAMA_8B.kv_bytes_per_token(pp=4) == 131_072 // 4


def test_windowed_layers_stop_growing() -> None:
    """gpt-oss caches half its layers in full and 128 tokens of the other half."""
    model = load_model("openai/gpt-oss-120b")
    assert model.windows == (128,)
    assert model.kv_bytes(100) == 100 * 2 * 36_864
    assert model.kv_bytes(10_000) == 10_000 * 36_864 + 4_718_592


def test_a_model_of_windows_only_still_has_bytes_per_token() -> None:
    """When every layer is windowed the cache grows per token up to the window, and nothing is fixed."""
    model = load_model("mistralai/Mistral-7B-v0.1")
    assert model.kv_bytes_per_token() == 131_072
    assert model.kv_bytes_per_sequence_fixed() == 0
    assert model.kv_bytes(30_000) == 4096 * 131_072


def test_linear_attention_keeps_a_state_instead_of_a_cache() -> None:
    """Linear layers cost the same bytes at any context, divided over tensor-parallel GPUs."""
    layer = LinearAttention("gated_delta", 16, 32, 128, 128, conv_kernel=4, state_bytes_per_element=4)
    assert layer.kv_bytes_per_token() == 0
    assert layer.state_bytes() == 32 * 128 * 128 * 4 + 3 * (2 * 16 * 128 + 32 * 128) * 2
    assert layer.state_bytes(tp=2) == layer.state_bytes() // 2


def test_sparse_attention_caches_its_index_keys_in_fp8() -> None:
    """The indexer adds 128 FP8 elements and one FP32 scale per token, unless the layer shares another's choice."""
    dense = LatentAttention(128, 512, 1536, 128, 64, 128)
    indexed = replace(dense, indexer=Indexer(2048, 64, 128))
    shared = replace(dense, indexer=Indexer(2048, 64, 128, shared=True))
    assert indexed.kv_bytes_per_token(1) - dense.kv_bytes_per_token(1) == 132
    assert shared.kv_bytes_per_token() == dense.kv_bytes_per_token()


@pytest.mark.parametrize("bytes_per_element", [1, 2])
def test_cache_format_scales_the_cache(bytes_per_element: int) -> None:
    """One byte per element halves the cache of two."""
    assert LLAMA_8B.kv_bytes_per_token(bytes_per_element) == 65_536 * bytes_per_element


def test_a_bounded_cache_is_a_window_on_every_layer() -> None:
    """A bound of 512 tokens: the whole of Llama's cache stops there, gpt-oss keeps its windows of 128 beside it."""
    llama = LLAMA_8B.bounded(512)
    assert (llama.kv_limit_tokens, llama.kv_bytes(10_000)) == (512, 512 * 131_072)
    assert llama.kv_bytes_per_token() == LLAMA_8B.kv_bytes_per_token()
    assert llama.bounded(1000) == llama
    full = load_model("openai/gpt-oss-120b")
    oss = full.bounded(512)
    assert (full.kv_limit_tokens, oss.kv_limit_tokens, oss.windows) == (None, 512, (128, 512))
    assert oss.kv_bytes_per_token() == full.kv_bytes_per_token() == 36_864
    assert oss.kv_bytes_per_sequence_fixed() == full.kv_bytes_per_sequence_fixed() == 4_718_592
    assert load_model("deepseek-ai/DeepSeek-V3").bounded(512).kv_limit_tokens == 512
