"""Model architectures from Hugging Face `config.json` files, and the built-in catalogue of them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sim.catalog import file_at, folder
from sim.documents import parse_json
from sim.errors import ConfigError
from sim.specs.architecture import DTYPE_BYTES, LayerGroup, ModelArchitecture, WeightMatrix
from sim.specs.hf_keys import HfKeys
from sim.specs.hf_layers import layer_groups
from sim.specs.hf_vision import vision_tower
from sim.specs.matrices import norm

CATALOGUE_FILE = "catalogue.json"

# Keys whose layers this reader would get wrong if it ignored them.
_NOT_UNDERSTOOD = {
    "compress_ratios": "compressed attention (DeepSeek-V4) is not supported yet",
    "linear_attn_config": "Kimi Delta Attention is not supported yet",
    "block_configs": "layers that differ one by one (Nemotron-NAS) are not supported yet",
    "encoder_layers": "encoder-decoder models are not supported",
    "num_kv_shared_layers": "layers that share another layer's KV cache are not supported yet",
}
_ROPE_WITHOUT_FACTOR = ("default", "llama3", "longrope", "su", "mrope", "proportional")


def architecture_from_hf(config: Mapping[str, Any], name: str, *, file: str | None = None) -> ModelArchitecture:
    """The architecture that a parsed `config.json` describes; `name` is what reports call the model.

    Reads the language part of multimodal configs and understands the families' legacy key names. Raises ConfigError
    naming `file` (or the model) and the key that is missing or contradicts another.
    """
    keys = HfKeys.of(config, name, file)
    for key, problem in _NOT_UNDERSTOOD.items():
        if keys.data.get(key):
            raise keys.error(key, problem)
    layers = layer_groups(keys)
    return ModelArchitecture(
        name=name,
        hidden_size=keys.positive("hidden_size"),
        vocab_size=keys.positive("vocab_size"),
        layers=layers,
        tie_word_embeddings=keys.flag("tie_word_embeddings", default=keys.family.tied),
        max_model_len=_max_model_len(keys),
        dtype=_dtype(keys),
        norm_bias=keys.family.norm_bias,
        extra=_extra(keys, layers),
        mtp_layers=_mtp_layers(keys),
        family=keys.model_type.removesuffix("_text"),
        quantization=_quantization(config, keys),
        vision=vision_tower(config, keys),
        filters_samples=_filters_samples(keys),
    )


def _filters_samples(keys: HfKeys) -> bool:
    """Whether generation_config.json, which the catalogue keeps beside the rest, asks for top-k or top-p."""
    generation = keys.data.get("generation_config")
    if not isinstance(generation, Mapping):
        return False
    top_p, top_k = generation.get("top_p") or 1, generation.get("top_k") or 0
    for key, value in (("top_p", top_p), ("top_k", top_k)):
        if not isinstance(value, (int, float)):
            raise keys.error(f"generation_config.{key}", "must be a number", value=value)
    return bool(top_p < 1 or top_k > 0)


def _dtype(keys: HfKeys) -> str:
    """The 16-bit type engines compute in; checkpoints in float32 are loaded as float16 (vLLM's dtype "auto")."""
    dtype = str(keys.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    if dtype == "float32":
        return "float16"
    if dtype not in DTYPE_BYTES:
        raise keys.error("torch_dtype", "is not a known type", value=dtype, choices=DTYPE_BYTES)
    return dtype


def _max_model_len(keys: HfKeys) -> int:
    """The longest context, as vLLM derives it (`_get_and_verify_max_len`).

    Linear and dynamic rope scaling multiply `max_position_embeddings`, YaRN multiplies the original length; the
    Llama-3 and LongRoPE kinds are already in the number, and Gemma-3 counts them in too.
    """
    length = keys.positive("max_position_embeddings", 2048)
    rope = keys.get("rope_scaling") or keys.get("rope_parameters")
    if not isinstance(rope, Mapping) or keys.model_type.startswith("gemma3"):
        return length
    scaling = HfKeys(rope.get("full_attention") or rope, keys.name, keys.file)
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
    if kind in _ROPE_WITHOUT_FACTOR:
        return length
    if kind == "yarn":
        length = scaling.positive("original_max_position_embeddings", length)
    factor = scaling.get("factor") or 1
    if not isinstance(factor, (int, float)):
        raise keys.error("rope_scaling.factor", "must be a number", value=factor)
    return int(length * factor)


def _extra(keys: HfKeys, layers: tuple[LayerGroup, ...]) -> tuple[WeightMatrix, ...]:
    """What stands outside the layers beside embedding, final norm and LM head."""
    family, hidden, found = keys.family, keys.positive("hidden_size"), []
    if family.position_offset is not None:
        rows = keys.positive("max_position_embeddings") + family.position_offset
        found.append(WeightMatrix("position", rows, hidden))
    if family.embedding_norm:
        found.append(norm(hidden, bias=family.norm_bias))
    if family.lm_head_bias:
        found.append(WeightMatrix("bias", 1, keys.positive("vocab_size"), split="column"))
    if keys.flag("enable_moe_block"):  # Gemma-4 scales the router's input and each expert's output
        moe = sum(group.count for group in layers)
        found.append(WeightMatrix("norm", 1, hidden + keys.positive("num_experts"), layers=moe))
    return tuple(found)


def _mtp_layers(keys: HfKeys) -> int:
    return keys.integer("num_nextn_predict_layers", keys.integer("mtp_num_hidden_layers", 0))


def _quantization(config: Mapping[str, Any], keys: HfKeys) -> Mapping[str, Any] | None:
    """`quantization_config` from the top level or from inside `text_config`."""
    for found in (config.get("quantization_config"), keys.data.get("quantization_config")):
        if isinstance(found, Mapping) and found:
            return found
    return None


# the catalogue


def list_models() -> list[ModelArchitecture]:
    """Every model of the built-in catalogue, sorted by its Hugging Face id."""
    return [_from_catalogue(name) for name in sorted(_catalogue(), key=str.casefold)]


def load_model(name_or_path: str, *, beside: Path | None = None) -> ModelArchitecture:
    """The architecture meant by a Hugging Face id of the catalogue, or by a path to a config.json or its directory.

    Ids match without regard to case, to a `-hf` suffix and to Meta's former `Meta-` prefix; the part after the slash
    is enough when only one model has it. A relative path is looked for from the current directory, then beside the
    file that mentions it. Raises ConfigError with the nearest ids when nothing matches.
    """
    path = config_path(name_or_path, beside)
    if path is not None:
        return _from_file(path)
    catalogue = _catalogue()
    matches = [known for known in catalogue if _same(known) == _same(name_or_path)]
    matches = matches or [known for known in catalogue if _same(known).split("/")[-1] == _same(name_or_path)]
    if len(matches) == 1:
        return _from_catalogue(matches[0])
    if matches:
        raise ConfigError("names several models", key="model", value=name_or_path, choices=matches)
    problem = "is not in the catalogue (see `roofserve list models`); a path to its config.json works too"
    raise ConfigError(problem, key="model", value=name_or_path, choices=_nearest(name_or_path, list(catalogue)))


def _same(name: str) -> str:
    """Spellings of one id that mean the same model."""
    return name.strip().casefold().removesuffix("-hf").replace("meta-llama-", "llama-")


def _nearest(name: str, ids: list[str]) -> list[str]:
    """Ids in the order of the words they share with the name, then of likeness: `llama 8b` offers Llamas first."""
    wanted = set(_words(name))

    def distance(known: str) -> tuple[int, float]:
        likeness = difflib.SequenceMatcher(None, name.casefold(), known.casefold()).ratio()
        return -len(wanted & set(_words(known))), -likeness

    return sorted(ids, key=distance)


def _words(name: str) -> list[str]:
    return "".join(c if c.isalnum() or c == "." else " " for c in name.casefold()).split()


def _catalogue() -> Mapping[str, Any]:
    """Hugging Face id -> the keys of its public config.json that matter here, and `like` for shared ones."""
    entries: Mapping[str, Any] = json.loads((folder("model") / CATALOGUE_FILE).read_text(encoding="utf-8"))
    return entries


def _from_catalogue(name: str) -> ModelArchitecture:
    entries = _catalogue()
    config = dict(entries[name])
    while "like" in config:
        like = config.pop("like")
        config = {**entries[like], **config}
    return architecture_from_hf(config, name)


def config_path(name: str, beside: Path | None) -> Path | None:
    """The config.json a name points to, or None when it is an id. Raises ConfigError for a path that leads nowhere."""
    found = file_at("model", name, beside=beside) or file_at("model", f"{name}/config.json", beside=beside)
    if found is None and (name.endswith(".json") or name.startswith((".", "/", "~"))):
        raise ConfigError("no such config.json, nor a directory with one", key="model", value=name)
    return found


def _from_file(path: Path) -> ModelArchitecture:
    config = _read_json(path)
    separate = path.parent / "hf_quant_config.json"  # NVIDIA's checkpoints keep it in a second file
    if not config.get("quantization_config") and separate.is_file():
        config["quantization_config"] = {"quant_method": "modelopt", **_read_json(separate)}
    generation = path.parent / "generation_config.json"
    if generation.is_file():
        config["generation_config"] = _read_json(generation)
    name = str(config.get("_name_or_path") or "")
    name = name if name and not name.startswith("/") else path.parent.resolve().name
    return architecture_from_hf(config, name, file=str(path))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = parse_json(path.read_text(encoding="utf-8-sig"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot be read", file=path) from error
    if not isinstance(data, dict):
        raise ConfigError("must be a JSON object, as Hugging Face's config.json is", file=path)
    return data
