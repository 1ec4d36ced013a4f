"""The sizes of a decoder that the small engine can run, from the model catalogue."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sim.catalog import folder
from sim.errors import ConfigError

_ROPE_THETA = 500000.0
"""Of Llama 3; the angle changes no time."""


@dataclass(frozen=True)
class ModelDims:
    """A Llama-like decoder: grouped-query attention, gated MLP, RMSNorm."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    rope_theta: float = _ROPE_THETA

    @property
    def qkv_columns(self) -> int:
        """Columns of the fused query, key and value projection."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim


def dims_of(model: str) -> ModelDims:
    """The sizes of a catalogued model. Raises ConfigError for one that is unknown or not Llama-like."""
    catalogue = json.loads((folder("model") / "catalogue.json").read_text(encoding="utf-8"))
    if model not in catalogue:
        raise ConfigError("unknown model", key="model", value=model, choices=sorted(catalogue))
    config = catalogue[model]
    while "like" in config:
        config = {**catalogue[config["like"]], **{k: v for k, v in config.items() if k != "like"}}
    if config.get("model_type") != "llama":
        raise ConfigError("the small engine runs Llama-like models only", key="model", value=model)
    heads = config["num_attention_heads"]
    return ModelDims(
        model, config["num_hidden_layers"], config["hidden_size"], heads, config.get("num_key_value_heads", heads),
        config.get("head_dim") or config["hidden_size"] // heads, config["intermediate_size"], config["vocab_size"],
    )  # fmt: skip
