"""Which path quantised formats take on a GPU, and which combinations are refused, with what would do instead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sim.build import build
from sim.errors import ConfigError
from sim.format_checks import path_of, with_kernel
from sim.scenario import load_scenario
from sim.setup import Setup
from sim.specs.hardware import load_gpu
from sim.specs.hf_config import load_model
from sim.specs.layout import ONE_GPU
from sim.specs.quantization_keys import parse_quantization
from sim.specs.schemes import SCHEMES

LLAMA = load_model("meta-llama/Llama-3.1-8B")
V100 = "v100-sxm-32gb"


def setup(quantization: Any, hardware: str = "h100-sxm", **changes: Any) -> Setup:
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    return build(load_scenario("quickstart", {"engine.quantization": quantization, "hardware": hardware, **keys}))


@pytest.mark.parametrize(
    ("scheme", "hardware", "kernel", "words"),
    [
        ("fp8", "h100-sxm", "none", "multiplied in fp8 as they are stored"),
        ("fp8", "a100-sxm-80gb", "marlin", "no fp8 tensor cores: fp8 weights are expanded by marlin"),
        ("gptq", "h100-sxm", "machete", "expanded by machete and multiplied in bf16"),
        ("gptq", "a100-sxm-80gb", "marlin", "expanded by marlin"),
        ("gptq", V100, "exllama", "expanded by exllama and multiplied in fp16"),
        ("awq", "h100-sxm", "marlin", "expanded by marlin"),
        ("awq_gemm", "a100-sxm-80gb", "awq", "expanded by awq"),
        ("nf4", "l40s", "bitsandbytes", "expanded by bitsandbytes"),
        ("smoothquant", "a100-sxm-80gb", "none", "multiplied in int8 as they are stored"),
        ("nvfp4", "h100-sxm", "marlin", "no fp4 tensor cores: nvfp4 weights are expanded by marlin"),
        ("nvfp4", "rtx-pro-6000", "none", "multiplied in fp4 as they are stored"),
        ("mxfp4", "h100-sxm", "marlin", "mxfp4 weights are expanded by marlin and multiplied in bf16"),
    ],
)
def test_the_plan_names_the_path_taken(scheme: str, hardware: str, kernel: str, words: str) -> None:
    """A note of the run says who multiplies the weights, in which format, and what the chip lacks."""
    found = setup(scheme, hardware)
    assert found.scheme.kernel == kernel
    assert any(words in note for note in found.notes)


def test_transferred_times_are_labelled() -> None:
    """A kernel that nobody measured for this engine says so; measured formats and datasheet GPUs do not."""
    cases = (("gptq", "a100-sxm-80gb"), ("smoothquant", "a100-sxm-80gb"), ("fp8", "h100-sxm"), ("gptq", V100))
    told = [any("was not measured" in note for note in setup(*case).notes) for case in cases]
    assert told == [True, False, False, False]
    trtllm = setup("gptq", "a100-sxm-80gb", engine__preset="tensorrt-llm-1.0")
    assert not any("was not measured" in note for note in trtllm.notes)


@pytest.mark.parametrize(
    ("quantization", "hardware", "key", "words", "offered"),
    [
        ("fp8", V100, "engine.quantization", "no kernel of vllm multiplies these weights", "w8a16"),
        ("awq", V100, "engine.quantization", "no kernel of vllm multiplies these weights", "gptq"),
        ("smoothquant", V100, "engine.quantization", "no int8 tensor cores", "int8_weight_only"),
        ("awq_marlin", V100, "engine.quantization", "is not there", "gptq"),
        ("q4_k_m", "h100-sxm", "engine.quantization", "no kernel of vllm multiplies these weights", "nf4"),
        ({"weights": "int4", "activations": "fp8"}, "a100-sxm-80gb", "activations", "no fp8 tensor cores", "auto"),
        ({"weights": "int4", "activations": "int8"}, "a100-sxm-80gb", "activations", "with int8 activations", "auto"),
        ({"weights": "int4-g96"}, "h100-sxm", "weights", "groups of 96 do not divide the 4096 rows", "int4-g64"),
        ({"weights": "int4-awq", "kernel": "exllama"}, "h100-sxm", "kernel", "has no such product", "marlin"),
        ({"kv_cache": "int4-kivi"}, "h100-sxm", "kv_cache", "kv_back_end: kivi does", "int4_per_token_head"),
        ({"kv_cache": "int8"}, "h100-sxm", "kv_cache", "attention of vllm does not read it", "int8_per_token_head"),
    ],
)
def test_contradictions_are_refused_with_what_is_valid(
    quantization: Any, hardware: str, key: str, words: str, offered: str
) -> None:
    """What the chip, the engine or the shapes rule out names the key and offers what works there."""
    with pytest.raises(ConfigError, match=words) as caught:
        setup(quantization, hardware)
    assert key in str(caught.value.key) or key in str(caught.value)
    assert offered in caught.value.choices


def test_a_refused_cache_format_is_blamed_on_the_flag_that_asked() -> None:
    """--kv-cache-dtype is named when it, and not the mapping, asked for the format."""
    with pytest.raises(ConfigError, match=r"engine\.kv_cache_dtype: 'int4-kivi'"):
        setup(None, engine__kv_cache_dtype="int4-kivi")


def test_a_back_end_that_reads_the_format_can_be_named() -> None:
    """KIVI's kernels read its INT4 cache; the scheme of that name brings them along."""
    assert setup({"kv_cache": "int4-kivi", "kv_back_end": "kivi"}).scheme.kv_bytes_per_element == 5 / 8
    assert setup("kivi").num_blocks == pytest.approx(setup(None).num_blocks * 16 / 5, rel=0.001)


def test_tensor_parallelism_can_cut_through_groups() -> None:
    """Groups that divide a whole matrix may not divide one GPU's rows of it."""
    scheme = parse_quantization({"weights": "int4-g256"}, replace(LLAMA, name="x"))
    assert with_kernel(replace(scheme, kernel="bitblas"), LLAMA, load_gpu("a100-sxm-80gb"), "vllm", ONE_GPU)
    with pytest.raises(ConfigError, match="groups of 1024 do not divide"):
        setup({"weights": "int4-g1024", "kernel": "bitblas"}, "a100-sxm-80gb", engine__tensor_parallel_size=8)


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_every_scheme_runs_somewhere(name: str) -> None:
    """Each named scheme has an engine and a machine that serve it, and a path that can be told."""
    for machine, stack in (("h100-sxm", "vllm"), ("a100-sxm-80gb", "vllm"), ("epyc-9554", "llama.cpp")):
        gpu = load_gpu(machine)
        try:
            scheme = with_kernel(parse_quantization(name, LLAMA), LLAMA, gpu, stack, ONE_GPU)
        except ConfigError:
            continue
        assert path_of(scheme, gpu) or not scheme.weights.is_quantised
        return
    pytest.fail(f"{name} runs nowhere")
