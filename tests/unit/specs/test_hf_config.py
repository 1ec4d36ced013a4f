"""Reading Hugging Face config.json files: key names, families, traps, the catalogue, and complaints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.errors import ConfigError
from sim.specs.architecture import Attention, FullAttention, LatentAttention, LinearAttention, Mlp, ModelArchitecture
from sim.specs.hf_config import architecture_from_hf, list_models, load_model

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 12,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "hidden_act": "silu",
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}


def read(**changes: Any) -> ModelArchitecture:
    """The Llama above with some keys changed; None removes a key."""
    merged = {**LLAMA, **changes}
    return architecture_from_hf({k: v for k, v in merged.items() if v is not None}, "test-model")


def attentions(model: ModelArchitecture) -> list[tuple[int, Attention]]:
    return [(group.count, group.attention) for group in model.layers if group.attention]


def full(model: ModelArchitecture) -> FullAttention:
    found = model.layers[0].attention
    assert isinstance(found, FullAttention)
    return found


def mlps(model: ModelArchitecture) -> list[tuple[int, Mlp]]:
    return [(group.count, group.mlp) for group in model.layers if group.mlp]


def windows(model: ModelArchitecture) -> dict[int | None, int]:
    found: dict[int | None, int] = {}
    for count, attention in attentions(model):
        found[attention.limit_tokens] = found.get(attention.limit_tokens, 0) + count
    return found


# names of keys


def test_head_dim_is_a_quotient_only_when_not_written() -> None:
    """An explicit head_dim wins over hidden_size / heads."""
    assert full(read()).head_dim == 8
    assert full(read(head_dim=32)).head_dim == 32
    assert load_model("mistralai/Mistral-Nemo-Instruct-2407").matrices()[0].n == (32 + 2 * 8) * 128


def test_missing_kv_heads_mean_as_many_as_query_heads() -> None:
    """Without num_key_value_heads a model is multi-head, not multi-query."""
    assert full(read(num_key_value_heads=None)).num_kv_heads == 8


def test_gpt2_key_names() -> None:
    """GPT-2's n_layer, n_embd, n_head and n_positions are understood, and its two-matrix MLP of 4 x the width."""
    model = load_model("openai-community/gpt2")
    assert (model.num_layers, model.hidden_size, model.max_model_len) == (12, 768, 1024)
    (_, mlp) = mlps(model)[0]
    assert (mlp.intermediate_size, mlp.gated) == (3072, False)


def test_falcon_multi_query_beats_its_kv_head_key() -> None:
    """Falcon-7B writes 71 KV heads beside multi_query; Falcon-40B's new decoder means the number it writes."""
    falcon = {"model_type": "falcon", "multi_query": True, "num_kv_heads": 8, "num_key_value_heads": None}
    assert full(read(**falcon)).num_kv_heads == 1
    assert full(read(**falcon, new_decoder_architecture=True)).num_kv_heads == 8
    assert full(load_model("tiiuae/falcon-40b")).num_kv_heads == 8


@pytest.mark.parametrize(
    ("key", "value"), [("num_local_experts", 4), ("num_experts", 4), ("n_routed_experts", 4), ("moe_num_experts", 4)]
)
@pytest.mark.parametrize("per_token", ["num_experts_per_tok", "top_k_experts", "experts_per_token", "moe_top_k"])
def test_names_of_expert_counts(key: str, value: int, per_token: str) -> None:
    """Every family's key for the number of experts, total and per token, means the same."""
    (_, mlp) = mlps(read(**{key: value, per_token: 2}))[0]
    assert (mlp.kind, mlp.num_experts, mlp.experts_per_token) == ("moe", 4, 2)


def test_text_config_is_where_a_multimodal_model_keeps_its_language_model() -> None:
    """Keys inside text_config win, and outer keys fill what it lacks."""
    outer = {"model_type": "llava", "tie_word_embeddings": True, "hidden_size": 7, "text_config": LLAMA}
    model = architecture_from_hf(outer, "multimodal")
    assert (model.hidden_size, model.tie_word_embeddings, model.family) == (64, True, "llama")


@pytest.mark.parametrize("place", ["top", "text"])
def test_quantization_config_may_sit_inside_or_outside(place: str) -> None:
    """The quantisation of a multimodal checkpoint is found at either level."""
    quantised = {"quantization_config": {"quant_method": "fp8"}}
    inner, outer = (quantised, {}) if place == "text" else ({}, quantised)
    model = architecture_from_hf({**outer, "text_config": {**LLAMA, **inner}}, "m")
    assert model.quantization == {"quant_method": "fp8"}


def test_dtype_has_two_names() -> None:
    """Newer files write dtype for torch_dtype; float32 checkpoints are served at 16 bits."""
    assert read(torch_dtype=None, dtype="float16").dtype == "float16"
    assert read(torch_dtype="float32").dtype_bytes == 2


# MLPs and experts


def test_activation_decides_between_two_and_three_matrices() -> None:
    """Families not known by name have a gated MLP when their activation is silu."""
    assert mlps(read(model_type="new"))[0][1].gated
    assert not mlps(read(model_type="new", hidden_act="gelu"))[0][1].gated


def test_expert_width_is_the_moe_width_where_there_is_one() -> None:
    """DeepSeek's and Qwen's intermediate_size is the width of dense layers, Mixtral's that of an expert."""
    assert mlps(read(**MOE))[0][1].intermediate_size == 128
    assert mlps(read(**MOE, moe_intermediate_size=32))[0][1].intermediate_size == 32


def test_llama4_alternates_wide_dense_layers_and_experts() -> None:
    """Maverick has experts in every second layer, always with a shared one, and a wider MLP in the others."""
    found = {mlp.kind: (count, mlp) for count, mlp in mlps(load_model("meta-llama/Llama-4-Maverick-17B-128E-Instruct"))}
    assert found["dense"][1].intermediate_size == 16384
    assert found["moe"][1].intermediate_size == found["moe"][1].shared_intermediate_size == 8192
    moe = sum(c for c, m in mlps(load_model("meta-llama/Llama-4-Maverick-17B-128E-Instruct")) if m.kind == "moe")
    assert moe == 24


def test_first_layers_stay_dense() -> None:
    """first_k_dense_replace keeps the first layers dense, and n_shared_experts counts experts of the routed width."""
    model = read(**MOE, first_k_dense_replace=3, moe_intermediate_size=32, n_shared_experts=2)
    assert [(count, mlp.kind) for count, mlp in mlps(model)] == [(3, "dense"), (9, "moe")]
    assert mlps(model)[1][1].shared_intermediate_size == 64


def test_sparse_step_and_dense_exceptions() -> None:
    """Qwen's decoder_sparse_step makes every n-th layer sparse, except those in mlp_only_layers."""
    model = read(**MOE, decoder_sparse_step=2, mlp_only_layers=[1])
    assert {mlp.kind: count for count, mlp in mlps(model)} == {"dense": 7, "moe": 5}


def test_moe_layers_may_be_listed() -> None:
    """moe_layer_freq as a list, and mlp_layer_types, say it layer by layer."""
    by_freq = read(**MOE, moe_layer_freq=[0] * 4 + [1] * 8)
    by_type = read(**MOE, mlp_layer_types=["dense"] * 4 + ["sparse"] * 8)
    assert [count for count, _ in mlps(by_freq)] == [count for count, _ in mlps(by_type)] == [4, 8]


# attention of each layer


def test_latent_attention_is_recognised_by_its_rank() -> None:
    """kv_lora_rank means MLA, whatever num_key_value_heads says; q_lora_rank may be null."""
    attention = load_model("deepseek-ai/DeepSeek-V2-Lite").layers[0].attention
    assert isinstance(attention, LatentAttention)
    assert (attention.latent_dim, attention.q_lora_rank, attention.head_dim) == (576, None, 192)


def test_qwen_windows_need_their_switch() -> None:
    """sliding_window is ignored where use_sliding_window is false, which is Qwen's default."""
    assert windows(read(model_type="qwen2", sliding_window=512)) == {None: 12}
    on = read(model_type="qwen2", sliding_window=512, use_sliding_window=True, max_window_layers=4)
    assert windows(on) == {None: 4, 512: 8}


def test_mistral_windows_need_none() -> None:
    """In other families a sliding_window holds for all layers."""
    assert windows(read(sliding_window=512)) == {512: 12}


def test_layer_types_are_followed() -> None:
    """A layer_types list decides per layer."""
    types = ["sliding_attention", "full_attention"] * 6
    assert windows(read(sliding_window=512, layer_types=types)) == {512: 6, None: 6}


def test_every_nth_layer_sees_everything() -> None:
    """sliding_window_pattern 6 (Gemma-3) leaves every sixth layer full; Gemma-2's pattern of 2 needs no key."""
    assert windows(read(sliding_window=512, sliding_window_pattern=6)) == {512: 10, None: 2}
    assert windows(read(sliding_window=512, sliding_window_pattern="LLLG")) == {512: 9, None: 3}
    assert windows(read(model_type="gemma2", sliding_window=512)) == {512: 6, None: 6}


def test_llama4_chunks_leave_every_fourth_layer_full() -> None:
    """attention_chunk_size limits the layers with rotary position only."""
    assert windows(read(attention_chunk_size=256)) == {256: 9, None: 3}


def test_hybrid_models_have_linear_layers() -> None:
    """full_attention_interval 4 makes three of four layers linear, with a state in its own precision."""
    model = load_model("Qwen/Qwen3.5-35B-A3B")
    found = {attention.kind: (count, attention) for count, attention in attentions(model)}
    assert {kind: count for kind, (count, _) in found.items()} == {"linear": 30, "full": 10}
    assert list(found) == ["linear", "full"]  # the fourth layer is the first full one
    linear = found["linear"][1]
    assert isinstance(linear, LinearAttention)
    assert linear.state_bytes_per_element == 4


def test_nemotron_letters() -> None:
    """hybrid_override_pattern gives Mamba, attention, MLP and expert layers one letter each."""
    keys = {
        "model_type": "nemotron_h",
        "num_hidden_layers": 6,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
    }
    model = read(**keys, hybrid_override_pattern="MEM*-E")
    kinds = {(g.attention.kind if g.attention else None, g.mlp.kind if g.mlp else None): g.count for g in model.layers}
    assert kinds == {("linear", None): 2, (None, "moe"): 2, ("full", None): 1, (None, "dense"): 1}
    assert read(**keys, layers_block_type=["mamba", "moe", "mamba", "attention", "mlp", "moe"]).layers == model.layers


def test_gemma4_global_layers_have_their_own_shape() -> None:
    """Global layers have other heads than windowed ones, and no value projection."""
    found = {a.limit_tokens: a for _, a in attentions(load_model("google/gemma-4-26B-A4B"))}
    assert found[None].kv_bytes_per_token() == 2 * 2 * 512 * 2
    assert found[1024].kv_bytes_per_token() == 2 * 8 * 256 * 2
    qkv = next(m for m in found[None].matrices(2816) if m.role == "qkv")
    assert qkv.n == (16 + 2) * 512


def test_indexers_may_be_shared() -> None:
    """GLM-5.2 runs its indexer in the first three layers and then in every fourth."""
    model = load_model("zai-org/GLM-5.2")
    own = sum(c for c, a in attentions(model) if isinstance(a, LatentAttention) and a.indexer and not a.indexer.shared)
    assert own == 21


# context length


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        (None, 4096),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 512}, 4096),
        ({"rope_type": "linear", "factor": 2.0}, 8192),
        ({"type": "dynamic", "factor": 4.0}, 16384),
        ({"type": "yarn", "factor": 40, "original_max_position_embeddings": 1024}, 40960),
    ],
)
def test_context_length(rope: dict[str, Any] | None, length: int) -> None:
    """Rope scaling stretches the context where the family's number does not already include it."""
    assert read(rope_scaling=rope).max_model_len == length


@pytest.mark.parametrize(
    ("name", "length"),
    [("Llama-3.1-8B", 131_072), ("Llama-2-7b", 4096), ("opt-13b", 2048), ("gpt-oss-20b", 131_072)],
)
def test_catalogue_context_lengths(name: str, length: int) -> None:
    """Well-known context lengths come out (the values are from memory)."""
    assert load_model(name).max_model_len == length


# names and paths


@pytest.mark.parametrize(
    "spelling",
    ["meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b", "META-LLAMA/llama-2-7B", "Llama-2-7b", "llama-2-7b-hf"],
)
def test_spellings_of_one_id(spelling: str) -> None:
    """Case, a -hf suffix and a missing organisation do not matter."""
    assert load_model(spelling).name == "meta-llama/Llama-2-7b-hf"


def test_metas_former_prefix() -> None:
    """Meta-Llama-3.1-8B and Llama-3.1-8B are the same model."""
    assert load_model("meta-llama/Meta-Llama-3.1-8B").name == "meta-llama/Llama-3.1-8B"
    assert load_model("meta-llama/Llama-3-8B").name == "meta-llama/Meta-Llama-3-8B"


def test_unknown_name_is_answered_with_near_ones() -> None:
    """A wrong id names its nearest neighbours and says that a path works too."""
    with pytest.raises(ConfigError, match=r"config\.json works too.*nearest first: meta-llama/Llama-3\.1-8B"):
        load_model("meta-llama/Llama-3.1-9B")


def test_ambiguous_short_name_is_refused() -> None:
    """A short name that two organisations use is answered with both ids."""
    with pytest.raises(ConfigError, match=r"several models.*GLM-5.*GLM-5"):
        load_model("GLM-5")


def test_path_to_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, its directory, and a path relative to the scenario all lead to the same architecture."""
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    for model in (
        load_model(str(folder)),
        load_model(str(folder / "config.json")),
        load_model("my-model", beside=tmp_path / "scenario.yaml"),
    ):
        assert (model.name, model.layers) == ("my-model", read().layers)


def test_second_quantisation_file_is_read(tmp_path: Path) -> None:
    """NVIDIA's hf_quant_config.json beside config.json counts as its quantisation."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    quantization = load_model(str(tmp_path)).quantization
    assert quantization == {"quant_method": "modelopt", "quantization": {"quant_algo": "FP8"}}


@pytest.mark.parametrize("name", ["./nowhere", "missing/config.json", "~/nowhere-at-all"])
def test_path_to_nowhere(name: str) -> None:
    """A path that leads nowhere is called that, not an unknown id."""
    with pytest.raises(ConfigError, match=r"no such config\.json"):
        load_model(name)


@pytest.mark.parametrize(("text", "problem"), [("{", "not valid JSON"), ("[1]", "must be a JSON object")])
def test_broken_file(tmp_path: Path, text: str, problem: str) -> None:
    """A file that is not a JSON object is refused by name."""
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"config\.json.*{problem}"):
        load_model(str(path))


@pytest.mark.parametrize(
    "key", ["num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"]
)
def test_missing_key_is_named(key: str) -> None:
    """A config without a key it needs is refused in one line with the model's name and the key."""
    with pytest.raises(ConfigError, match=rf"^test-model: {key}: is required but missing$"):
        read(**{key: None})


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"hidden_size": "big"}, "hidden_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"num_attention_heads": 7}, "head_dim"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"torch_dtype": "int3"}, "torch_dtype"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["magic"] * 12}, "layer_types"),
        ({"hybrid_override_pattern": "MX"}, "hybrid_override_pattern"),
        ({"num_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok"),
        ({"num_experts": 4}, "num_experts_per_tok"),
        ({"kv_lora_rank": 512}, "qk_nope_head_dim"),
        ({"compress_ratios": [4]}, "compress_ratios"),
    ],
)
def test_contradictions_are_named(changes: dict[str, Any], key: str) -> None:
    """A value that cannot be right is refused with its key, and no other exception escapes."""
    with pytest.raises(ConfigError) as caught:
        read(**changes)
    assert caught.value.key == key


WORDS = st.sampled_from(["rope_type", "yarn", "factor", "M", "mamba", "gpt2", "falcon"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3) | inner.map(lambda x: [x] * 12)
    ),
    max_leaves=4,
)
KEYS = st.sampled_from(
    [
        *LLAMA,
        "num_experts",
        "num_experts_per_tok",
        "layer_types",
        "sliding_window",
        "sliding_window_pattern",
        "kv_lora_rank",
        "head_dim",
        "index_topk",
        "mlp_only_layers",
        "rope_scaling",
        "hybrid_override_pattern",
        "layers_block_type",
        "text_config",
        "quantization_config",
    ]
)


@settings(max_examples=300)
@given(st.dictionaries(KEYS, JSON, max_size=4))
def test_any_config_is_read_or_refused(changes: dict[str, Any]) -> None:
    """Whatever a file says, the answer is an architecture or a ConfigError."""
    try:
        model = architecture_from_hf({**LLAMA, **changes}, "fuzz")
    except ConfigError:
        return
    assert model.num_parameters > 0


def test_catalogue_is_sound() -> None:
    """Every model of the catalogue loads by its id and is what its name says."""
    models = list_models()
    assert len(models) == len({m.name for m in models}) >= 90
    for model in models:
        assert load_model(model.name) == model
        assert model.max_model_len >= 1024


MEASURED = Path(__file__).resolve().parents[4] / "shared" / "measurements" / "serving" / "models.json"


@pytest.mark.skipif(not MEASURED.exists(), reason="the measurement tables are not part of the project")
def test_measured_models_are_in_the_catalogue() -> None:
    """Every model with published serving measurements is known by its id, with the same sizes."""
    for name, facts in json.loads(MEASURED.read_text()).items():
        model = load_model(name)
        assert model.name == name
        assert (model.num_layers, model.hidden_size) == (facts["num_hidden_layers"], facts["hidden_size"])
        assert model.vocab_size == facts["vocab_size"]
        moe = next((m for _, m in mlps(model) if m.kind == "moe"), None)
        assert (moe.num_experts if moe else None) == facts.get("num_experts")
