"""Sizes against published ones: tensor bytes of checkpoints, parameter counts, and KV cache bytes per token."""

from __future__ import annotations

import pytest

from sim.specs.hf_config import load_model
from sim.specs.quantization_keys import parse_quantization

# `total_size` of the safetensors index. Llama-2's files also hold rotary buffers (7B: 32 layers x 64 x 4 bytes), which
# are not parameters, so its count comes from the model card: 6,738,415,616 parameters at two bytes.
INDEX_BYTES = {
    "meta-llama/Meta-Llama-3-8B": 16_060_522_496,
    "meta-llama/Llama-3.1-8B": 16_060_522_496,
    "meta-llama/Meta-Llama-3-70B": 141_107_412_992,
    "meta-llama/Llama-3.1-70B": 141_107_412_992,
    "meta-llama/Llama-2-7b-hf": 13_476_831_232,
    "mistralai/Mistral-7B-v0.1": 14_483_464_192,
    "mistralai/Mixtral-8x7B-v0.1": 93_405_585_408,
    "Qwen/Qwen2.5-7B-Instruct": 15_231_233_024,
}

# Parameter counts as remembered from the families' model cards; not looked up again.
PARAMETERS = {
    "bigscience/bloom": 176_247_271_424,
    "EleutherAI/gpt-j-6b": 6_050_882_784,
    "openai-community/gpt2": 124_439_808,
    "facebook/opt-125m": 125_239_296,
    "microsoft/phi-2": 2_779_683_840,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "google/gemma-2-9b": 9_241_705_984,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "deepseek-ai/DeepSeek-V2-Lite": 15_706_484_224,
    "openai/gpt-oss-20b": 20_914_757_184,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
}

# 2-byte cache: 2 x layers x kv_heads x head_dim x 2, or layers x (kv_lora_rank + qk_rope_head_dim) x 2 for MLA.
KV_BYTES_PER_TOKEN = {
    "meta-llama/Llama-3.1-8B": 131_072,
    "mistralai/Mixtral-8x7B-v0.1": 131_072,
    "meta-llama/Llama-3.1-70B": 327_680,
    "Qwen/Qwen3-32B": 262_144,
    "Qwen/Qwen3-30B-A3B": 98_304,
    "deepseek-ai/DeepSeek-V3": 70_272,
    "deepseek-ai/DeepSeek-R1": 70_272,
    "deepseek-ai/DeepSeek-V2-Lite": 31_104,
    "MiniMaxAI/MiniMax-M2.5": 253_952,
    "openai/gpt-oss-120b": 36_864,
    "Qwen/Qwen3.5-35B-A3B": 20_480,
    "facebook/opt-13b": 819_200,
    "meta-llama/Llama-2-13b-hf": 819_200,
    "meta-llama/Llama-2-7b-hf": 524_288,
    "tiiuae/falcon-7b": 8_192,
}


@pytest.mark.parametrize(("name", "size"), INDEX_BYTES.items())
def test_weight_bytes_equal_the_checkpoint(name: str, size: int) -> None:
    """The parameters of a 16-bit checkpoint, two bytes each, are its tensor bytes to the byte."""
    model = load_model(name)
    assert 2 * model.num_parameters == size
    assert model.weight_bytes() == size


def test_llama_2_70b_is_its_checkpoint_less_rotary_buffers() -> None:
    """Llama-2-70B's files are larger than its weights by a rotary buffer of 64 four-byte numbers per layer."""
    assert 137_953_316_864 - load_model("meta-llama/Llama-2-70b-hf").weight_bytes() == 80 * 64 * 4


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts_equal_the_model_cards(name: str, count: int) -> None:
    """Families with their own norms, biases, tables and experts add up to the published number of parameters."""
    assert load_model(name).num_parameters == count


@pytest.mark.parametrize(("name", "count"), KV_BYTES_PER_TOKEN.items())
def test_kv_bytes_per_token(name: str, count: int) -> None:
    """One token of context costs exactly the published number of cache bytes."""
    assert load_model(name).kv_bytes_per_token() == count


def test_fixed_cache_of_sliding_windows() -> None:
    """gpt-oss-120b needs at most 128 tokens of its 18 windowed layers beside the growing cache."""
    assert load_model("openai/gpt-oss-120b").kv_bytes_per_sequence_fixed() == 4_718_592


def test_a_13b_class_model_without_grouped_queries_caches_most_of_a_megabyte_per_token() -> None:
    """The vLLM paper's 800 KB per token of OPT-13B (Kwon et al. 2023, section 3)."""
    assert load_model("facebook/opt-13b").kv_bytes_per_token() == 800 * 1024


@pytest.mark.parametrize(
    ("name", "scheme", "gigabytes"),
    [
        ("meta-llama/Llama-2-70b-hf", "awq", 36.61),
        ("meta-llama/Llama-2-13b-hf", "awq", 7.25),
        ("meta-llama/Llama-3.1-8B", "fp8", 9.08),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "gptq", 0.77),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "int8", 1.23),
    ],
)
def test_quantised_checkpoints_have_their_published_size(name: str, scheme: str, gigabytes: float) -> None:
    """Scales, zero points and the 16-bit vocabulary included, quantised weights are as large as their files."""
    model = load_model(name)
    assert model.weight_bytes(parse_quantization(scheme, model)) / 1e9 == pytest.approx(gigabytes, abs=0.011)
