"""Bytes of quantised weights against the published sizes of real checkpoints."""

from __future__ import annotations

from typing import Any

import pytest

from sim.specs.hf_config import load_model
from sim.specs.quantization_keys import parse_quantization

GB, GIB = 1e9, 2**30
LLAMA_2_7B, LLAMA_31_8B = "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-3.1-8B"

# Rounded as published: file trees on the Hugging Face hub, model cards, llama.cpp's quantize README (Llama-3.1 rows;
# GiB) and its pull request 3084, the Open LLM leaderboard's record of AWQ, GPTQ-for-LLaMa's README (its GB are GiB).
SIZES: list[tuple[str, Any, float, str]] = [
    (LLAMA_31_8B, "fp8", 9.08 * GB, "two files of 5.00 and 4.08 GB"),
    ("meta-llama/Llama-2-13b-hf", "awq", 7.25 * GB, "leaderboard record"),
    ("meta-llama/Llama-2-70b-hf", "awq", 36.61 * GB, "model card"),
    ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "gptq", 0.77 * GB, "model card"),
    ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "gptq_int8", 1.23 * GB, "model card"),
    (LLAMA_2_7B, {"weights": "int4-channel"}, 3.5 * GIB, "GPTQ-for-LLaMa, without groups"),
    ("meta-llama/Llama-2-13b-hf", {"weights": "int4-channel"}, 6.5 * GIB, "GPTQ-for-LLaMa, without groups"),
    (LLAMA_2_7B, "q8_0", 7.16 * GB, "file tree"),
    (LLAMA_2_7B, "q4_k_m", 4.08 * GB, "file tree"),
    (LLAMA_2_7B, "q2_k", 2.53 * GB, "file tree"),
    (LLAMA_2_7B, "q4_0", 3.56 * GIB, "llama.cpp pull request 3084"),
    (LLAMA_31_8B, "q8_0", 7.95 * GIB, "quantize README"),
    (LLAMA_31_8B, "q4_k_m", 4.58 * GIB, "quantize README"),
    (LLAMA_31_8B, "q2_k", 2.95 * GIB, "quantize README"),
    (LLAMA_31_8B, "q4_0", 4.34 * GIB, "perplexity README"),
    ("meta-llama/Llama-3.1-70B", "q4_k_m", 43.1 * GB, "quantize README"),
    ("mistralai/Mixtral-8x7B-v0.1", "q4_0", 26.4 * GB, "file tree"),
]


@pytest.mark.parametrize(("model", "scheme", "size", "source"), SIZES)
def test_weights_are_as_large_as_the_published_checkpoint(model: str, scheme: Any, size: float, source: str) -> None:
    """A scheme's weights, scales and what stays in 16 bit together are within 2 % of a file that people download."""
    architecture = load_model(model)
    assert architecture.weight_bytes(parse_quantization(scheme, architecture)) == pytest.approx(size, rel=0.02), source


def test_spqr_stores_what_its_paper_says() -> None:
    """3-bit weights with 1 % outliers come to the 3.94 bits of SpQR's table for LLaMA-7B."""
    scheme = parse_quantization("spqr", load_model(LLAMA_2_7B))
    assert scheme.weight_format("gate_up").stored_bits == pytest.approx(3.94, abs=0.01)
