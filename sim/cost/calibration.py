"""A profile's `calibration:` block as kernels: fitted constants and error statistics by class, format and stack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, NamedTuple

from sim.cost.kernels.attention_decode import DecodeFormat, DecodeKernel, DecodeParams
from sim.cost.kernels.attention_prefill import PrefillFormat, PrefillKernel, PrefillParams
from sim.cost.kernels.chip import Chip
from sim.cost.kernels.collectives import CollectiveFormat, CollectiveKernel, CollectiveParams
from sim.cost.kernels.elementwise import ElementwiseFormat, ElementwiseKernel, ElementwiseParams
from sim.cost.kernels.gemm import GemmFormat, GemmKernel, GemmParams
from sim.cost.kernels.moe import MoeFormat, MoeKernel, MoeParams
from sim.cost.kernels.residual import ResidualTable, Sheet
from sim.cost.kernels.swap import SwapFormat, SwapKernel, SwapParams
from sim.errors import ConfigError

Kernel = GemmKernel | PrefillKernel | DecodeKernel | MoeKernel | CollectiveKernel | ElementwiseKernel | SwapKernel


class _Class(NamedTuple):
    kernel: type[Any]
    format: type[Any]
    params: type[Any]


CLASSES: Mapping[str, _Class] = {
    "gemm": _Class(GemmKernel, GemmFormat, GemmParams),
    "attention_prefill": _Class(PrefillKernel, PrefillFormat, PrefillParams),
    "attention_decode": _Class(DecodeKernel, DecodeFormat, DecodeParams),
    "moe": _Class(MoeKernel, MoeFormat, MoeParams),
    "collective": _Class(CollectiveKernel, CollectiveFormat, CollectiveParams),
    "elementwise": _Class(ElementwiseKernel, ElementwiseFormat, ElementwiseParams),
    "swap": _Class(SwapKernel, SwapFormat, SwapParams),
}
_PER_MILLE = 1000.0
_STAND_INS = ("vllm", "trtllm", "sglang", "nccl")
"""Stacks that stand in for one that was not measured, serving engines before layer profilers."""


class Key(NamedTuple):
    """Which constants: the operator class, its number format (or implementation), and the software stack."""

    op_class: str
    format: str
    stack: str


@dataclass(frozen=True)
class Entry:
    """One set of fitted constants, ready to price, and how far it was off.

    `errors` holds statistics in per cent by how the points were chosen: `train`, `left_out_points`,
    `left_out_shapes`. `log_error_quantiles` is the distribution of log(measured / predicted) on left-out points.
    """

    kernel: Kernel
    source: str = ""
    errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    log_error_quantiles: Mapping[float, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """All fitted constants of one GPU."""

    chip: Chip
    entries: Mapping[Key, Entry]

    def find(self, op_class: str, number_format: str, stack: str = "vllm") -> Entry | None:
        """The entry for a class, format and stack; another stack's when this one was not measured; else None."""
        found = {key.stack: entry for key, entry in self.entries.items() if key[:2] == (op_class, number_format)}
        for name in (stack, *_STAND_INS, *sorted(found)):
            if name in found:
                return found[name]
        return None


def read_calibration(block: Mapping[str, Any], chip: Chip) -> Calibration:
    """The kernels that a profile's `calibration:` mapping describes. Raises ConfigError for unknown names."""
    entries: dict[Key, Entry] = {}
    for key, written in _walk(block):
        if key.op_class not in CLASSES:
            raise ConfigError("unknown operator class", key="calibration", value=key.op_class, choices=CLASSES)
        entries[key] = _read_entry(key, written, chip)
    return Calibration(chip, entries)


def _walk(block: Mapping[str, Any]) -> Iterator[tuple[Key, Mapping[str, Any]]]:
    for op_class, formats in block.items():
        for number_format, stacks in formats.items():
            for stack, written in stacks.items():
                yield Key(op_class, str(number_format), str(stack)), written


def _read_entry(key: Key, written: Mapping[str, Any], chip: Chip) -> Entry:
    kind = CLASSES[key.op_class]
    fmt = _build(kind.format, written.get("format", {}), key)
    params = _build(kind.params, written.get("parameters", {}), key)
    residual = ResidualTable(tuple(_read_sheet(sheet) for sheet in written.get("residual", ())))
    quantiles = {float(q): float(v) for q, v in written.get("log_error_quantiles", {}).items()}
    return Entry(
        kind.kernel(chip, fmt, params, residual), str(written.get("source", "")), written.get("errors", {}), quantiles
    )


def _build(record: type[Any], written: Mapping[str, Any], key: Key) -> Any:
    known = {f.name: f for f in fields(record)}
    for name in written:
        if name not in known:
            raise ConfigError("unknown key", key=f"calibration.{'.'.join(key)}", value=name, choices=known)
    missing = [
        n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in written
    ]
    if missing:
        raise ConfigError(f"{missing[0]} is required but missing", key=f"calibration.{'.'.join(key)}")
    return record(**{name: _frozen(value) for name, value in written.items()})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value


def _read_sheet(written: Mapping[str, Any]) -> Sheet:
    axes = tuple((name, tuple(float(knot) for knot in knots)) for name, knots in written["axes"].items())
    return Sheet(axes, tuple(value / _PER_MILLE for value in written["per_mille"]))


def write_entry(entry: Entry) -> dict[str, Any]:
    """The mapping that `read_calibration` turns back into the entry; values at their neutral default are left out."""
    kernel = entry.kernel
    written: dict[str, Any] = {"source": entry.source, "format": _changed(kernel.format)}
    written["parameters"] = _changed(kernel.params)
    if kernel.residual.sheets:
        written["residual"] = [_write_sheet(sheet) for sheet in kernel.residual.sheets]
    written["errors"] = {how: dict(stats) for how, stats in entry.errors.items()}
    written["log_error_quantiles"] = dict(entry.log_error_quantiles)
    return {name: value for name, value in written.items() if value}


def _changed(record: Any) -> dict[str, Any]:
    values = asdict(record)
    return {f.name: _thawed(values[f.name]) for f in fields(record) if values[f.name] != f.default}


def _thawed(value: Any) -> Any:
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value


def _write_sheet(sheet: Sheet) -> dict[str, Any]:
    axes = {name: [int(k) if float(k).is_integer() and k < 1e6 else k for k in knots] for name, knots in sheet.axes}
    return {"axes": axes, "per_mille": [round(value * _PER_MILLE) for value in sheet.values]}
