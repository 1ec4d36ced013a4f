"""Where a GPU's calibration comes from: its profile, or a block file beside the profiles."""

from __future__ import annotations

from sim.catalog import folder
from sim.cost.calibration import Calibration, read_calibration
from sim.cost.kernels.chip import chip_of
from sim.errors import ConfigError
from sim.specs.hardware import Gpu
from sim.validation.calibration_file import read_block

BLOCKS = "calibration_blocks"


def load_calibration(gpu: Gpu) -> Calibration:
    """The calibration of a GPU. Raises ConfigError when it has none."""
    chip = chip_of(gpu)
    if gpu.calibration:
        return read_calibration(gpu.calibration, chip)
    path = folder("hardware").parent / BLOCKS / f"{gpu.name}.yaml"
    if path.is_file():
        return read_block(path, chip)
    raise ConfigError("this GPU has no calibration", key="hardware", value=gpu.name)
