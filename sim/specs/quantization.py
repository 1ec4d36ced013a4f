"""Quantisation schemes: three independent formats, for weights, activations and KV cache, and the roles left alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sim.errors import ConfigError
from sim.specs.architecture import ModelArchitecture
from sim.specs.checkpoint_formats import read_checkpoint
from sim.specs.number_formats import FORMATS, NumberFormat, base_format, find_format

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

AUTO = "auto"

# Scheme name (vLLM's --quantization where it has one) -> formats of weights and activations; AUTO is the model's dtype.
SCHEMES: Mapping[str, tuple[str, str]] = {
    "none": (AUTO, AUTO),
    "fp8": ("fp8", "fp8"),
    "fp8_block": ("fp8_block", "fp8"),
    "fp8_weight_only": ("fp8", AUTO),
    "int8": ("int8", "int8"),
    "w8a8": ("int8", "int8"),
    "w8a16": ("int8", AUTO),
    "w4a16": ("int4", AUTO),
    "awq": ("int4-awq", AUTO),
    "awq_marlin": ("int4-awq", AUTO),
    "gptq": ("int4-gptq", AUTO),
    "gptq_marlin": ("int4-gptq", AUTO),
    "mxfp4": ("mxfp4", AUTO),
    "nvfp4": ("nvfp4", "nvfp4"),
    "bitsandbytes": ("nf4", AUTO),
    "nf4": ("nf4", AUTO),
}
AXES = ("weights", "activations", "kv_cache")


@dataclass(frozen=True)
class QuantScheme:
    """How a model's weights, activations and KV cache are stored, and so in which format its GEMMs multiply.

    `base` is the unquantised format; matrices whose role is in `kept` stay in it, weights and activations alike.
    """

    name: str
    weights: NumberFormat
    activations: NumberFormat
    kv_cache: NumberFormat
    base: NumberFormat
    kept: frozenset[str] = NEVER_QUANTISED

    @classmethod
    def unquantised(cls, architecture: ModelArchitecture) -> QuantScheme:
        """Everything in the model's 16-bit type."""
        base = base_format(architecture.dtype)
        return cls("none", base, base, base, base)

    @classmethod
    def from_checkpoint(cls, architecture: ModelArchitecture) -> QuantScheme:
        """What the checkpoint's `quantization_config` says; unquantised when it has none.

        Raises ConfigError for a quantisation method that is not understood.
        """
        found = read_checkpoint(architecture)
        if found is None:
            return cls.unquantised(architecture)
        base = base_format(architecture.dtype)
        return cls(found.method, found.weights, found.activations, found.kv_cache, base, NEVER_QUANTISED | found.kept)

    def weight_format(self, role: str) -> NumberFormat:
        """The format in which matrices of a role are stored."""
        return self.base if role in self.kept else self.weights

    def activation_format(self, role: str) -> NumberFormat:
        """The format of the inputs that matrices of a role are multiplied with."""
        return self.base if role in self.kept else self.activations

    def compute_format(self, role: str) -> NumberFormat:
        """The format the tensor cores multiply in: the wider of weights and activations.

        Weight-only schemes (AWQ, GPTQ, NF4) expand weights to 16 bits first: they save bytes, never FLOPs. Whether a
        GPU has the format at all is for the cost model to ask.
        """
        weights, activations = self.weight_format(role), self.activation_format(role)
        return weights if weights.bits > activations.bits else activations

    def weight_bytes_per_parameter(self, role: str) -> float:
        """Bytes per parameter of the matrices with this role, scales and zero points included."""
        return self.weight_format(role).stored_bytes

    @property
    def kv_bytes_per_element(self) -> float:
        """Bytes per cached element, scales included."""
        return self.kv_cache.stored_bytes


def parse_quantization(
    value: str | Mapping[str, Any] | None,
    architecture: ModelArchitecture,
    *,
    kv_cache_dtype: str | None = None,
    key: str = "quantization",
) -> QuantScheme:
    """The scheme that a scenario's `quantization:` asks for.

    None keeps what the checkpoint has. A string names a scheme as vLLM's flag does (`fp8`, `awq`, `gptq`). A mapping
    names formats of any of the axes `weights`, `activations`, `kv_cache`; axes left out stay as in the checkpoint.
    `kv_cache_dtype` (vLLM's flag) fills the KV axis unless the mapping does. Raises ConfigError naming `key`, the
    value and the valid choices.
    """
    wanted: dict[str, Any] = {} if kv_cache_dtype is None else {"kv_cache": kv_cache_dtype}
    if isinstance(value, str):
        wanted |= _named_scheme(value, architecture, key)
    elif isinstance(value, Mapping):
        wanted |= _axes(value, key)
    elif value is not None:
        raise ConfigError("must be a scheme's name or a mapping of formats", key=key, value=value, choices=SCHEMES)
    scheme = _starting_scheme(architecture, complete=all(axis in wanted for axis in AXES))
    return _with_axes(scheme, wanted, key) if wanted else scheme


def _starting_scheme(architecture: ModelArchitecture, *, complete: bool) -> QuantScheme:
    """The checkpoint's; someone who names every axis may use a checkpoint whose own scheme is not understood."""
    try:
        return QuantScheme.from_checkpoint(architecture)
    except ConfigError:
        if not complete:
            raise
        return QuantScheme.unquantised(architecture)


def _named_scheme(name: str, architecture: ModelArchitecture, key: str) -> dict[str, Any]:
    lower = name.strip().lower()
    own_method = (architecture.quantization or {}).get("quant_method")
    if lower in (AUTO, own_method):  # `quantization: fp8` beside an FP8 checkpoint: its own details win
        return {}
    if lower not in SCHEMES:
        raise ConfigError("is not a known scheme", key=key, value=name, choices=SCHEMES)
    return dict(zip(AXES, SCHEMES[lower], strict=False)) | {"name": lower}


def _axes(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    unknown = [str(axis) for axis in value if axis not in AXES]
    if unknown:
        raise ConfigError("unknown key", key=f"{key}.{unknown[0]}", choices=AXES)
    return {axis: form for axis, form in value.items() if form is not None}


def _with_axes(scheme: QuantScheme, wanted: Mapping[str, Any], key: str) -> QuantScheme:
    formats = {
        axis: _format(wanted[axis], scheme.base, f"{key}.{axis}") if axis in wanted else getattr(scheme, axis)
        for axis in AXES
    }
    # Roles the checkpoint leaves alone stay so only while its own weight format is used.
    kept = scheme.kept if formats["weights"] == scheme.weights else NEVER_QUANTISED
    name = wanted.get("name") or _describe(formats, scheme.base)
    return QuantScheme(name, **formats, base=scheme.base, kept=kept)


def _format(name: Any, base: NumberFormat, key: str) -> NumberFormat:
    if name == AUTO:
        return base
    found = find_format(name) if isinstance(name, str) else None
    if found is None:
        raise ConfigError("is not a known number format", key=key, value=name, choices=FORMATS)
    return found


def _describe(formats: Mapping[str, NumberFormat], base: NumberFormat) -> str:
    """`weights=int4-awq kv_cache=fp8`: the axes that differ from the model's own type."""
    parts = [f"{axis}={form.name}" for axis, form in formats.items() if form != base]
    return " ".join(parts) or "none"
