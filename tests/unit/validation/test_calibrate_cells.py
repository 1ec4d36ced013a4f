"""From tables to constants, and back through the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from sim.cost.calibration import Calibration, Key, read_calibration
from sim.cost.kernels.chip import Chip
from sim.errors import ConfigError
from sim.validation.calibrate import Fitted, cells, fit_and_score, price
from sim.validation.calibration_file import calibration_block, write_block
from sim.validation.kernel_report import price_tables, report_line, unpriced

KEY = Key("attention_decode", "bf16", "vllm")


@pytest.fixture(scope="module")
def fitted(decode_rows: pd.DataFrame, paper_chip: Chip) -> Fitted:
    """The one cell of the paper GPU's table."""
    (cell,) = cells({"attention_decode": decode_rows}, "paper")
    found = fit_and_score(cell, paper_chip)
    assert found is not None
    return found


def test_the_fit_is_as_good_as_the_noise(fitted: Fitted) -> None:
    """Two per cent of noise leave about two per cent of error, on rows seen and on points and shapes left out."""
    scores = fitted.scores()
    assert scores["train"].mape_pct < 2.0
    assert scores["left_out_points"].mape_pct < 4.0
    assert scores["left_out_shapes"].mape_pct < 4.0


def test_efficiencies_come_back(fitted: Fitted) -> None:
    """The share of the HBM peak and the launch cost that the rows were made with are found within five per cent."""
    params = fitted.kernel.params
    assert params.hbm_efficiency == pytest.approx(0.8, rel=0.05)
    assert params.launch_s == pytest.approx(9e-6, rel=0.05)


def test_a_block_survives_its_file(fitted: Fitted, paper_chip: Chip, tmp_path: Path) -> None:
    """Reading the YAML gives the very kernel that was fitted, and its error distribution."""
    path = tmp_path / "block.yaml"
    write_block(calibration_block([(KEY, fitted.entry())]), "paper", path)
    read = read_calibration(yaml.safe_load(path.read_text())["calibration"], paper_chip)
    assert read.entries[KEY].kernel == fitted.kernel
    assert read.entries[KEY].log_error_quantiles == fitted.entry().log_error_quantiles


def test_unknown_parameters_are_refused_by_name(paper_chip: Chip) -> None:
    """A misspelt constant is answered with the one that was meant."""
    block = {"collective": {"custom": {"vllm": {"parameters": {"lanch_s": 1e-6}}}}}
    with pytest.raises(ConfigError, match="launch_s"):
        read_calibration(block, paper_chip)


def test_another_stack_stands_in(fitted: Fitted, paper_chip: Chip) -> None:
    """A stack that was not measured borrows the constants of one that was; another format does not."""
    calibration = Calibration(paper_chip, {KEY: fitted.entry()})
    assert calibration.find("attention_decode", "bf16", "sglang") is calibration.entries[KEY]
    assert calibration.find("attention_decode", "fp8", "vllm") is None


def test_serving_engines_stand_in_before_layer_profilers(fitted: Fitted, paper_chip: Chip) -> None:
    """Of several other stacks, one that serves is taken, whatever the order of the file."""
    profiler, engine = Key("attention_decode", "bf16", "a-profiler"), Key("attention_decode", "bf16", "trtllm")
    entries = {profiler: fitted.entry(), engine: fitted.entry()}
    assert Calibration(paper_chip, entries).find("attention_decode", "bf16", "sglang") is entries[engine]


def test_the_report_scores_counts_and_covers(fitted: Fitted, decode_rows: pd.DataFrame, paper_chip: Chip) -> None:
    """A line has the error of the priced rows, and says how many of them the 90 % interval holds."""
    calibration = Calibration(paper_chip, {KEY: fitted.entry()})
    (part,) = price_tables({"attention_decode": decode_rows}, calibration)
    line = report_line(part)
    assert (line.n, line.priced) == (len(decode_rows), len(decode_rows))
    assert line.score.mape_pct == pytest.approx(fitted.scores()["train"].mape_pct)
    assert line.datasheet.mape_pct > 5 * line.score.mape_pct
    assert line.coverage_pct > 80


def test_rows_without_a_price_are_named(fitted: Fitted, decode_rows: pd.DataFrame, paper_chip: Chip) -> None:
    """A format nobody fitted is counted with its source, and its line has no error figures."""
    calibration = Calibration(paper_chip, {KEY: fitted.entry()})
    rows = pd.concat([decode_rows, decode_rows.head(3).assign(kv_dtype="fp8")], ignore_index=True)
    parts = list(price_tables({"attention_decode": rows}, calibration))
    assert unpriced(parts) == {"attention_decode fp8 (vllm-9.9)": 3}
    fp8 = next(report_line(part).as_json() for part in parts if part.number_format == "fp8")
    assert fp8["priced"] == 0 and fp8["mape"] is None


def test_predictions_do_not_depend_on_the_order_of_rows(fitted: Fitted) -> None:
    """Pricing is row by row."""
    rows = fitted.cell.rows
    shuffled = rows.sample(frac=1, random_state=3)
    forward = pd.Series(price(fitted.cell.family, fitted.kernel, rows), index=rows.index)
    backward = pd.Series(price(fitted.cell.family, fitted.kernel, shuffled), index=shuffled.index)
    np.testing.assert_allclose(forward.sort_index(), backward.sort_index())
