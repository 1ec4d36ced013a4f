"""Reading keys of a Hugging Face config.json: their many names, nesting, and complaints that name file and key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sim.errors import ConfigError
from sim.specs.hf_families import Family, family_of

# Our name (the most common key) -> the keys that mean the same, in order of preference.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "conv_kernel": ("conv_kernel", "mamba_d_conv", "linear_conv_kernel_dim"),
    "head_dim": ("head_dim", "attention_head_dim", "kv_channels"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "dense_intermediate_size": ("intermediate_size_mlp", "dense_intermediate_size"),
    "mamba_head_dim": ("mamba_head_dim", "mamba_d_head"),
    "mamba_num_heads": ("mamba_num_heads", "mamba_n_heads"),
    "max_position_embeddings": (
        "max_position_embeddings",
        "n_positions",
        "max_seq_len",
        "seq_length",
        "max_sequence_length",
        "n_ctx",
    ),
    "moe_intermediate_size": ("moe_intermediate_size", "expert_intermediate_size"),
    "n_groups": ("n_groups", "mamba_n_groups"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "num_experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "num_experts_per_tok": (
        "num_experts_per_tok",
        "top_k_experts",
        "experts_per_token",
        "num_experts_per_token",
        "moe_top_k",
    ),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_key_value_heads": (
        "num_key_value_heads",
        "num_kv_heads",
        "n_head_kv",
        "kv_n_heads",
        "multi_query_group_num",
    ),
    "num_shared_experts": ("n_shared_experts", "num_shared_experts"),
    "shared_intermediate_size": (
        "shared_expert_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "shared_intermediate_size",
        "share_expert_dim",
    ),
    "ssm_state_size": ("ssm_state_size", "mamba_d_state"),
    "torch_dtype": ("torch_dtype", "dtype"),
    "vocab_size": ("vocab_size", "padded_vocab_size"),
}


_LARGEST = 1 << 40
_MOST = {"num_hidden_layers": 10_000, "num_nextn_predict_layers": 10_000}
"""Counts beyond any model: what is listed per layer must fit memory."""


@dataclass(frozen=True)
class HfKeys:
    """The keys of a config.json as its language model sees them; an absent key and a null one are the same."""

    data: Mapping[str, Any]
    name: str
    file: str | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any], name: str, file: str | None = None) -> HfKeys:
        """Unwrap `text_config` (multimodal models) and DBRX's nested parts; outer keys fill what the inner lack."""
        merged = dict(config)
        for part in ("text_config", "llm_config", "attn_config", "ffn_config"):
            inner = config.get(part)
            if isinstance(inner, Mapping):
                merged.update({key: value for key, value in inner.items() if value is not None})
        return cls(merged, name, file)

    @property
    def model_type(self) -> str:
        """The `model_type`, which decides the family."""
        return str(self.data.get("model_type") or "")

    @property
    def family(self) -> Family:
        """What the family's code fixes."""
        return family_of(self.model_type)

    def error(self, key: str, problem: str, **details: Any) -> ConfigError:
        """A ConfigError that names the file (or the model) and the key."""
        return ConfigError(problem, file=self.file or self.name, key=key, **details)

    def get(self, key: str) -> Any:
        """The value of a key under any of its names, or None."""
        for alias in ALIASES.get(key, (key,)):
            if self.data.get(alias) is not None:
                return self.data[alias]
        return None

    def integer(self, key: str, default: int | None = None) -> int:
        """A count; raises ConfigError when it is missing without a default, or not a whole number from 0 up."""
        value = self.get(key)
        if value is None:
            if default is None:
                raise self.error(key, "is required but missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.error(key, "must be a whole number, 0 or more", value=value)
        most = _MOST.get(key, _LARGEST)
        if value > most:
            raise self.error(key, f"must be at most {most:,}", value=value)
        return value

    def positive(self, key: str, default: int | None = None) -> int:
        """The same, but 0 is refused too."""
        value = self.integer(key, default)
        if value == 0:
            raise self.error(key, "must be at least 1", value=value)
        return value

    def optional(self, key: str) -> int | None:
        """A count, or None when the key is absent or 0."""
        return self.integer(key, 0) or None

    def flag(self, *keys: str, default: bool = False) -> bool:
        """The first of these switches that is present."""
        return next((bool(self.data[key]) for key in keys if self.data.get(key) is not None), default)

    def listed(self, key: str, length: int) -> list[Any] | None:
        """A list of words or numbers, one per layer, or None when the key is absent or not a list."""
        value = self.data.get(key)
        if not isinstance(value, list) or not value:
            return None
        if len(value) != length:
            raise self.error(key, f"lists {len(value)} layers, but num_hidden_layers is {length}")
        if not all(isinstance(entry, (str, int)) for entry in value):
            raise self.error(key, "must list words or numbers")
        return value
