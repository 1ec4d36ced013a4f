"""What a checkpoint's `quantization_config` says: the formats it stores, and the roles it leaves unquantised.

Understood: `fp8`, `awq`, `gptq`, `compressed-tensors`, `mxfp4`, `bitsandbytes`, `modelopt` (also from NVIDIA's
`hf_quant_config.json`). Module names are matched as each tool does: `re:` patterns, globs, and plain names, which
stand for everything below them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sim.errors import ConfigError
from sim.specs.architecture import ModelArchitecture
from sim.specs.number_formats import FORMATS, NumberFormat, base_format, integer_format

# Where the matrices of a role hang in the modelling files, below `layers.<i>.`; any one of them stands for the role.
_MODULES: Mapping[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.qkv_proj", "mixer.q_proj"),
    "o": ("self_attn.o_proj", "mixer.o_proj"),
    "q": ("self_attn.q_proj",),
    "q_a": ("self_attn.q_a_proj",),
    "q_b": ("self_attn.q_b_proj",),
    "kv_a": ("self_attn.kv_a_proj_with_mqa",),
    "kv_b": ("self_attn.kv_b_proj",),
    "index_q": ("self_attn.indexer.wq_b",),
    "index_k": ("self_attn.indexer.wk",),
    "linear_in": ("linear_attn.in_proj_qkvz", "linear_attn.in_proj_qkv", "mixer.in_proj"),
    "linear_out": ("linear_attn.out_proj", "mixer.out_proj"),
    "gate_up": ("mlp.gate_proj", "mlp.gate_up_proj", "mlp.up_proj", "mixer.up_proj"),
    "down": ("mlp.down_proj", "mixer.down_proj"),
    "expert_gate_up": ("mlp.experts.0.gate_proj", "block_sparse_moe.experts.0.w1", "mixer.experts.0.up_proj"),
    "expert_down": ("mlp.experts.0.down_proj", "block_sparse_moe.experts.0.w2", "mixer.experts.0.down_proj"),
    "shared_gate_up": ("mlp.shared_experts.gate_proj", "mlp.shared_expert.gate_proj", "mixer.shared_experts.up_proj"),
    "shared_down": ("mlp.shared_experts.down_proj", "mlp.shared_expert.down_proj", "mixer.shared_experts.down_proj"),
}
_GEMMA4_MODULES: Mapping[str, tuple[str, ...]] = {  # the dense MLP stands beside the experts, not around them
    "expert_gate_up": ("experts.gate_up_proj", "moe.experts.0.gate_proj"),
    "expert_down": ("experts.down_proj", "moe.experts.0.down_proj"),
    "shared_gate_up": ("mlp.gate_proj",),
    "shared_down": ("mlp.down_proj",),
}
_OUTER_PREFIX = re.compile(r"^(?:model\.|language_model\.|backbone\.|transformer\.)+")
_AXES = "quantization: {weights, activations, kv_cache}"
_LAYER = re.compile(r"^layers\.(\d+)")


@dataclass(frozen=True)
class CheckpointFormats:
    """What a checkpoint declares; `kept` are roles it leaves unquantised beyond those that no scheme quantises."""

    method: str
    weights: NumberFormat
    activations: NumberFormat
    kv_cache: NumberFormat
    kept: frozenset[str]


def read_checkpoint(architecture: ModelArchitecture) -> CheckpointFormats | None:
    """The formats of an architecture's checkpoint, or None when it is not quantised.

    A role that only some layers leave unquantised follows the majority of the layers that have it. Raises
    ConfigError for a method that is not understood.
    """
    config = architecture.quantization
    if not config:
        return None
    config = {**config, **_mapping(config.get("quantization"))}
    base = base_format(architecture.dtype)
    method = str(config.get("quant_method") or "")
    weights, activations = _formats(architecture.name, method, config, base)
    return CheckpointFormats(
        method, weights, activations, _kv_cache(config) or base, _kept_roles(architecture, _ignored(config))
    )


Pair = tuple[NumberFormat, NumberFormat]


def _formats(name: str, method: str, config: Mapping[str, Any], base: NumberFormat) -> Pair:
    """Formats of weights and activations."""
    if method == "fp8":
        form = FORMATS["fp8_block" if config.get("weight_block_size") else "fp8"]
        return form, FORMATS["fp8"]
    if method in ("awq", "gptq"):
        return _weight_only_integer(method, config), base
    if method == "mxfp4":
        return FORMATS["mxfp4"], base
    if method == "bitsandbytes":
        return _bitsandbytes(config, base)
    if isinstance(config.get("config_groups"), Mapping):
        return _grouped(name, config, base)
    if method == "modelopt":
        return _modelopt(name, str(config.get("quant_algo")), config, base)
    choices = ("fp8", "awq", "gptq", "compressed-tensors", "mxfp4", "bitsandbytes", "modelopt")
    raise ConfigError(
        "is not understood", file=name, key="quantization_config.quant_method", value=method, choices=choices
    )


def _weight_only_integer(method: str, config: Mapping[str, Any]) -> NumberFormat:
    """AWQ has zero points unless it says otherwise, GPTQ is symmetric unless `sym` is false."""
    bits = int(config.get("bits") or config.get("w_bit") or 4)
    group = max(int(config.get("group_size") or config.get("q_group_size") or 128), 0)
    zero = bool(config.get("zero_point", True)) if method == "awq" else config.get("sym") is False
    suffix = "" if group == 128 else f"-g{group}" if group else "-channel"
    return integer_format(bits, group, zero_point=zero, name=f"int{bits}-{method}{suffix}")


def _bitsandbytes(config: Mapping[str, Any], base: NumberFormat) -> Pair:
    if config.get("load_in_8bit"):
        return FORMATS["int8"], FORMATS["int8"]
    return FORMATS["nf4-dq" if config.get("bnb_4bit_use_double_quant") else "nf4"], base


def _modelopt(name: str, algorithm: str, config: Mapping[str, Any], base: NumberFormat) -> Pair:
    pairs: Mapping[str, Pair] = {
        "FP8": (FORMATS["fp8"], FORMATS["fp8"]),
        "NVFP4": (FORMATS["nvfp4"], FORMATS["nvfp4"]),
        "W4A16_NVFP4": (FORMATS["nvfp4"], base),
        "W4A8_AWQ": (FORMATS["int4-awq"], FORMATS["fp8"]),
        "W4A16_AWQ": (FORMATS["int4-awq"], base),
        "INT8_SQ": (FORMATS["int8"], FORMATS["int8"]),
    }
    if algorithm in pairs:
        return pairs[algorithm]
    key = "quantization_config.quant_algo"
    raise ConfigError("is not understood", file=name, key=key, value=algorithm, choices=pairs)


def _grouped(name: str, config: Mapping[str, Any], base: NumberFormat) -> Pair:
    """compressed-tensors: the groups of `config_groups`, which must agree; null activations stay at 16 bits."""
    found = set()
    for group in config["config_groups"].values():
        weights, activations = _mapping(group.get("weights")), _mapping(group.get("input_activations"))
        found.add((_tensor_format(weights), _tensor_format(activations) if activations else base))
    if len(found) != 1:
        problem = f"has {len(found)} formats for different layers, which is not understood; name all of {_AXES} instead"
        raise ConfigError(problem, file=name, key="quantization_config.config_groups")
    return found.pop()


def _tensor_format(spec: Mapping[str, Any]) -> NumberFormat:
    bits, group = int(spec.get("num_bits") or 8), int(spec.get("group_size") or 0)
    if spec.get("type") != "float":
        return integer_format(bits, max(group, 0), zero_point=spec.get("symmetric") is False)
    if bits == 4:
        return FORMATS["mxfp4" if group == 32 else "nvfp4"]
    return FORMATS["fp8_block" if spec.get("strategy") == "block" else "fp8"]


def _kv_cache(config: Mapping[str, Any]) -> NumberFormat | None:
    scheme = config.get("kv_cache_scheme") or config.get("kv_cache_quant_algo")
    if isinstance(scheme, Mapping):
        return _tensor_format(scheme)
    return FORMATS.get(str(scheme).lower())


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


# modules left unquantised


def _ignored(config: Mapping[str, Any]) -> list[str]:
    """Module patterns that stay unquantised, under whichever key the tool writes them."""
    for key in ("modules_to_not_convert", "ignore", "exclude_modules", "ignored_layers", "llm_int8_skip_modules"):
        if isinstance(config.get(key), list):
            return [str(pattern) for pattern in config[key]]
    return []


def _kept_roles(architecture: ModelArchitecture, patterns: Iterable[str]) -> frozenset[str]:
    in_all, in_layers = _by_layer(patterns)
    names = {**_MODULES, **(_GEMMA4_MODULES if architecture.family == "gemma4" else {})}
    kept = set()
    for role, holders in _layers_per_role(architecture).items():
        modules = names[role]
        layers = {n for rest, ns in in_layers.items() if _any_matches(rest, modules) for n in ns}
        if any(_any_matches(pattern, modules) for pattern in in_all) or 2 * len(layers) >= holders:
            kept.add(role)
    return frozenset(kept)


def _layers_per_role(architecture: ModelArchitecture) -> Mapping[str, int]:
    holders: defaultdict[str, int] = defaultdict(int)
    for matrix in architecture.matrices():
        if matrix.role in _MODULES:
            holders[matrix.role] += matrix.layers
    return holders


def _by_layer(patterns: Iterable[str]) -> tuple[list[re.Pattern[str]], Mapping[re.Pattern[str], set[int]]]:
    """Patterns for every layer, and patterns below one layer with the set of those layers."""
    in_all: list[re.Pattern[str]] = []
    in_layers: defaultdict[str, set[int]] = defaultdict(set)
    for pattern in patterns:
        if pattern.startswith("re:"):
            in_all.append(re.compile(pattern[3:]))
            continue
        inner = _OUTER_PREFIX.sub("", pattern)
        if match := _LAYER.match(inner):
            in_layers[inner[match.end() :]].add(int(match[1]))
        else:
            in_all.append(_glob(inner))
    return in_all, {_glob("layers.0" + rest): layers for rest, layers in in_layers.items()}


def _glob(pattern: str) -> re.Pattern[str]:
    """A plain name or glob as a pattern for the name itself, anywhere on a dot boundary, and all below it."""
    body = ".*".join(re.escape(part) for part in pattern.split("*"))
    return re.compile(rf"(?:.*\.)?{body}(?:\..*)?$")


def _any_matches(pattern: re.Pattern[str], modules: Iterable[str]) -> bool:
    return any(pattern.match(f"layers.0.{module}") for module in modules)
