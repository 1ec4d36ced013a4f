"""The public traces read as their publishers describe them. Skipped where the files are absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sim.units import ceil_div
from sim.workloads.trace_stats import prefix_hit_bound, summarise
from sim.workloads.traces import read_trace

TRACES = Path(__file__).resolve().parents[3].parent / "shared" / "traces"
pytestmark = pytest.mark.skipif(not TRACES.exists(), reason="the public trace files are not on this machine")

# file: requests, span s, rate, mean / median / max input, mean / median / max output
GOLDEN: dict[str, tuple[float | None, ...]] = {
    "AzureLLMInferenceTrace_conv.csv": (19_366, 3502, 5.53, 1155, 1020, 14_050, 211, 129, 1000),
    "AzureLLMInferenceTrace_code.csv": (8_819, 3436, 2.57, 2048, 1469, 7_437, 28, 13, 1899),
    "mooncake_conversation_trace.jsonl": (12_031, 3537, 3.40, 12_035, 6909, 126_195, 343, 350, 2000),
    "mooncake_synthetic_trace.jsonl": (3_993, 1022, 3.91, 15_325, 11_587, 191_378, 149, 69, None),
    "llmservingsim_sharegpt_llama3.1-8b_300.jsonl": (300, 29.2, 10.3, 857, 732, None, 653, 632, None),
    "llmservingsim_me2_01_mixed.jsonl": (608, 61, 10.0, 9218, None, None, 3021, None, None),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_statistics_are_those_of_the_source(name: str) -> None:
    """Row count, span, rate and lengths agree with what was computed from the originals."""
    s = summarise(read_trace(TRACES / name))
    ours = [s["requests"], s["span_s"], s["mean_rate"]]
    ours += [s[key][what] for key in ("input_tokens", "output_tokens") for what in ("mean", "p50", "max")]
    for value, expected in zip(ours, GOLDEN[name], strict=True):
        assert expected is None or value == pytest.approx(expected, rel=0.005, abs=0.51 if expected > 20 else 0.03)
    assert s["rows_read"] == s["requests"]
    assert not s["notes"]


@pytest.mark.parametrize(("name", "bound"), [("conversation", 0.366), ("synthetic", 0.640)])
def test_prefix_hits_of_mooncake(name: str, bound: float) -> None:
    """Every prompt has one hash per 512 tokens, and an infinite cache would serve the published share of blocks."""
    trace = read_trace(TRACES / f"mooncake_{name}_trace.jsonl")
    assert trace.prefix_block_tokens == 512
    assert trace.prefix_hashes is not None
    blocks = [ceil_div(n, 512) for n in trace.input_tokens.tolist()]
    assert [len(h) for h in trace.prefix_hashes] == blocks
    assert prefix_hit_bound(trace) == pytest.approx(bound, abs=0.0005)


@pytest.mark.parametrize(("name", "cv"), [("conv", 1.09), ("code", 13.2)])
def test_burstiness_of_azure(name: str, cv: float) -> None:
    """The gaps of the whole trace vary as published."""
    summary = summarise(read_trace(TRACES / f"AzureLLMInferenceTrace_{name}.csv"))
    assert summary["arrival_cv"] == pytest.approx(cv, rel=0.01)


def test_timestamps_keep_their_seven_digits() -> None:
    """Azure gives 100 ns: the second conversation request comes 4.314579 s after the first."""
    trace = read_trace(TRACES / "AzureLLMInferenceTrace_conv.csv")
    assert int(trace.arrival_ps[1]) == 4_314_579_000_000


def test_servegen_sample() -> None:
    """One client of a reasoning service: each window's recorded count, lengths within the recorded pdfs."""
    trace = read_trace(TRACES / "servegen_sample" / "deepseek-r1_chunk-0-trace.csv", seed=1)
    rates = np.loadtxt(TRACES / "servegen_sample" / "deepseek-r1_chunk-0-trace.csv", delimiter=",", usecols=1)
    assert len(trace) == round(rates.sum() * 600)
    assert trace.output_tokens.mean() == pytest.approx(1380, rel=0.1)
