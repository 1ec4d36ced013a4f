"""The constants we ship, held against the public measurements they were fitted to."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

import sim
from sim.cost.calibration_source import find_calibration, load_calibration
from sim.cost.transfer import transferred
from sim.specs.hardware import load_gpu
from sim.validation.kernel_report import Line, price_tables, report_line
from sim.validation.tables import read_tables

MEASURED = ["a100-sxm-80gb", "h100-sxm", "h200-sxm"]
TABLES = Path(sim.__file__).parents[1].parent / "shared" / "measurements" / "kernels"
needs_tables = pytest.mark.skipif(
    not TABLES.exists(), reason="the public measurement tables are not beside the checkout"
)


def lines(hardware: str, *names: str) -> dict[tuple[str, str], Line]:
    """Report lines of some tables, priced with the shipped constants."""
    tables = read_tables([TABLES / f"{name}.csv" for name in names])
    found = [report_line(part) for part in price_tables(tables, load_calibration(load_gpu(hardware)))]
    return {(line.table, line.number_format): line for line in found}


@pytest.mark.parametrize("hardware", MEASURED)
def test_shipped_parameters_are_few(hardware: str) -> None:
    """At most a dozen parameters and about a hundred residual values per class and format."""
    for key, entry in load_calibration(load_gpu(hardware)).entries.items():
        values = sum(len(sheet.values) for sheet in entry.kernel.residual.sheets)
        params = entry.kernel.params
        fitted = [f.name for f in fields(params) if getattr(params, f.name) != f.default]
        assert values <= 110, key
        assert len(fitted) <= 12, key


@needs_tables
@pytest.mark.parametrize("hardware", MEASURED)
def test_every_row_is_priced_without_bias(hardware: str) -> None:
    """All attention and GEMM rows have a price, within 8 % on average and 3 % in the mean."""
    found = lines(hardware, "gemm", "attention_prefill", "attention_decode")
    for name, line in found.items():
        assert line.priced == line.n, name
        assert line.score.mape_pct < 8, name
        assert abs(line.score.bias_pct) < 3, name
        assert line.score.mape_pct < line.datasheet.mape_pct / 3, name


@needs_tables
def test_transfer_within_a_generation_stays_near(tmp_path: Path) -> None:
    """The H200 priced with the H100's constants and its own roofs is within 11 % for bf16 and attention."""
    tables = read_tables([TABLES / f"{name}.csv" for name in ("attention_decode", "attention_prefill")])
    h200 = load_calibration(load_gpu("h200-sxm")).chip
    carried = transferred(load_calibration(load_gpu("h100-sxm")), h200)
    for part in price_tables(tables, carried):
        assert report_line(part).score.mape_pct < 11


def test_sisters_complete_and_others_do_without() -> None:
    """An unmeasured Hopper card extrapolates; a measured one keeps its own and borrows formats; Turing has nothing."""
    pcie, h100 = find_calibration(load_gpu("h100-pcie")), find_calibration(load_gpu("h100-sxm"))
    assert pcie is not None and pcie[1] == "extrapolated"
    assert h100 is not None and h100[1] == "calibrated"
    borrowed = h100[0].find("gemm", "w4a16")
    assert borrowed is not None and borrowed.source.startswith("extrapolated from h200-sxm")
    assert find_calibration(load_gpu("v100-sxm-32gb")) is None
