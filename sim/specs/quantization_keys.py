"""What a scenario's `quantization:` asks for: a scheme by name, or formats axis by axis and what is left alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from sim.errors import ConfigError
from sim.specs.architecture import ModelArchitecture
from sim.specs.gguf import MIXTURES, mixture
from sim.specs.number_formats import FORMATS, NumberFormat, find_format
from sim.specs.quantization import AXES, KEEPABLE, NEVER_QUANTISED, ROLES, Compute, Fuse, QuantScheme
from sim.specs.schemes import KV_BACK_ENDS, SCHEMES, Scales
from sim.specs.weight_kernels import AUTO, KERNELS

_WORDS: Mapping[str, tuple[str, ...]] = {
    "kernel": (AUTO, *KERNELS),
    "compute": get_args(Compute),
    "fuse": get_args(Fuse),
    "scales": get_args(Scales),
    "kv_back_end": (AUTO, *KV_BACK_ENDS),
}
_KEYS = (*AXES, "scheme", *_WORDS, "keep", "keep_layers")


@dataclass(frozen=True)
class _Asked:
    """The formats by axis, and the other keys of QuantScheme that are given."""

    formats: Mapping[str, Any]
    others: Mapping[str, Any]
    keep: tuple[str, ...] = ()
    name: str = ""


def parse_quantization(
    value: str | Mapping[str, Any] | None,
    architecture: ModelArchitecture,
    *,
    kv_cache_dtype: str | None = None,
    key: str = "quantization",
) -> QuantScheme:
    """The scheme that a scenario's `quantization:` asks for.

    None keeps what the checkpoint has. A string names a scheme as vLLM's flag does (`fp8`, `awq`, `gptq`). A mapping
    names formats of any of the axes `weights`, `activations`, `kv_cache`, perhaps on top of a `scheme`; axes left out
    stay as in the checkpoint. `kv_cache_dtype` (vLLM's flag) fills the KV axis unless the mapping does. Raises
    ConfigError naming `key`, the value and the valid choices.
    """
    asked = _asked(value, architecture, key)
    if kv_cache_dtype is not None and "kv_cache" not in asked.formats:
        asked = replace(asked, formats={**asked.formats, "kv_cache": kv_cache_dtype}, name="")
    scheme = _starting_scheme(architecture, complete=all(axis in asked.formats for axis in AXES))
    if asked.formats:
        scheme = _with_axes(scheme, asked, architecture, key)
    kept = frozenset(role for name in asked.keep for role in KEEPABLE.get(name, {name}))
    return replace(scheme, kept=scheme.kept | kept, **asked.others)


def _asked(value: str | Mapping[str, Any] | None, architecture: ModelArchitecture, key: str) -> _Asked:
    if value is None:
        return _Asked({}, {})
    if isinstance(value, str):
        return _named_scheme(value, architecture, key)
    if not isinstance(value, Mapping):
        raise ConfigError("must be a scheme's name or a mapping of formats", key=key, value=value, choices=SCHEMES)
    unknown = [str(name) for name in value if name not in _KEYS]
    if unknown:
        raise ConfigError("unknown key", key=f"{key}.{unknown[0]}", choices=_KEYS)
    given = {name: item for name, item in value.items() if item is not None}
    base = _Asked({}, {})
    if "scheme" in given:
        base = _named_scheme(given["scheme"], architecture, f"{key}.scheme")
    formats = {axis: given[axis] for axis in AXES if axis in given}
    words: dict[str, Any] = {n: _word(given[n], n, f"{key}.{n}") for n in _WORDS if n in given}
    if "keep_layers" in given:
        words["keep_layers"] = _layers(given["keep_layers"], architecture, f"{key}.keep_layers")
    return _Asked(
        {**base.formats, **formats}, {**base.others, **words}, _modules(given.get("keep", ()), f"{key}.keep"),
        "" if formats else base.name,
    )  # fmt: skip


def _named_scheme(name: Any, architecture: ModelArchitecture, key: str) -> _Asked:
    lower = str(name).strip().lower()
    own_method = (architecture.quantization or {}).get("quant_method")
    if lower in (AUTO, own_method):  # `quantization: fp8` beside an FP8 checkpoint: its own details win
        return _Asked({}, {})
    if lower not in SCHEMES:
        raise ConfigError("is not a known scheme", key=key, value=name, choices=SCHEMES)
    scheme = SCHEMES[lower]
    formats = {"weights": scheme.weights, "activations": scheme.activations}
    if scheme.kv_cache is not None:
        formats["kv_cache"] = scheme.kv_cache
    others = {key: getattr(scheme, key) for key in ("kernel", "scales", "kv_back_end")}
    return _Asked(formats, others, name=lower)


def _word(value: Any, name: str, key: str) -> str:
    if value not in _WORDS[name]:
        raise ConfigError("is not one of the choices", key=key, value=value, choices=_WORDS[name])
    return str(value)


def _modules(value: Any, key: str) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else None
    if names is None:
        raise ConfigError("must be a list of modules", key=key, value=value, choices=KEEPABLE)
    for name in names:
        if name not in KEEPABLE and name not in ROLES:
            raise ConfigError("is not a module that can be kept", key=key, value=name, choices=KEEPABLE)
    return tuple(names)


def _layers(value: Any, architecture: ModelArchitecture, key: str) -> tuple[int, int]:
    counts = value if isinstance(value, (list, tuple)) else ()
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in counts)
    if len(counts) != 2 or not whole or sum(counts) > architecture.num_layers:
        problem = f"must be two numbers, of the first and of the last of the {architecture.num_layers} layers"
        raise ConfigError(problem, key=key, value=value)
    return counts[0], counts[1]


def _starting_scheme(architecture: ModelArchitecture, *, complete: bool) -> QuantScheme:
    """The checkpoint's; someone who names every axis may use a checkpoint whose own scheme is not understood."""
    try:
        return QuantScheme.from_checkpoint(architecture)
    except ConfigError:
        if not complete:
            raise
        return QuantScheme.unquantised(architecture)


def _with_axes(scheme: QuantScheme, asked: _Asked, architecture: ModelArchitecture, key: str) -> QuantScheme:
    mixed = mixture(str(asked.formats.get("weights")), architecture) or {}
    formats = {
        axis: _format(asked.formats[axis], scheme.base, f"{key}.{axis}") for axis in AXES if axis in asked.formats
    }
    if mixed:
        formats["weights"] = replace(mixed[""], name=str(asked.formats["weights"]))
    chosen = {axis: formats.get(axis, getattr(scheme, axis)) for axis in AXES}
    # Roles the checkpoint leaves alone stay so only while its own weight format is used.
    kept = scheme.kept if chosen["weights"] == scheme.weights else NEVER_QUANTISED - mixed.keys()
    name = asked.name or _describe(chosen, scheme.base)
    return replace(scheme, name=name, **chosen, kept=kept, mixed=mixed)


def _format(name: Any, base: NumberFormat, key: str) -> NumberFormat:
    if name == AUTO:
        return base
    if name in MIXTURES and key.endswith(".weights"):
        return base  # its matrices differ: see `mixture`
    found = find_format(name) if isinstance(name, str) else None
    if found is None:
        raise ConfigError("is not a known number format", key=key, value=name, choices=(*FORMATS, *MIXTURES))
    return found


def _describe(formats: Mapping[str, NumberFormat], base: NumberFormat) -> str:
    """`weights=int4-awq kv_cache=fp8`: the axes that differ from the model's own type."""
    parts = [f"{axis}={form.name}" for axis, form in formats.items() if form != base]
    return " ".join(parts) or "none"
