"""The command of a plan's winner."""

from __future__ import annotations

from typing import Any

import pytest

from sim import load_scenario
from sim.build import build
from sim.planner.vllm_serve import command_line, vllm_serve

SMALL = {"workload.num_requests": 5}


def words(**overrides: Any) -> tuple[str, list[str]]:
    """The command of a scenario, and its notes."""
    given = {key.replace("__", "."): value for key, value in overrides.items()}
    found, notes = vllm_serve(build(load_scenario("quickstart", {**SMALL, **given})))
    return " ".join(found), notes


def test_resolved_settings_become_flags() -> None:
    """Whatever the scenario leaves to the preset is written out."""
    command, notes = words(engine__tensor_parallel_size=2, engine__quantization="fp8", engine__kv_cache_dtype="fp8")
    assert command.startswith("vllm serve meta-llama/Llama-3.1-8B --tensor-parallel-size 2")
    for flag in ("--max-num-seqs 1024", "--max-num-batched-tokens 8192", "--quantization fp8", "--kv-cache-dtype fp8",
                 "--enable-prefix-caching", "--gpu-memory-utilization 0.9", "--dtype bfloat16"):  # fmt: skip
        assert flag in command
    assert notes == []


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("engine.quantization", "awq", "checkpoint"),
        ("engine.scheduler", "sglang", "no scheduler sglang"),
        ("engine.scheduling_policy", "fair_share", "no queue order"),
        ("engine.preset", "sglang-0.5", "not vLLM"),
        ("engine.kv_cache.allocator", "max-length", "no allocator"),
    ],
)
def test_what_vllm_lacks_is_said(key: str, value: str, told: str) -> None:
    """Settings of the simulation that no flag of vLLM has are named beside the command."""
    _, notes = words(**{key: value})
    assert any(told in note for note in notes)


def test_a_flag_a_line() -> None:
    """As it is pasted into a shell."""
    assert command_line(["vllm", "serve", "m", "--a", "1", "--b"]) == "vllm serve m \\\n  --a 1 \\\n  --b"
