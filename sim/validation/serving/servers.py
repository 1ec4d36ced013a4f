"""From the words of a table, such as "A100-80GB" or "trtllm 1.0", to the keys of a scenario."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from sim.catalog import names
from sim.errors import ConfigError
from sim.specs.architecture import ModelArchitecture
from sim.specs.hf_config import architecture_from_hf, load_model

_GPUS: Mapping[str, str] = {
    "a100": "a100-sxm-80gb",
    "a10080gb": "a100-sxm-80gb",
    "a10040gb": "a100-sxm-40gb",
    "h100": "h100-sxm",
    "h200": "h200-sxm",
    "v100": "v100-sxm-32gb",
}
_FACTS_FILE = "models.json"
_LONGEST = 1 << 20
"""Context of models whose facts do not state one: the measured requests were served, so they fitted."""
_SUFFIXES: Mapping[str, str] = {"-fp8": "fp8_block", "-awq": "awq", "-gptq": "gptq", "-int8": "w8a16"}
_SCHEMES: Mapping[str, str] = {
    "int4": "awq",
    "awq": "awq",
    "w4a16": "w4a16",
    "gptq": "gptq",
    "int8": "w8a8",
    "w8a8": "w8a8",
    "mxfp4": "mxfp4",
    "fp4": "mxfp4",  # Hopper has no native FP4
    "bitsandbytes": "bitsandbytes",
}
_NEWEST = {"vllm": "vllm-v1", "sglang": "sglang-0.5", "tensorrt-llm": "tensorrt-llm-1.0"}
_OLDER = {
    "vllm": (((0, 14), "vllm-0.9"), ((0, 16), "vllm-0.15")),  # with 0.14 asynchronous scheduling became the default
    "tensorrt-llm": (((1,), "tensorrt-llm-0.17"),),  # the PyTorch back end became the default
}
"""First version that is newer, and the preset of what came before."""


def hardware(label: str) -> str:
    """The profile of a GPU as tables call it. Raises ConfigError with the profiles that exist."""
    word = re.sub(r"[^a-z0-9]", "", label.lower()).removeprefix("nvidia")
    known = {re.sub(r"[^a-z0-9]", "", name): name for name in names("hardware")}
    for spelling in (word, re.sub(r"(sxm|pcie|\d+gb)", "", word)):
        if spelling in _GPUS or spelling in known:
            return _GPUS.get(spelling) or known[spelling]
    longer = sorted(name for spelling, name in known.items() if word and spelling.startswith(word))
    if longer:
        return longer[0]
    raise ConfigError("no profile of this GPU", key="gpu", value=label, choices=names("hardware"))


@dataclass(frozen=True)
class Model:
    """A model as a scenario names it: an id of the catalogue, or `config` for a config.json yet to be written."""

    name: str
    architecture: ModelArchitecture
    config: Mapping[str, Any] | None = None
    scheme: str | None = None
    """The quantisation that the id implies (`-AWQ`) where only the unquantised model is known."""


def find_model(name: str, tokens: int, folder: Path) -> Model:
    """From the catalogue, else from the facts in models.json beside the table.

    `tokens` is the longest prompt plus answer that was measured. Raises ConfigError for an unknown model.
    """
    known: Model | None = None
    try:
        known = _catalogued(name)
    except ConfigError as error:
        problem = error
    else:
        if known.architecture.max_model_len >= tokens:
            return known
        problem = ConfigError(
            f"has a context of {known.architecture.max_model_len} tokens, {tokens} are needed", key="model", value=name
        )
    facts = _facts(folder).get(name)
    if facts:
        config = _as_hf(facts, tokens)
        return Model(name, architecture_from_hf(config, name), config)
    for suffix, scheme in _SUFFIXES.items():
        if known is None and name.lower().endswith(suffix):
            found = find_model(name[: -len(suffix)], tokens, folder)
            return found if found.architecture.quantization else replace(found, scheme=scheme)
    raise problem


@cache
def _catalogued(name: str) -> Model:
    return Model(name, load_model(name))


@cache
def _facts(folder: Path) -> Mapping[str, Any]:
    path = folder / _FACTS_FILE
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("is not readable JSON", file=path) from error
    return data if isinstance(data, dict) else {}


def _as_hf(facts: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """Facts use the names of config.json; what they leave out is filled with what every such model has."""
    config = {key: value for key, value in facts.items() if key not in ("config_from", "checkpoint_quant")}
    if facts.get("checkpoint_quant"):
        config["quantization_config"] = facts["checkpoint_quant"]
    counts = config.pop("layer_type_counts", None)
    if isinstance(counts, Mapping) and "full_attention_interval" not in config and "layer_types" not in config:
        config["layer_types"] = [kind for kind, number in counts.items() for _ in range(int(number))]
    return {"max_position_embeddings": max(tokens, _LONGEST), "torch_dtype": "bfloat16", **config}


def version_of(text: str) -> tuple[int, ...]:
    """Leading numbers of a version: "0.16.0" is (0, 16, 0), "1.0.0rc3" is (1, 0, 0); () when there are none."""
    found = re.match(r"\d+(?:\.\d+)*", str(text).strip())
    return tuple(map(int, found[0].split("."))) if found else ()


def engine_family(name: str) -> str:
    """vllm, sglang or tensorrt-llm, however a table spells it. Raises ConfigError for another engine."""
    word = re.sub(r"[^a-z]", "", name.lower())
    for prefix, family in (
        ("vllm", "vllm"),
        ("sglang", "sglang"),
        ("trt", "tensorrt-llm"),
        ("tensorrt", "tensorrt-llm"),
    ):
        if word.startswith(prefix):
            return family
    raise ConfigError("no preset of this engine", key="engine", value=name, choices=("vLLM", "SGLang", "TensorRT-LLM"))


def engine_keys(name: str, version: str) -> dict[str, Any]:
    """The `engine:` keys that follow from an engine and its version: preset and asynchronous scheduling."""
    family, number = engine_family(name), version_of(version)
    for first, older in _OLDER.get(family, ()):
        if number and number < first:
            return {"preset": older}
    return {"preset": _NEWEST[family]}


def quantization(dtype: str, architecture: ModelArchitecture, *, block: bool = False) -> str | None:
    """The scheme that a table's dtype means for a checkpoint that is not quantised itself.

    Raises ConfigError for a word that is not understood.
    """
    word = dtype.lower()
    if architecture.quantization or not word or re.match(r"(bf|fp|float|bfloat)?-?16|bf16|bfloat16|float16|half", word):
        return None
    if word.startswith(("fp8", "float8")):
        return "fp8_block" if block else "fp8"
    for start, scheme in _SCHEMES.items():
        if word.startswith(start):
            return scheme
    raise ConfigError("unknown number format", key="dtype", value=dtype)
