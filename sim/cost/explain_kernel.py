"""One kernel's time, what it is made of, and where the constants came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sim.cost.calibration import Calibration, Entry
from sim.cost.kernels.arithmetic import Terms
from sim.cost.kernels.attention_decode import Heads, decode_terms
from sim.cost.kernels.attention_prefill import prefill_sums_terms
from sim.cost.kernels.collectives import collective_terms
from sim.cost.kernels.elementwise import elementwise_terms
from sim.cost.kernels.gemm import gemm_terms
from sim.cost.kernels.moe import Experts, moe_terms
from sim.errors import ConfigError

Sizes = Mapping[str, int]


class Explained(NamedTuple):
    """A kernel's terms, its 90 % interval in seconds, and the constants that priced it."""

    terms: Terms
    interval_s: tuple[float, float]
    entry: Entry


class _Kind(NamedTuple):
    op_class: str
    dtype: str
    sizes: Mapping[str, int | None]
    price: Callable[[Sizes, Any], Terms]


def _heads(s: Sizes) -> Heads:
    return Heads(s["heads"], s["kv_heads"], s["head_dim"], s["window"])


def _prefill(s: Sizes, kernel: Any) -> Terms:
    pairs = s["sequences"] * (s["tokens"] * s["cached"] + s["tokens"] * (s["tokens"] + 1) / 2)
    return prefill_sums_terms(s["sequences"] * s["tokens"], pairs, s["tokens"], _heads(s), kernel)


def _decode(s: Sizes, kernel: Any) -> Terms:
    return decode_terms(s["sequences"], s["sequences"] * s["context"], _heads(s), kernel)


def _moe(s: Sizes, kernel: Any) -> Terms:
    experts = Experts(s["hidden"], s["inter"], s["top_k"], s["experts"], s["tp"], s["ep"])
    return moe_terms(s["tokens"], experts, kernel)


_LAYOUT: Mapping[str, int | None] = {"heads": None, "kv_heads": None, "head_dim": 128, "window": 0}
KINDS: Mapping[str, _Kind] = {
    "gemm": _Kind(
        "gemm", "bf16", {"m": None, "n": None, "k": None}, lambda s, kernel: gemm_terms(s["m"], s["n"], s["k"], kernel)
    ),
    "prefill": _Kind("attention_prefill", "bf16", {"sequences": 1, "tokens": None, "cached": 0, **_LAYOUT}, _prefill),
    "decode": _Kind("attention_decode", "bf16", {"sequences": None, "context": None, **_LAYOUT}, _decode),
    "moe": _Kind(
        "moe",
        "bf16",
        {"tokens": None, "hidden": None, "inter": None, "top_k": None, "experts": None, "tp": 1, "ep": 1},
        _moe,
    ),
    "all-reduce": _Kind(
        "collective",
        "custom-graph",
        {"bytes": None, "n_gpus": None},
        lambda s, kernel: collective_terms(s["bytes"], s["n_gpus"], kernel),
    ),
    "elementwise": _Kind(
        "elementwise",
        "static_fp8_quant",
        {"rows": None, "bytes_per_row": None},
        lambda s, kernel: elementwise_terms(s["rows"], s["bytes_per_row"], kernel),
    ),
}
"""What can be explained: its class, usual format, and sizes with their defaults (None: must be given)."""


def explain_kernel(
    calibration: Calibration, kind: str, sizes: Sizes, dtype: str | None = None, stack: str = "vllm"
) -> Explained:
    """One kernel priced as in serving. Raises ConfigError for unknown kinds, formats and sizes."""
    if kind not in KINDS:
        raise ConfigError("cannot be explained", key="--kernel", value=kind, choices=KINDS)
    known = KINDS[kind]
    for name in sizes:
        if name not in known.sizes:
            raise ConfigError(f"is not a size of {kind}", key=name, choices=known.sizes)
    given = {**known.sizes, **sizes}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ConfigError(f"{kind} needs it", key=missing[0])
    number_format = dtype or known.dtype
    entry = calibration.find(known.op_class, number_format, stack)
    if entry is None:
        formats = sorted({key.format for key in calibration.entries if key.op_class == known.op_class})
        raise ConfigError("was not measured", key="--dtype", value=number_format, choices=formats)
    found = known.price({name: int(value or 0) for name, value in given.items()}, entry.kernel)
    return Explained(found, _interval(found.seconds, entry), entry)


def _interval(seconds: float, entry: Entry) -> tuple[float, float]:
    low, high = (seconds * math.exp(entry.log_error_quantiles.get(q, 0.0)) for q in (0.05, 0.95))
    return low, high
