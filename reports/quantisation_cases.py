"""What reports/quantisation.md is made of: steps and runs under every scheme, nothing drawn and nothing written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sim.build import build
from sim.cost.calibrated_kernels import CalibratedKernels
from sim.cost.calibration_source import find_calibration
from sim.cost.ops import ForwardPass
from sim.cost.roofline import DatasheetKernels, MatmulFormat
from sim.format_checks import with_kernel
from sim.planner.schemes import SchemeRow, compare_schemes, decode_s
from sim.scenario import load_scenario
from sim.setup import Setup
from sim.specs.hardware import load_gpu
from sim.specs.hf_config import load_model
from sim.specs.layout import ONE_GPU
from sim.specs.number_formats import FORMATS
from sim.specs.quantization_keys import parse_quantization
from sim.specs.weight_kernels import KERNELS
from sim.validation.serving.pairs import Pair, needed, pairs_of
from sim.validation.serving.predict import predict
from sim.validation.serving.read import read_cases

MODEL = "meta-llama/Llama-3.1-8B"
GPUS = ("a100-sxm-80gb", "h100-sxm")
SCHEMES: Mapping[str, Any] = {
    "INT4 (GPTQ)": "gptq", "INT4 (AWQ's kernels)": "awq_gemm", "INT8 weights": "gptq_int8", "INT8 W8A8": "smoothquant",
    "FP8": "fp8", "NF4": "nf4",
}  # fmt: skip
BATCHES = tuple(2**i for i in range(11))
CONTEXT = 512
CACHES: Mapping[str, Any] = {
    "16 bit": "auto", "FP8": "fp8", "INT8": "int8_per_token_head", "INT4": "int4_per_token_head",
    "KIVI, 4 bit": "int4-kivi", "KIVI, 2 bit": "int2-kivi",
}  # fmt: skip
CONTEXTS = tuple(1024 * 2**i for i in range(8))
CACHE_BATCH = 8
_MOST_SEQUENCES = 256
_INT8 = {"weights": "int8", "activations": "int8"}
RECIPE: Mapping[str, Any] = {
    "16 bit": None,
    "insert": _INT8 | {"compute": "16-bit", "fuse": "none"},
    "fuse": _INT8 | {"compute": "16-bit", "fuse": "all"},
    "replace": _INT8 | {"fuse": "all"},
    "keep O": _INT8 | {"fuse": "all", "keep": ["o_proj"]},
}
ROWS = (1, 16, 64, 256, 1024, 4096)
# Llama-2-7B and Phi-4 on CPUs: (back end, machine, threads, scheme, published tokens/s, where).
CPU_RATES = (
    ("llama.cpp", "apple-m2-ultra", 1, "q4_0", 5.65), ("llama.cpp", "apple-m2-ultra", 8, "q4_0", 31.57),
    ("llama.cpp", "apple-m2-ultra", 1, "q2_k", 3.82), ("llama.cpp", "apple-m2-ultra", 8, "q2_k", 22.06),
    ("llama.cpp", "agx-orin-cpu", 12, "q4_0", 7.42), ("t-mac", "apple-m2-ultra", 1, "w4a16", 8.97),
    ("t-mac", "apple-m2-ultra", 8, "w4a16", 35.65), ("t-mac", "apple-m2-ultra", 1, "int2_weight_only", 16.68),
    ("t-mac", "apple-m2-ultra", 8, "int2_weight_only", 51.01), ("t-mac", "agx-orin-cpu", 1, "w4a16", 2.46),
    ("t-mac", "agx-orin-cpu", 1, "int2_weight_only", 4.36), ("t-mac", "agx-orin-cpu", 12, "w4a16", 8.09),
)  # fmt: skip
MATRIX = (8192, 28672)
LOW_BIT = {
    "BitBLAS INT4": ("bitblas", "int4", "fp16", 2.0), "Marlin INT4": ("marlin", "int4", "fp16", 2.0),
    "AWQ's kernels": ("awq", "int4-awq", "fp16", 2.0), "BitBLAS FP4": ("bitblas", "mxfp4", "fp16", 2.0),
    "BitBLAS INT2, INT8 activations": ("bitblas", "int2", "int8", 1.0),
}  # fmt: skip


def setup_of(quantization: Any, hardware: str, **engine: Any) -> Setup:
    """A server without traffic worth mentioning."""
    keys = {f"engine.{key}": value for key, value in engine.items()}
    found = {"hardware": hardware, "model": MODEL, "engine.quantization": quantization, **keys}
    return build(load_scenario("quickstart", found))


def speed_ups(hardware: str) -> dict[str, list[float]]:
    """Decode steps of 16 bit over those of each scheme, by batch."""
    plain = [decode_s(setup_of(None, hardware).timer.forward, batch, CONTEXT) for batch in BATCHES]
    found = {}
    for label, scheme in SCHEMES.items():
        forward = setup_of(scheme, hardware).timer.forward
        times = [decode_s(forward, batch, CONTEXT) for batch in BATCHES]
        found[label] = [slow / fast for slow, fast in zip(plain, times, strict=True)]
    return found


def cache_study(hardware: str) -> dict[str, dict[str, list[float]]]:
    """Per cache format and context: TPOT of eight sequences (ms), sequences that fit, and their tokens/s."""
    found = {}
    for label, form in CACHES.items():
        quantization = {"kv_cache": form, **({"kv_back_end": "kivi"} if "kivi" in form else {})}
        setup = setup_of(quantization, hardware, max_num_seqs=_MOST_SEQUENCES)
        forward, tokens = setup.timer.forward, setup.num_blocks * setup.engine.kv_cache["block_size"]
        fit = [min(_MOST_SEQUENCES, tokens // context) for context in CONTEXTS]
        found[label] = {
            "tpot_ms": [1e3 * decode_s(forward, CACHE_BATCH, context) for context in CONTEXTS],
            "fit": [float(count) for count in fit],
            "tok_s": [count / decode_s(forward, count, context) for count, context in zip(fit, CONTEXTS, strict=True)],
        }
    return found


def recipe(hardware: str, prompt: int, decodes: int) -> dict[str, float]:
    """Milliseconds of a step with a prompt, or of one with decodes, after each step of the INT8 recipe."""
    found = {}
    for name, quantization in RECIPE.items():
        forward = setup_of(quantization, hardware).timer.forward
        ops = [*forward.rows(prompt), *forward.head(1), *forward.prefill([(0, prompt)])] if prompt else []
        found[name] = 1e3 * (sum(op.seconds for op in ops) if prompt else decode_s(forward, decodes, CONTEXT))
    return found


def keeping_o(hardware: str) -> list[dict[str, float]]:
    """What O in 16 bit does to a step of so many rows, with separate and with fused quantisation of activations."""
    found = []
    for rows in ROWS:
        line: dict[str, float] = {"rows": rows}
        for fuse in ("epilogue", "all"):
            setups = [setup_of(_INT8 | {"fuse": fuse, "keep": keep}, hardware) for keep in ([], ["o_proj"])]
            both = [sum(op.seconds for op in setup.timer.forward.rows(rows)) for setup in setups]
            line[fuse] = 100.0 * (both[1] / both[0] - 1.0)
        found.append(line)
    return found


def o_bytes() -> tuple[float, float]:
    """GB of INT8 weights with and without O among them."""
    model = load_model(MODEL)
    sizes = (model.weight_bytes(parse_quantization(_INT8 | {"keep": keep}, model)) for keep in ([], ["o_proj"]))
    first, second = (size / 1e9 for size in sizes)
    return first, second


def served(hardware: str) -> list[SchemeRow]:
    """The batch workload under every scheme that is compared by default."""
    scenario = {"model": MODEL, "hardware": hardware, "workload": "batch", "engine": {"preset": "vllm-v1"}}
    names = ("none", "fp8", "smoothquant", "gptq_int8", "gptq", "awq", "nf4", "spqr", "mxfp4", "kv_fp8", "kv_int4",
             "awq+kv_fp8", "fp8+kv_fp8")  # fmt: skip
    return compare_schemes(scenario, names)


def cpu_rates() -> list[tuple[str, str, int, str, float, float]]:
    """Published and simulated tokens/s of one sequence of Llama-2-7B; threads share vector units, not memory."""
    model = load_model("meta-llama/Llama-2-7b-hf")
    found = []
    for stack, machine, threads, name, published in CPU_RATES:
        host = load_gpu(machine)
        rates = {key: float(rate) * threads / host.sm_count for key, rate in host.tensor_flops.items()}
        host = host.replace(sm_count=threads, tensor_flops=rates)
        scheme = with_kernel(parse_quantization(name, model), model, host, stack, ONE_GPU)
        rate = 1.0 / decode_s(ForwardPass(model, scheme, host, DatasheetKernels(host)), 1, 64)
        found.append((stack, machine, threads, name, published, rate))
    return found


def low_bit_products(rows: int) -> dict[str, float]:
    """Speed over the 16-bit product of a large LLM matrix on the A100 PCIe, fitted constants of its sister."""
    gpu = load_gpu("a100-pcie-80gb")
    found = find_calibration(gpu)
    assert found is not None
    kernels, plain = CalibratedKernels(found[0], DatasheetKernels(gpu)), MatmulFormat("fp16", 2.0, 2.0, "fp16")
    base, times = kernels.gemm(rows, *MATRIX, plain).seconds, {}
    for label, (kernel, weights, compute, activation_bytes) in LOW_BIT.items():
        form = FORMATS[weights]
        unpacking = KERNELS[kernel].unpacking(form, compute, gpu.capability)
        narrow = MatmulFormat(compute, form.stored_bytes, activation_bytes, weights, unpacking, "fused")
        times[label] = base / kernels.gemm(rows, *MATRIX, narrow).seconds
    return times


def measured_pairs(tables: Sequence[Path]) -> list[Pair]:
    """Quantised over plain throughput on one GPU, measured and simulated."""
    cases = needed(read_cases(tables))
    return [pair for pair in pairs_of([(case, predict(case)) for case in cases]) if pair.same_gpu]
