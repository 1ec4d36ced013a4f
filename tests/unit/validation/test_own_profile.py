"""From a record of measurements to a profile of one's own, on a GPU that exists on paper only."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sim.cli.calibrate_own import write_own
from sim.cost.calibration import Key
from sim.cost.calibration_source import own_calibration
from sim.cost.kernels.attention_decode import DecodeFormat, DecodeKernel, DecodeParams
from sim.cost.kernels.chip import chip_of
from sim.cost.kernels.elementwise import ElementwiseFormat, ElementwiseKernel, ElementwiseParams
from sim.cost.kernels.gemm import GemmKernel, GemmParams
from sim.cost.kernels.swap import SwapFormat, SwapKernel, SwapParams
from sim.errors import ConfigError
from sim.specs.hardware import load_gpu
from sim.validation.calibrate import cells, fit_and_score, price
from sim.validation.families.attention import DecodeFamily, SharedPrefixFamily
from sim.validation.families.base import Family
from sim.validation.families.elementwise import ElementwiseFamily
from sim.validation.families.gemm import OWN_FORMATS, GemmFamily
from sim.validation.families.swap import SwapFamily
from sim.validation.kernel_report import price_tables
from sim.validation.measure.problems import Problem, calibration_problems
from sim.validation.measure.record import STACK, Measurement, Record, from_seconds, tables
from sim.validation.own_profile import base_gpu, facts_of, write_profile
from sim.validation.tables import read_tables

H200 = {"gpu_name": "NVIDIA H200", "torch": "2.13.0"}
CHIP = chip_of(load_gpu("h200-sxm"))
NOISE = 0.01
GEMM = GemmParams(4e-6, mma_efficiency=0.7, hbm_efficiency=0.8, overlap_power=4.0, tile_s=1e-6, wave_hardness=0.5)
DECODE = DecodeParams(6e-6, hbm_efficiency=0.75, overlap_power=4.0, block_s=2e-6, stream_bytes_per_s=4e10)
PASS = ElementwiseParams(2.5e-6, hbm_efficiency=0.6, l2_speedup=2.0)
ONE_BY_ONE, AT_ONCE = SwapParams(1e-5, copy_s=4e-6, pcie_efficiency=0.8), SwapParams(2e-5, pcie_efficiency=0.85)
TRUTH: Mapping[Key, tuple[Family, Any, Callable[[Problem], bool]]] = {
    Key("gemm", "w4a16", STACK): (
        GemmFamily(), GemmKernel(CHIP, OWN_FORMATS["w4a16"], GEMM),
        lambda p: p.columns.get("scheme") == "w4a16" and int(p.columns["n"]) > 6000,
    ),
    Key("attention_decode", "bf16", STACK): (
        DecodeFamily(), DecodeKernel(CHIP, DecodeFormat(), DECODE),
        lambda p: p.table == "attention_decode" and p.columns["kv_dtype"] == "bf16" and p.columns["num_heads"] == 32,
    ),
    Key("elementwise", "add_rms_norm", STACK): (
        ElementwiseFamily(), ElementwiseKernel(CHIP, ElementwiseFormat(), PASS),
        lambda p: p.columns.get("op") == "add_rms_norm",
    ),
    Key("swap", "out_blockwise", STACK): (
        SwapFamily(), SwapKernel(CHIP, SwapFormat(True), ONE_BY_ONE), lambda p: p.columns.get("how") == "out_blockwise"
    ),
    Key("swap", "in_batched", STACK): (
        SwapFamily(), SwapKernel(CHIP, SwapFormat(), AT_ONCE), lambda p: p.columns.get("how") == "in_batched"
    ),
}  # fmt: skip


def _times(family: Family, kernel: Any, problems: list[Problem]) -> list[float]:
    unknown = [Measurement(p.table, p.columns, 1.0) for p in problems]
    (rows,) = tables(unknown, CHIP.name).values()
    return [float(seconds) for seconds in price(family, kernel, family.prepare(rows))]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quick problems of a few classes, timed by known constants with one per cent of noise; one failed."""
    path = tmp_path_factory.mktemp("record") / "mine.jsonl"
    draw, problems = random.Random(1), calibration_problems(quick=True)
    file = Record(path)
    file.open(H200)
    for family, kernel, wanted in TRUTH.values():
        chosen = [problem for problem in problems if wanted(problem)]
        for problem, seconds in zip(chosen, _times(family, kernel, chosen), strict=True):
            noisy = seconds * math.exp(NOISE * draw.gauss(0, 1))
            file.append(from_seconds(problem, noisy, 0.01, 20, {"sm_mhz": 1980.0, "power_w": 500.0}))
    for size, slower in ((0, 0.9), (8, 1.1), (16, 1.0), (32, 1.0)):
        sizes = {**next(p for p in problems if p.table == "decode_blocks").columns, "block_tokens": size}
        file.append(from_seconds(Problem.of("decode_blocks", **sizes), 1e-4 * slower, 0.0, 20, {}))
    file.append(Measurement("gemm", {"scheme": "fp8", "m": 1, "n": 8, "k": 8}, error="RuntimeError: no | kernel"))
    return path


@pytest.fixture(scope="module")
def written(record: Path) -> tuple[Path, list[Path]]:
    """The profile that is written for the record, and the other files."""
    out = record.parent / "mine.yaml"
    return out, write_own([record], out, None)[2]


def test_known_constants_come_back(written: tuple[Path, list[Path]]) -> None:
    """Shares of the roofs and launch costs are found again through record, fit and file."""
    entries = own_calibration(load_gpu(written[0])).entries  # type: ignore[union-attr]
    found = {key: entries[key].kernel.params for key in TRUTH}
    for key, (_, kernel, _) in TRUTH.items():
        assert entries[key].errors["left_out_points"]["mape_pct"] < 5 * 100 * NOISE, key
        assert found[key].launch_s == pytest.approx(kernel.params.launch_s, rel=0.15), key
    gemm, decode = found[Key("gemm", "w4a16", STACK)], found[Key("attention_decode", "bf16", STACK)]
    assert gemm.hbm_efficiency == pytest.approx(0.8, rel=0.05)
    assert gemm.mma_efficiency == pytest.approx(0.7, rel=0.1)
    assert decode.hbm_efficiency == pytest.approx(0.75, rel=0.05)
    assert found[Key("swap", "out_blockwise", STACK)].copy_s == pytest.approx(4e-6, rel=0.05)
    assert found[Key("swap", "in_batched", STACK)].pcie_efficiency == pytest.approx(0.85, rel=0.05)


def test_a_shared_prefix_is_two_passes() -> None:
    """Its constants are found from the sum of a prefix read once for all members and a suffix for each."""
    problems = [p for p in calibration_problems(quick=True) if p.table == "attention_shared"]
    seconds = _times(SharedPrefixFamily(), DecodeKernel(CHIP, DecodeFormat(), DECODE), problems)
    timed = [from_seconds(p, each, 0.0, 20, {}) for p, each in zip(problems, seconds, strict=True)]
    (cell,) = cells(tables(timed, CHIP.name), CHIP.name)
    assert cell.key == Key("attention_decode", "bf16-shared", STACK)
    fitted = fit_and_score(cell, CHIP, validate=False)
    assert fitted is not None
    assert fitted.scores()["train"].mape_pct < 3
    whole = price(
        DecodeFamily(), fitted.kernel, cell.rows.assign(prefix_len=cell.rows.prefix_len + cell.rows.shared_len)
    )
    assert (fitted.cell.measured_s < whole)[cell.rows.batch >= 64].all()


def test_the_profile_keeps_the_facts_and_other_stacks(written: tuple[Path, list[Path]]) -> None:
    """A recognised GPU keeps its datasheet, and the constants of serving engines beside its own."""
    gpu, shipped = load_gpu(written[0]), load_gpu("h200-sxm")
    assert (gpu.name, gpu.tensor_flops, gpu.sm_count) == ("mine", shipped.tensor_flops, shipped.sm_count)
    entries, others = own_calibration(gpu).entries, own_calibration(shipped).entries  # type: ignore[union-attr]
    assert set(entries) == set(others) | set(TRUTH)
    assert entries[Key("gemm", "bf16", "vllm")].kernel.params == others[Key("gemm", "bf16", "vllm")].kernel.params
    assert "NVIDIA H200" in written[0].read_text()


def test_a_profile_may_be_calibrated_again(written: tuple[Path, list[Path]]) -> None:
    """Written over itself, a profile has one head, one name and one calibration still, and the same facts."""
    out, text = written[0], written[0].read_text()
    gpu, kept = base_gpu(H200, {}, "mine", str(out), out.parent)
    write_profile(out, kept, own_calibration(gpu).entries, H200)  # type: ignore[union-attr]
    assert out.read_text() == text


def test_the_report_shows_what_was_measured(written: tuple[Path, list[Path]]) -> None:
    """The page has the environment, the errors, a comparison, the clocks and what failed; figures lie beside it."""
    page = written[1][-1]
    text = page.read_text()
    assert "| torch | 2.13.0 |" in text
    assert "| gemm | w4a16 | roofserve-kernels |" in text
    assert "| decode, blocks of 8 over blocks of 16 | 1.100 | 1 |" in text
    assert "| sm_mhz | 1980.0 | 1980.0 | 1980.0 |" in text
    assert "| gemm fp8 | RuntimeError: no / kernel | 1 |" in text
    assert {file.name for file in page.parent.iterdir()} >= {"errors.png", "roofline.png", "gemm.csv", "swap.csv"}


def test_the_csv_of_a_report_is_read_back(written: tuple[Path, list[Path]], record: Path) -> None:
    """Tables written beside the page hold what the record holds, and are told apart by their columns."""
    files = sorted(written[1][-1].parent.glob("*.csv"))
    back, direct = read_tables(files), read_tables([record], "h200-sxm")
    assert {name: len(rows) for name, rows in back.items()} == {name: len(rows) for name, rows in direct.items()}
    assert back["gemm"].latency_us.to_numpy() == pytest.approx(direct["gemm"].latency_us.to_numpy(), rel=1e-4)


def test_unequal_contexts_cost_more(written: tuple[Path, list[Path]], record: Path) -> None:
    """Of two batches with the same total context, the one with a longer longest takes no less time."""
    calibration = own_calibration(load_gpu(written[0]))
    assert calibration is not None
    rows = read_tables([record], "mine")["attention_decode"]
    (part,) = price_tables({"attention_decode": rows}, calibration)
    sizes = ["batch", "prefix_len", "num_heads", "num_kv_heads", "head_dim"]
    priced = part.rows.assign(seconds=part.predicted_s)
    longest = priced[priced.longest > priced.prefix_len + 1].merge(priced, on=sizes, suffixes=("_uneven", ""))
    longest = longest[longest.longest == longest.prefix_len + 1]
    assert len(longest) > 5
    assert (longest.seconds_uneven >= longest.seconds * 0.999).all()


def test_a_gpu_without_a_profile_is_described_by_its_driver(record: Path) -> None:
    """Facts come from the driver, roofs from the best rates measured; too little measured is said so."""
    environment = {
        "gpu_name": "NVIDIA X1", "compute_capability": "8.9", "memory_bytes": 16 << 30, "l2_bytes": 32 << 20,
        "sm_count": 40,
    }  # fmt: skip
    same = {"gpu": "x1", "source": "roofserve-kernels-1"}
    measured = {
        "gemm": pd.DataFrame([{"scheme": "bf16", "m": 4096, "n": 4096, "k": 4096, "latency_us": 1000.0, **same}]),
        "passes": pd.DataFrame([{"op": "copy", "m": 8192, "width": 8192, "latency_us": 1000.0, **same}]),
        "swap": pd.DataFrame(
            [{"how": "out_batched", "blocks": 10, "block_bytes": 1 << 20, "latency_us": 500.0, **same}]
        ),
    }
    facts = facts_of(environment, measured, "x1")
    assert facts["tensor_flops"] == {
        "bf16": {"value": "1.374e+14 FLOP/s", "source": facts["tensor_flops"]["bf16"]["source"]}
    }
    assert facts["memory_bandwidth_bytes_per_s"]["value"] == "2.684e+11 B/s"
    assert facts["sm_count"] == 40
    with pytest.raises(ConfigError, match="needs measured GEMMs"):
        facts_of(environment, {}, "x1")
    gpu_file = record.parent / "x1.yaml"
    from yaml import safe_dump

    gpu_file.write_text(safe_dump(facts))
    assert load_gpu(gpu_file).peak_flops("bf16") == pytest.approx(1.374e14)
