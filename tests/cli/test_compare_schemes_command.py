"""`roofserve compare schemes` as a user drives it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
FEW = ("--set", "workload.num_requests=40", "--set", "workload.arrival.rate=20")


def compare(roofserve: Command, *more: str, hardware: str = "h100-sxm", model: str = "meta-llama/Llama-2-7b-hf") -> Any:
    return roofserve("compare", "schemes", "--model", model, "--hardware", hardware, *FEW, *more)


def test_a_row_per_scheme_with_everything_that_decides(roofserve: Command) -> None:
    """Throughput, TTFT, TPOT, concurrency, memory, price and quality of each scheme, in the order asked for."""
    answer = compare(roofserve, "--schemes", "none,awq,awq+kv_fp8", "--format", "json")
    assert (answer.code, answer.err) == (0, "")
    plain, awq, both = json.loads(answer.out)
    assert [row["scheme"] for row in (plain, awq, both)] == ["none", "awq", "awq+kv_fp8"]
    for row in (plain, awq, both):
        numbers = ("output_tok_s", "ttft_ms", "tpot_ms", "concurrency", "weights_gb", "kv_gb", "usd_per_mtoken")
        assert all(row[key] > 0 for key in numbers)
    assert plain["weights_gb"] > 3 * awq["weights_gb"]
    assert both["kv_tokens"] == pytest.approx(2 * awq["kv_tokens"], rel=0.01)
    assert plain["quality"] == "0" and "perplexity +2.4 %" in awq["quality"]
    assert both["quality"].endswith("kv_fp8: unknown")


def test_what_the_machine_refuses_stays_in_the_table(roofserve: Command) -> None:
    """A V100 has no FP8: the row says why, the others are there, and the path of each is told."""
    answer = compare(roofserve, "--schemes", "none,fp8,gptq", hardware="v100-sxm-32gb")
    assert (answer.code, answer.err) == (0, "")
    assert "refused: no kernel of vllm multiplies these weights on v100-sxm-32gb" in answer.out
    assert "note: int4-gptq weights are expanded by exllama" in answer.out


def test_a_cpu_serves_gguf_by_itself(roofserve: Command) -> None:
    """On a CPU the engine is llama.cpp and the schemes are GGUF's, without a word from the user."""
    answer = compare(roofserve, "--set", "workload.num_requests=3", "--format", "json", hardware="epyc-9554")
    rows = json.loads(answer.out)
    assert [row["scheme"] for row in rows][:2] == ["q8_0", "q6_k"]
    assert all(row["path"].endswith("multiplied by ggml as they are stored") for row in rows)


def test_files_hold_the_table_and_the_figure(roofserve: Command, tmp_path: Path) -> None:
    """--out leaves the rows as JSON and a PNG."""
    assert compare(roofserve, "--schemes", "none,fp8", "--out", str(tmp_path / "x")).code == 0
    assert len(json.loads((tmp_path / "x" / "schemes.json").read_text())) == 2
    assert (tmp_path / "x" / "schemes.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--schemes", "awk"), "--schemes: 'awk': is not a known scheme (valid, nearest first: awq"),
        (("--schemes", "fp8+awq"), "says nothing about the KV cache"),
        (("--schemes", " , "), "names no scheme"),
        (("--schemes", "q8_0"), "no kernel of vllm multiplies these weights"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, str], problem: str, roofserve: Command) -> None:
    """Unknown schemes, a second one without a cache, and a list that all is refused, exit with 2."""
    answer = compare(roofserve, *arguments)
    assert answer.code == 2
    assert problem in answer.err
    assert answer.err.count("\n") == 1
