"""`roofserve explain`: one kernel, or the operators of one step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sim.cli import call

GEMM = [
    "explain",
    "--kernel",
    "gemm",
    "--hardware",
    "h100-sxm",
    "-m",
    "64",
    "-n",
    "8192",
    "-k",
    "8192",
    "--dtype",
    "fp8",
]


def answer(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> dict[str, object]:
    """What the command prints as JSON."""
    assert call([*arguments, "--format", "json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_a_gemm_reads_its_weights_no_faster_than_memory_allows(capsys: pytest.CaptureFixture[str]) -> None:
    """64 x 8192 x 8192 in FP8 moves 67 MB of weights: at least 20 us at 3.35 TB/s; the interval holds the answer."""
    found = answer(capsys, GEMM)
    low, high = found["interval_us"]  # type: ignore[misc]
    assert found["bound"] == "memory" and found["trust"] == "calibrated"
    assert 8192 * 8192 / 3.35e12 * 1e6 < low < found["us"] < high < 60  # type: ignore[operator]


def test_a_kernel_can_be_drawn(tmp_path: Path) -> None:
    """`--plot` writes a picture of the roofline."""
    assert call([*GEMM, "--plot", str(tmp_path / "roof.png")]) == 0
    assert (tmp_path / "roof.png").read_bytes().startswith(b"\x89PNG")


def test_a_step_adds_up_its_operators(capsys: pytest.CaptureFixture[str]) -> None:
    """The operators' times sum to the step's, their shares to 100 %, and decode is bound by memory."""
    found = answer(capsys, ["explain", "quickstart", "--sequences", "16", "--context", "700"])
    rows: list[dict[str, float]] = found["rows"]  # type: ignore[assignment]
    assert sum(row["us"] for row in rows) == pytest.approx(found["ms"] * 1e3)  # type: ignore[operator]
    assert sum(row["share %"] for row in rows) == pytest.approx(100)
    assert {row["bound"] for row in rows if row["operator"] in ("gate_up", "down")} == {"memory"}


def test_a_long_prompt_is_bound_by_compute(capsys: pytest.CaptureFixture[str]) -> None:
    """With 4096 prompt tokens the large matrix products hit the tensor cores' roof."""
    found = answer(capsys, ["explain", "quickstart", "--sequences", "0", "--prompt", "4096"])
    rows: list[dict[str, str]] = found["rows"]  # type: ignore[assignment]
    assert {row["bound"] for row in rows if row["operator"] in ("gate_up", "down")} == {"compute"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explain"], "name a SCENARIO"),
        (["explain", "--kernel", "gemm", "-m", "1", "-n", "1", "-k", "1"], "--hardware"),
        (["explain", "--kernel", "gemm", "--hardware", "h100-sxm", "-m", "1", "-n", "64"], "k: gemm needs it"),
        (
            [
                "explain",
                "--kernel",
                "gemm",
                "--hardware",
                "h100-sxm",
                "-m",
                "1",
                "-n",
                "64",
                "-k",
                "64",
                "--dtype",
                "fp9",
            ],
            "fp8",
        ),
        (["explain", "--kernel", "decode", "--hardware", "h100-sxm", "--size", "head=3"], "heads"),
        (["explain", "--kernel", "gemm", "--hardware", "l40s", "-m", "1", "-n", "64", "-k", "64"], "calibrated"),
        (["explain", "quickstart", "--sequences", "0"], "--sequences"),
    ],
)
def test_mistakes_are_answered_in_a_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is missing or unknown is named, with the nearest valid choice, and the exit code is 2."""
    assert call(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_run_states_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`run --uncertainty` puts an interval beside every headline metric; the same seed gives the same ones."""
    arguments = ["run", "quickstart", "--set", "workload.num_requests=60", "--uncertainty", "4", "--no-report"]
    texts = []
    for name in ("a", "b"):
        assert call([*arguments, "--out", str(tmp_path / name), "--format", "json"]) == 0
        texts.append(capsys.readouterr().out)
    summary = json.loads(texts[0])
    stated = summary["intervals"]["metrics"]
    assert texts[0] == texts[1] and summary["intervals"]["repetitions"] == 4
    low, high = stated["mean_tpot_ms"]
    assert low < high and 0.7 * summary["mean_tpot_ms"] < high and low < 1.3 * summary["mean_tpot_ms"]
    assert {"p99_ttft_ms", "output_throughput"} <= set(stated)
