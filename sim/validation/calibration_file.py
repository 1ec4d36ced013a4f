"""Calibration blocks as YAML people can read: one line per list, four significant digits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from sim.cost.calibration import Entry, Key, write_entry

_HEAD = """\
# Fitted kernel constants of {name}, by operator class, number format (or implementation) and software stack.
# Written by `roofserve calibrate`. Efficiencies are shares of the datasheet's peaks; residuals are
# 1000 x log(measured / formula).
# Measurements: {provenance}.
# errors: per cent, on the rows of the fit and on points and whole shapes left out of it (cross-validation).
# log_error_quantiles: log(measured/predicted) of the points left out.
"""
PUBLIC_TABLES = (
    "ai-dynamo/aiconfigurator 095f58a51c4c (Apache-2.0, NVIDIA), microsoft/vidur 7d47513363ec (MIT, Microsoft), "
    "casys-kaist/LLMServingSim 5daddb21a545 (MIT, KAIST); a 70 % sample of the rows"
)


class _Dumper(yaml.SafeDumper):
    """Block style for mappings of mappings, one line for leaves."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Line(dict[str, Any]):
    """A mapping that is written on one line."""


_Dumper.add_representer(_Line, lambda d, m: d.represent_mapping("tag:yaml.org,2002:map", m.items(), flow_style=True))
_Dumper.add_representer(list, lambda d, v: d.represent_sequence("tag:yaml.org,2002:seq", v, flow_style=True))
_Dumper.add_representer(float, lambda d, v: d.represent_scalar("tag:yaml.org,2002:float", _number(v)))


def _number(value: float) -> str:
    text = f"{value:.6g}"
    # YAML 1.1 readers take 2e-06 for a string; 2.0e-06 is a float everywhere.
    return (
        text.replace("e", ".0e")
        if "e" in text and "." not in text
        else text
        if "." in text or "e" in text
        else text + ".0"
    )


def calibration_block(entries: Iterable[tuple[Key, Entry]]) -> dict[str, Any]:
    """Entries as the nested mapping of a profile's `calibration:` key."""
    block: dict[str, Any] = {}
    for key, entry in entries:
        block.setdefault(key.op_class, {}).setdefault(key.format, {})[key.stack] = write_entry(entry)
    return block


def write_block(block: Mapping[str, Any], name: str, path: Path, provenance: str = PUBLIC_TABLES) -> None:
    """Write a block as a YAML file with a single top-level key."""
    readable = {
        c: {f: {s: _lines(e) for s, e in stacks.items()} for f, stacks in fs.items()} for c, fs in block.items()
    }
    text = yaml.dump({"calibration": readable}, Dumper=_Dumper, sort_keys=False, width=100_000)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_HEAD.format(name=name, provenance=provenance) + text, encoding="utf-8")


def _lines(entry: Mapping[str, Any]) -> dict[str, Any]:
    written = dict(entry)
    for name in ("format", "parameters", "log_error_quantiles"):
        if name in written:
            written[name] = _Line(written[name])
    if "errors" in written:
        written["errors"] = {how: _Line(stats) for how, stats in written["errors"].items()}
    if "residual" in written:
        sheets = [{"axes": _Line(sheet["axes"]), "per_mille": sheet["per_mille"]} for sheet in written["residual"]]
        written["residual"] = _Blocks(sheets)
    return written


class _Blocks(list[Any]):
    """A list written item by item."""


_Dumper.add_representer(_Blocks, lambda d, v: d.represent_sequence("tag:yaml.org,2002:seq", list(v), flow_style=False))
