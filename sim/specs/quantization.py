"""Quantisation schemes: three independent formats, for weights, activations and KV cache, and the roles left alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sim.specs.architecture import ModelArchitecture
from sim.specs.checkpoint_formats import read_checkpoint
from sim.specs.number_formats import NumberFormat, base_format
from sim.specs.schemes import Scales
from sim.specs.weight_kernels import AUTO, NONE

# Engines quantise linear layers only; routers are small and decide discretely (vLLM, DeepSeek-V3 report section 3.3).
NEVER_QUANTISED = frozenset(
    {
        "embed",
        "lm_head",
        "position",
        "router",
        "shared_gate",
        "norm",
        "bias",
        "sink",
        "state",
        "linear_conv",
        "linear_gates",
        "index_weights",
    }
)

OUTSIDE = frozenset({"embed", "lm_head", "position"})
"""Roles that belong to no layer."""
KEEPABLE: Mapping[str, frozenset[str]] = {
    "qkv_proj": frozenset({"qkv", "q", "q_a", "q_b", "kv_a", "kv_b"}),
    "o_proj": frozenset({"o"}),
    "gate_up_proj": frozenset({"gate_up", "shared_gate_up"}),
    "down_proj": frozenset({"down", "shared_down"}),
    "experts": frozenset({"expert_gate_up", "expert_down"}),
    "linear_attn": frozenset({"linear_in", "linear_out"}),
    "indexer": frozenset({"index_q", "index_k"}),
    "lm_head": frozenset({"lm_head"}),
    "embed_tokens": frozenset({"embed"}),
}
"""Modules that a scenario can leave in 16 bit, and the roles that they have here, which can be named as well."""
ROLES = frozenset[str]().union(*KEEPABLE.values())
AXES = ("weights", "activations", "kv_cache")
Compute = Literal["auto", "16-bit"]
Fuse = Literal["none", "epilogue", "all"]


@dataclass(frozen=True)
class QuantScheme:
    """How a model's weights, activations and KV cache are stored, and so in which format its GEMMs multiply.

    `base` is the unquantised format; matrices whose role is in `kept` stay in it, weights and activations alike, and
    so do the `keep_layers` first and last of the `num_layers` layers. `mixed` names roles whose weights have another
    format than `weights` (GGUF). `kernel` is who multiplies weights that are narrower than the product (`auto` until
    the GPU is known), `compute: 16-bit` multiplies in 16 bit whatever the formats, `fuse` says which of the inserted
    operators disappear in others: none; the scaling of results in the product's epilogue; or also the quantisation of
    activations in the operator before. `scales` of activations are fixed beforehand (static) or found for each token.
    """

    name: str
    weights: NumberFormat
    activations: NumberFormat
    kv_cache: NumberFormat
    base: NumberFormat
    kept: frozenset[str] = NEVER_QUANTISED
    mixed: Mapping[str, NumberFormat] = field(default_factory=dict, hash=False)
    kernel: str = AUTO
    compute: Compute = "auto"
    fuse: Fuse = "epilogue"
    scales: Scales = "dynamic"
    keep_layers: tuple[int, int] = (0, 0)
    num_layers: int = 1
    kv_back_end: str = AUTO

    @classmethod
    def unquantised(cls, architecture: ModelArchitecture) -> QuantScheme:
        """Everything in the model's 16-bit type."""
        base = base_format(architecture.dtype)
        return cls("none", base, base, base, base, num_layers=architecture.num_layers)

    @classmethod
    def from_checkpoint(cls, architecture: ModelArchitecture) -> QuantScheme:
        """What the checkpoint's `quantization_config` says; unquantised when it has none.

        Raises ConfigError for a quantisation method that is not understood.
        """
        found = read_checkpoint(architecture)
        if found is None:
            return cls.unquantised(architecture)
        base = base_format(architecture.dtype)
        return cls(found.method, found.weights, found.activations, found.kv_cache, base, NEVER_QUANTISED | found.kept,
                   num_layers=architecture.num_layers)  # fmt: skip

    def weight_format(self, role: str) -> NumberFormat:
        """The format in which matrices of a role are stored, but for the layers that are kept."""
        if role in self.kept:
            return self.base
        return self.mixed.get(role) or self.mixed.get("") or self.weights

    def activation_format(self, role: str) -> NumberFormat:
        """The format of the inputs that matrices of a role are multiplied with."""
        return self.base if role in self.kept else self.activations

    def compute_format(self, role: str) -> NumberFormat:
        """The format the tensor cores multiply in: the wider of weights and activations.

        Weight-only schemes (AWQ, GPTQ, NF4) expand weights to 16 bits first: they save bytes, never FLOPs. Whether a
        GPU has the format at all is for the cost model to ask.
        """
        weights, activations = self.weight_format(role), self.activation_format(role)
        if self.compute == "16-bit":
            return self.base
        return weights if weights.bits > activations.bits else activations

    def kept_layers(self, role: str, layers: int) -> int:
        """How many of the `layers` layers with this role keep it in 16 bit; exact where all layers have the role."""
        if role in OUTSIDE or role in self.kept:
            return 0
        return min(layers, round(layers * sum(self.keep_layers) / self.num_layers))

    def without_kept_layers(self) -> QuantScheme:
        """The scheme of the other layers."""
        return replace(self, keep_layers=(0, 0))

    def weight_bytes_per_parameter(self, role: str) -> float:
        """Bytes per parameter of the matrices with this role, scales and zero points included, over all layers."""
        form = self.weight_format(role).stored_bytes
        if not any(self.keep_layers) or role in OUTSIDE:
            return form
        share = min(1.0, sum(self.keep_layers) / self.num_layers)
        return share * self.base.stored_bytes + (1.0 - share) * form

    @property
    def kv_bytes_per_element(self) -> float:
        """Bytes per cached element, scales included."""
        return self.kv_cache.stored_bytes

    def as_dict(self) -> dict[str, Any]:
        """The `quantization:` mapping that asks for this scheme again; settings at their defaults are left out."""
        found: dict[str, Any] = {axis: getattr(self, axis).name for axis in AXES}
        for key, default in _DEFAULTS.items():
            if getattr(self, key) not in (default, NONE):
                found[key] = getattr(self, key)
        if any(self.keep_layers):
            found["keep_layers"] = list(self.keep_layers)
        kept = sorted(self.kept - NEVER_QUANTISED)
        return found | ({"keep": kept} if kept else {})


_DEFAULTS = {"scales": "dynamic", "kernel": AUTO, "compute": "auto", "fuse": "epilogue", "kv_back_end": AUTO}
