"""Number formats, what checkpoints declare, and what a scenario's `quantization:` asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.errors import ConfigError
from sim.specs.architecture import ModelArchitecture
from sim.specs.hf_config import list_models, load_model
from sim.specs.number_formats import FORMATS, integer_format
from sim.specs.quantization import NEVER_QUANTISED, QuantScheme
from sim.specs.quantization_keys import parse_quantization
from sim.specs.schemes import SCHEMES

LLAMA = load_model("meta-llama/Llama-3.1-8B")
MLA = load_model("deepseek-ai/DeepSeek-V3")
MOE = load_model("Qwen/Qwen3-30B-A3B")


def checkpoint(model: ModelArchitecture = LLAMA, **config: Any) -> QuantScheme:
    """The scheme of a model whose checkpoint has this quantization_config."""
    return QuantScheme.from_checkpoint(replace(model, quantization=config))


def names(scheme: QuantScheme) -> tuple[str, str, str]:
    return scheme.weights.name, scheme.activations.name, scheme.kv_cache.name


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("bf16", 16),
        ("fp8", 8),
        ("int8", 8),
        ("int4-awq", 4.15625),
        ("int4-gptq", 4.125),
        ("mxfp4", 4.25),
        ("nvfp4", 4.5),
        ("nf4", 4.5),
        ("nf4-dq", 4.127),
    ],
)
def test_stored_bits_include_scales(name: str, bits: float) -> None:
    """A format's bits per weight include its share of scales and zero points."""
    assert FORMATS[name].stored_bits == pytest.approx(bits)


@pytest.mark.parametrize(
    ("name", "rate"),
    [("bf16", "bf16"), ("fp8_block", "fp8"), ("nvfp4", "fp4"), ("mxfp4", "fp4"), ("int4-awq", "int4"), ("nf4", "nf4")],
)
def test_formats_multiply_at_a_datasheet_rate(name: str, rate: str) -> None:
    """Block scales do not change which tensor-core rate a format has; a codebook has none."""
    assert FORMATS[name].tensor_rate == rate


def test_smaller_groups_cost_more_bits() -> None:
    """Halving the group doubles the overhead of its scale."""
    assert [integer_format(4, g).stored_bits for g in (0, 128, 64, 32)] == [4, 4.125, 4.25, 4.5]


def test_vocabulary_and_routers_stay_in_16_bits() -> None:
    """An FP8 model keeps embedding, LM head, router and norms at the model's own type."""
    scheme = parse_quantization("fp8", MOE)
    assert {m.role for m in MOE.matrices() if scheme.weight_format(m.role).name == "fp8"} == {
        "qkv",
        "o",
        "expert_gate_up",
        "expert_down",
    }
    assert scheme.weight_bytes_per_parameter("lm_head") == 2
    assert scheme.activation_format("lm_head").name == "bf16"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ("bf16", "bf16", "bf16")),
        ("none", ("bf16", "bf16", "bf16")),
        ("fp8", ("fp8", "fp8", "bf16")),
        ("AWQ", ("int4-awq", "bf16", "bf16")),
        ("gptq_marlin", ("int4-gptq", "bf16", "bf16")),
        ({"weights": "int4-awq", "activations": "bf16", "kv_cache": "fp8"}, ("int4-awq", "bf16", "fp8")),
        ({"kv_cache": "fp8_e5m2"}, ("bf16", "bf16", "fp8")),
        ({"weights": "fp8"}, ("fp8", "bf16", "bf16")),
        ({"weights": "auto"}, ("bf16", "bf16", "bf16")),
    ],
)
def test_what_a_scenario_asks_for(value: Any, expected: tuple[str, str, str]) -> None:
    """A plain string is vLLM's flag, a mapping sets the axes it names, and the rest stays as in the checkpoint."""
    assert names(parse_quantization(value, LLAMA)) == expected


def test_kv_cache_dtype_fills_the_cache_axis() -> None:
    """vLLM's --kv-cache-dtype counts unless the mapping names the cache itself."""
    assert parse_quantization("awq", LLAMA, kv_cache_dtype="fp8").kv_bytes_per_element == 1
    assert parse_quantization({"kv_cache": "auto"}, LLAMA, kv_cache_dtype="fp8").kv_bytes_per_element == 2


@pytest.mark.parametrize(
    ("value", "key", "nearest"),
    [
        ("fp9", "quantization", "fp8"),
        ({"weight": "fp8"}, "quantization.weight", "weights"),
        ({"weights": "int4-awk"}, "quantization.weights", "int4-awq"),
        ({"kv_cache": 8}, "quantization.kv_cache", None),
        (8, "quantization", None),
    ],
)
def test_mistakes_are_answered_with_the_nearest_choice(value: Any, key: str, nearest: str | None) -> None:
    """An unknown scheme, axis or format names its key and offers the word that was meant first."""
    with pytest.raises(ConfigError) as caught:
        parse_quantization(value, LLAMA)
    assert caught.value.key == key
    assert nearest is None or caught.value.choices[0] == nearest


def test_weight_only_schemes_multiply_in_16_bits() -> None:
    """AWQ and GPTQ save bytes, never FLOPs; FP8 with FP8 and INT8 with INT8 multiply as they are stored."""
    assert parse_quantization("awq", LLAMA).compute_format("qkv").name == "bf16"
    assert parse_quantization("fp8", LLAMA).compute_format("qkv").name == "fp8"
    assert parse_quantization("int8", LLAMA).compute_format("down").name == "int8"
    assert parse_quantization("fp8", LLAMA).compute_format("lm_head").name == "bf16"
    four_by_eight = parse_quantization({"weights": "int4", "activations": "int8"}, LLAMA)
    assert four_by_eight.compute_format("o").name == "int8"
    assert parse_quantization({"activations": "fp8"}, LLAMA).compute_format("o").name == "bf16"


# checkpoints


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, ("fp8", "fp8", "bf16")),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, ("fp8_block", "fp8", "bf16")),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, ("int4-awq", "bf16", "bf16")),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}, ("int4-gptq-g32", "bf16", "bf16")),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, ("int8-gptq-channel", "bf16", "bf16")),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, ("nf4", "bf16", "bf16")),
        (
            {"quant_method": "modelopt", "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}},
            ("fp8", "fp8", "fp8"),
        ),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_scheme": {"num_bits": 8, "type": "float"}},
            ("nvfp4", "nvfp4", "fp8"),
        ),
    ],
)
def test_quantisation_methods_of_checkpoints(config: dict[str, Any], expected: tuple[str, str, str]) -> None:
    """Each tool's quantization_config is understood, and what it does not mention stays at 16 bits."""
    assert names(checkpoint(**config)) == expected


@pytest.mark.parametrize(
    ("weights", "activations", "expected"),
    [
        ({"num_bits": 8, "type": "float", "strategy": "channel"}, {"num_bits": 8, "type": "float"}, ("fp8", "fp8")),
        ({"num_bits": 8, "type": "int", "symmetric": True}, {"num_bits": 8, "type": "int"}, ("int8", "int8")),
        ({"num_bits": 4, "type": "int", "group_size": 128, "symmetric": True}, None, ("int4-g128", "bf16")),
        (
            {"num_bits": 4, "type": "float", "group_size": 16},
            {"num_bits": 4, "type": "float", "group_size": 16},
            ("nvfp4", "nvfp4"),
        ),
        ({"num_bits": 4, "type": "float", "group_size": 32}, None, ("mxfp4", "bf16")),
    ],
)
def test_compressed_tensors_groups(
    weights: dict[str, Any], activations: dict[str, Any] | None, expected: tuple[str, str]
) -> None:
    """compressed-tensors spells out bits, type and group; null activations mean weight-only."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    scheme = checkpoint(quant_method="compressed-tensors", config_groups={"group_0": group})
    assert names(scheme)[:2] == expected


def kept(scheme: QuantScheme) -> set[str]:
    return set(scheme.kept - NEVER_QUANTISED)


@pytest.mark.parametrize(
    ("patterns", "roles"),
    [
        (["lm_head"], set()),
        (["model.layers.*.self_attn"], {"qkv", "o"}),
        (["re:.*self_attn.*"], {"qkv", "o"}),
        ([f"model.layers.{i}.self_attn*" for i in range(48)], {"qkv", "o"}),
        ([f"model.layers.{i}.self_attn.o_proj" for i in range(48)], {"o"}),
        (["model.layers.0.self_attn*"], set()),  # one layer of 48: the majority decides
        ([f"model.layers.{i}.mlp.gate" for i in range(48)], set()),  # the router, which no scheme quantises
        (["*.mlp.experts.*.down_proj"], {"expert_down"}),
    ],
)
def test_modules_left_unquantised(patterns: list[str], roles: set[str]) -> None:
    """Names, globs and regular expressions of modules become the roles that stay at 16 bits."""
    assert kept(checkpoint(MOE, quant_method="fp8", modules_to_not_convert=patterns)) == roles


def test_kimi_quantises_its_routed_experts_only() -> None:
    """Kimi-K2.5's INT4 leaves attention, shared experts and the dense first layer at 16 bits."""
    scheme = QuantScheme.from_checkpoint(load_model("moonshotai/Kimi-K2.5"))
    assert scheme.weight_format("expert_down").stored_bits == 4.5
    for role in ("q_b", "kv_a", "shared_gate_up", "gate_up", "down"):
        assert scheme.weight_format(role).name == "bf16"


def test_gpt_oss_quantises_experts_only() -> None:
    """gpt-oss keeps attention and vocabulary at 16 bits, and its checkpoint is as large as remembered (from memory)."""
    model = load_model("openai/gpt-oss-120b")
    scheme = QuantScheme.from_checkpoint(model)
    assert (scheme.weight_format("qkv").name, scheme.weight_format("expert_gate_up").name) == ("bf16", "mxfp4")
    assert model.weight_bytes(scheme) == 65_248_815_744


def test_naming_the_checkpoints_own_method_keeps_its_details() -> None:
    """`quantization: fp8` beside a block-wise FP8 checkpoint does not make it per-tensor."""
    assert parse_quantization("fp8", MLA).weights.name == "fp8_block"
    assert parse_quantization({"kv_cache": "fp8"}, load_model("gpt-oss-20b")).weight_format("qkv").name == "bf16"


def test_unknown_method_is_refused() -> None:
    """A method that is not understood names the model, the key and those that are."""
    with pytest.raises(ConfigError, match=r"quant_method: 'awk': is not understood.*awq"):
        checkpoint(quant_method="awk")


def test_mixed_formats_need_the_user() -> None:
    """A checkpoint with different formats per layer is refused, unless the scenario names all three axes."""
    groups = {str(bits): {"weights": {"num_bits": bits, "type": "int", "group_size": 128}} for bits in (4, 8)}
    mixed = replace(LLAMA, quantization={"quant_method": "compressed-tensors", "config_groups": groups})
    with pytest.raises(ConfigError, match="2 formats"):
        parse_quantization(None, mixed)
    chosen = {"weights": "int4", "activations": "bf16", "kv_cache": "bf16"}
    assert names(parse_quantization(chosen, mixed)) == ("int4", "bf16", "bf16")


@given(st.sampled_from(list_models()), st.sampled_from(sorted(SCHEMES)))
def test_quantising_never_adds_bytes(model: ModelArchitecture, scheme: str) -> None:
    """No scheme makes weights larger than 16 bits, and every checkpoint of the catalogue is understood."""
    plain = model.weight_bytes()
    assert model.weight_bytes(QuantScheme.from_checkpoint(model)) <= plain
    assert model.weight_bytes(parse_quantization(scheme, model)) <= plain
