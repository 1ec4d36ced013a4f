"""Ratios of quantised to plain throughput: which runs are paired, what is counted, and how good the ratios are."""

from __future__ import annotations

from pathlib import Path

import pytest

import sim
from sim.validation.serving.case import Case
from sim.validation.serving.pairs import Pair, needed, pairs_of, verdict
from sim.validation.serving.predict import predict
from sim.validation.serving.read import read_cases

TABLES = Path(sim.__file__).parents[1].parent / "shared" / "measurements" / "serving"
HEAD = "gpu,model,quantisation,engine,engine_version,workload,total_tok_s,ttft_mean_ms,tpot_mean_ms,source\n"


def row(method: str, rate: float, gpu: str = "A100 80GB", tpot: float = 50.0) -> str:
    return f'{gpu},Qwen/Qwen3-8B,{method},vLLM,0.9.2,"sharegpt, 40 prompts all at once",{rate},1000,{tpot},x\n'


def cases_of(folder: Path, *rows: str) -> list[Case]:
    path = folder / "bench.csv"
    path.write_text(HEAD + "".join(rows))
    return read_cases([path])


def test_each_method_is_paired_with_sixteen_bit_on_its_own_gpu(tmp_path: Path) -> None:
    """The ratio is over the plain run of the same GPU; without one, another GPU's stands in and the pair says so."""
    cases = cases_of(tmp_path, row("BF16", 4000.0), row("AWQ", 3000.0), row("AWQ", 5000.0, "RTX 4090"))
    pairs = pairs_of([(case, predict(case)) for case in needed(cases)])
    assert [(pair.gpu, pair.measured, pair.same_gpu) for pair in pairs] == [
        ("A100 80GB", 0.75, True), ("RTX 4090", 1.25, False),
    ]  # fmt: skip
    assert all(pair.predicted > 0 for pair in pairs)


def test_runs_without_a_partner_are_not_simulated(tmp_path: Path) -> None:
    """Nothing but 16 bit, or nothing in it, leaves nothing to compare."""
    assert needed(cases_of(tmp_path, row("BF16", 4000.0))) == []
    assert needed(cases_of(tmp_path, row("AWQ", 4000.0))) == []


def test_signs_count_where_the_measurements_differ() -> None:
    """A ratio within 5 % of one has no sign worth getting right; its error still counts."""
    pairs = [Pair("g", "m", "f", "e", "t", *ratios) for ratios in ((1.5, 1.2), (0.5, 1.5), (1.02, 0.98))]
    found = verdict(pairs)
    assert (found.pairs, found.decided, found.right) == (3, 2, 1)
    assert found.median_pct == pytest.approx(20.0)
    assert verdict([]).pairs == 0


def test_methods_are_read_with_their_kernels(tmp_path: Path) -> None:
    """AWQ without Marlin runs AWQ's own kernels; GPTQ's bits are in its name, and a guess is remarked on."""
    methods = ("AWQ", "AWQ Marlin", "GPTQ (Int8)", "GPTQ-Marlin (Int4)", "GPTQ Marlin", "bitsandbytes", "SpinQuant")
    cases = cases_of(tmp_path, *(row(method, 1.0) for method in methods))
    assert [case.scenario.get("engine", {}).get("quantization") for case in cases] == [
        "awq_gemm", "awq_marlin", "gptq_int8", "gptq", "w8a16", "bitsandbytes", None,
    ]  # fmt: skip
    assert "not stated" in cases[4].remarks[0]
    assert "unknown quantisation" in cases[-1].problem


def test_seats_follow_from_the_times(tmp_path: Path) -> None:
    """Where TPOT times the answer lasts as long as the run, all prompts had seats; else the engine's default holds."""
    whole, part = cases_of(tmp_path, row("BF16", 4000.0, tpot=20.0), row("BF16", 4000.0, tpot=5.0))
    assert whole.scenario["engine"]["max_num_seqs"] == 1024
    assert "max_num_seqs" not in part.scenario["engine"]


@pytest.mark.skipif(not TABLES.is_dir(), reason=f"no measurements at {TABLES}")
def test_ratios_on_measured_servers() -> None:
    """Qwen3-8B under nine methods on two GPUs: median error of the ratio within 10 %, nine signs of ten right."""
    cases = needed(read_cases([TABLES / "quantisation_bench.csv"]))
    pairs = pairs_of([(case, predict(case)) for case in cases])
    found = verdict(pairs)
    assert found.pairs == 11
    assert found.median_pct <= 10.0
    assert found.right >= 0.9 * found.decided
