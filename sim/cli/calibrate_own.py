"""The part of `roofserve calibrate` that makes a profile out of a record of measurements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sim.cli.measure import measure_problems, need_gpu
from sim.cost.calibration import Calibration
from sim.cost.calibration_source import own_calibration
from sim.cost.kernels.chip import chip_of
from sim.errors import ConfigError
from sim.validation.calibrate import Fitted, cells, fit_and_score
from sim.validation.measure.problems import calibration_problems
from sim.validation.measure.record import Measurement, read_record, tables
from sim.validation.own_profile import base_gpu, write_profile
from sim.validation.own_report import write_own_report


def measure_here(out: Path, quick: bool, budget_s: float) -> Path:
    """Measure this machine's GPU beside the profile to be; the record's path. Raises NoGpu where there is none."""
    need_gpu()
    from sim.validation.measure.gpu import gpu_count

    record = out.with_suffix(".measurements.jsonl")
    measure_problems(calibration_problems(quick=quick, gpus=gpu_count()), record, budget_s)
    return record


def write_own(
    records: Sequence[Path], out: Path, hardware: str | None, report: Path | None = None
) -> tuple[list[Fitted], Calibration | None, list[Path]]:
    """Fit records of one GPU and write profile, calibration and report; the fits, the shipped constants, the files."""
    environment, measurements = _read(records)
    gpu, text = base_gpu(environment, tables(measurements, out.stem), out.stem, hardware, out.parent / "calibrations")
    rows = tables(measurements, gpu.name)
    chip = chip_of(gpu)
    found = (fit_and_score(cell, chip) for cell in cells(rows, gpu.name))
    fits = [fit for fit in found if fit is not None]
    if not fits:
        raise ConfigError("holds too few measurements to fit anything", file=records[0])
    shipped = own_calibration(gpu)
    own = {fit.cell.key: fit.entry() for fit in fits}
    block = write_profile(out, text, {**(shipped.entries if shipped else {}), **own}, environment)
    page = write_own_report(
        Calibration(chip, own), rows, measurements, environment, report or out.parent / f"{out.stem}-report",
        command=f"roofserve calibrate --from record {' '.join(path.name for path in records)} --out {out.name}",
    )  # fmt: skip
    return fits, shipped, [out, block, page]


def _read(records: Sequence[Path]) -> tuple[dict[str, object], list[Measurement]]:
    environment: dict[str, object] = {}
    measurements: list[Measurement] = []
    for path in records:
        try:
            here, found = read_record(path)
        except OSError as error:
            raise ConfigError(f"cannot be read ({error.strerror})", file=path) from error
        if environment and here.get("gpu_name") != environment.get("gpu_name"):
            raise ConfigError("is of another GPU than the first record", file=path, key="gpu_name",
                              value=here.get("gpu_name"))  # fmt: skip
        environment = environment or here
        measurements += found
    return environment, measurements
