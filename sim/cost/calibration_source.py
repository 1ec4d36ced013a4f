"""Where a GPU's calibration comes from: its profile, a block file, or another GPU of its generation."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

from sim.catalog import names
from sim.cost.calibration import Calibration, Entry, Key, read_calibration
from sim.cost.kernels.chip import chip_of
from sim.cost.transfer import transferred
from sim.documents import load_yaml
from sim.errors import ConfigError
from sim.specs.hardware import Gpu, load_gpu

_FAST_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_calibration(gpu: Gpu) -> Calibration:
    """The GPU's own calibration. Raises ConfigError when it was never measured."""
    own = own_calibration(gpu)
    if own is None:
        measured = [name for name in names("hardware") if load_gpu(name).calibration]
        raise ConfigError("this GPU has no calibration", key="hardware", value=gpu.name, choices=measured)
    return own


def find_calibration(gpu: Gpu) -> tuple[Calibration, str] | None:
    """A calibration and its trust label: the GPU's own (`calibrated`), or one carried over (`extrapolated`).

    Constants are carried over within a generation only: its chips differ in roofs and SM count, other generations in
    instructions and libraries as well. Formats that were measured on a sister only complete a GPU's own calibration.
    None when nothing fits; the datasheet with default efficiencies is left then.
    """
    own = own_calibration(gpu)
    if own is not None and gpu.generation == "other":
        return own, "calibrated"
    chip = chip_of(gpu)
    entries: dict[Key, Entry] = {}
    for sister in _measured_sisters(gpu):
        entries = {**transferred(sister, chip).entries, **entries}
    measured = {key[:2] for key in own.entries} if own is not None else set()
    completed = {key: entry for key, entry in entries.items() if key[:2] not in measured}
    if own is not None:
        return Calibration(chip, {**own.entries, **completed}), "calibrated"
    return (Calibration(chip, completed), "extrapolated") if completed else None


def _measured_sisters(gpu: Gpu) -> list[Calibration]:
    others = [other for name, other in _shipped() if name != gpu.name]
    found = [own_calibration(other) for other in others if other.generation == gpu.generation and other.calibration]
    return [calibration for calibration in found if calibration is not None]


@cache
def _shipped() -> list[tuple[str, Gpu]]:
    """The shipped profiles. Reading them takes longer than a small run, and studies make many runs."""
    return [(name, load_gpu(name)) for name in names("hardware")]


def own_calibration(gpu: Gpu) -> Calibration | None:
    """The GPU's own calibration, if it was ever measured."""
    if gpu.calibration is None:
        return None
    if isinstance(gpu.calibration, str):
        return read_block(Path(gpu.calibration), gpu)
    return read_calibration(gpu.calibration, chip_of(gpu))


def read_block(path: Path, gpu: Gpu) -> Calibration:
    """The calibration in a block file. Raises ConfigError naming file and line."""
    try:
        written_ns = path.stat().st_mtime_ns
    except OSError:
        written_ns = 0  # the reader says what is wrong
    return read_calibration(_parse(path, written_ns).get("calibration") or {}, chip_of(gpu))


@lru_cache(maxsize=16)
def _parse(path: Path, written_ns: int) -> dict[str, Any]:
    # Nearly all of a block is numbers that a fit wrote: the fast parser first, the one with line numbers on trouble.
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_FAST_LOADER)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return load_yaml(path).data
    return data if isinstance(data, dict) else load_yaml(path).data
