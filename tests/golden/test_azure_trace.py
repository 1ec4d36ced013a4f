"""An hour of real conversations (Azure LLM inference trace 2023) on Llama-3.1-8B and one H100, in one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sim.cli
import sim.report.write
from sim.results import RunResult

TRACE = Path(__file__).parents[2] / ".." / "shared" / "traces" / "AzureLLMInferenceTrace_conv.csv"
REQUESTS = 19_366  # published with the trace, as are the sums of tokens that follow from its columns

pytestmark = pytest.mark.skipif(
    not TRACE.exists(),
    reason=f"the Azure conversation trace is not there ({TRACE.name}; AzurePublicDataset, CC-BY 4.0)",
)


def simulate(folder: Path, *arguments: str) -> int:
    """The one command, into a directory of its own; its exit code."""
    scenario = folder / "azure.yaml"
    scenario.write_text(
        f"model: meta-llama/Llama-3.1-8B\nhardware: h100-sxm\nworkload: {{trace: {json.dumps(str(TRACE.resolve()))}}}\n"
    )
    return sim.cli.call(["run", str(scenario), "--format", "json", *arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that the command wrote, figures left out."""
    folder = tmp_path_factory.mktemp("azure")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sim.report.write, "drawn", lambda evidence: [])
        assert simulate(folder, "--out", str(folder / "a")) == 0
        assert simulate(folder, "--out", str(folder / "b")) == 0
    return folder


@pytest.fixture(scope="module")
def summary(run: Path) -> dict[str, Any]:
    """Its summary."""
    told: dict[str, Any] = json.loads((run / "a" / "summary.json").read_text())
    return told


def test_every_request_is_accounted_for(run: Path, summary: dict[str, Any]) -> None:
    """Completed and failed (with a reason) are what the trace submitted, each request once."""
    requests = RunResult.load(run / "a").requests
    assert summary["completed"] + summary["failed"] == REQUESTS == len(np.unique(requests["request_id"]))
    assert sum(summary["failures"].values()) == summary["failed"]
    assert summary["unfinished"] == 0


def test_every_token_of_the_trace_is_served(run: Path, summary: dict[str, Any]) -> None:
    """Prompts and answers are those of the file, and no answer is longer or shorter than recorded."""
    rows = np.loadtxt(TRACE, delimiter=",", skiprows=1, usecols=(1, 2), dtype=np.int64)
    assert len(rows) == REQUESTS
    assert summary["completed"] == REQUESTS
    assert [summary["total_input_tokens"], summary["total_output_tokens"]] == rows.sum(axis=0).tolist()


def test_the_same_seed_gives_the_same_bytes(run: Path) -> None:
    """A second run of the same command writes the same summary and the same requests, byte for byte."""
    for name in ("summary.json", "requests.parquet"):
        assert (run / "a" / name).read_bytes() == (run / "b" / name).read_bytes()


def test_one_h100_keeps_up(summary: dict[str, Any]) -> None:
    """5.5 requests a second of 1155 and 211 tokens are well within one H100: the queue does not grow."""
    assert summary["regime"] == "STABLE"
    assert summary["duration"] == pytest.approx(3501, abs=30)  # the trace's span of 3,501 s and the last answer
    assert summary["request_throughput"] == pytest.approx(5.53, rel=0.01)
