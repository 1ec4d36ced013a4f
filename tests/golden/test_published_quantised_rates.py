"""Token rates and kernel speed-ups that others published, none of which set a constant.

The rule that cores wait for memory (no overlap) was chosen with the EPYC and M2 Ultra rates in view.
"""

from __future__ import annotations

import pytest

from sim.cost.calibrated_kernels import CalibratedKernels
from sim.cost.calibration_source import find_calibration
from sim.cost.ops import ForwardPass
from sim.cost.roofline import DatasheetKernels, MatmulFormat
from sim.format_checks import with_kernel
from sim.specs.architecture import ModelArchitecture
from sim.specs.hardware import load_gpu
from sim.specs.hf_config import architecture_from_hf, load_model
from sim.specs.layout import ONE_GPU
from sim.specs.number_formats import FORMATS
from sim.specs.quantization_keys import parse_quantization
from sim.specs.weight_kernels import KERNELS

LLAMA_2_7B = load_model("meta-llama/Llama-2-7b-hf")
PHI_4 = architecture_from_hf(  # config.json, from memory; its parameters give the published size of its Q8_0 file
    {
        "model_type": "phi3", "num_hidden_layers": 40, "hidden_size": 5120, "num_attention_heads": 40,
        "num_key_value_heads": 10, "intermediate_size": 17920, "vocab_size": 100352, "max_position_embeddings": 16384,
        "torch_dtype": "bfloat16",
    },
    "phi-4",
)  # fmt: skip
CONTEXT = 64


def tokens_per_s(model: ModelArchitecture, machine: str, scheme: str, stack: str, threads: int | None = None) -> float:
    """Decoding one sequence; with fewer threads than cores, only their share of the vector units computes."""
    host = load_gpu(machine)
    if threads is not None:
        rates = {name: float(rate) * threads / host.sm_count for name, rate in host.tensor_flops.items()}
        host = host.replace(sm_count=threads, tensor_flops=rates)
    formats = with_kernel(parse_quantization(scheme, model), model, host, stack, ONE_GPU)
    forward = ForwardPass(model, formats, host, DatasheetKernels(host))
    return 1.0 / sum(op.seconds for op in (*forward.rows(1), *forward.head(1), *forward.decode(1, CONTEXT)))


@pytest.mark.parametrize(
    ("model", "machine", "threads", "scheme", "published"),
    [  # Phi-4: ahelpme.com; Llama-2-7B: the llama.cpp column of T-MAC's README
        (PHI_4, "epyc-9554", None, "q4_k_m", 28.7),
        (PHI_4, "epyc-9554", None, "q5_0", 25.4),
        (PHI_4, "epyc-9554", None, "q6_k", 23.2),
        (PHI_4, "epyc-9554", None, "q8_0", 19.2),
        (LLAMA_2_7B, "apple-m2-ultra", 1, "q4_0", 5.65),
        (LLAMA_2_7B, "apple-m2-ultra", 8, "q4_0", 31.57),
        (LLAMA_2_7B, "apple-m2-ultra", 1, "q2_k", 3.82),
        (LLAMA_2_7B, "apple-m2-ultra", 8, "q2_k", 22.06),
    ],
)
def test_llama_cpp_on_cpus(
    model: ModelArchitecture, machine: str, threads: int | None, scheme: str, published: float
) -> None:
    """llama.cpp decodes at the published rate within 25 %, from bytes, vector operations and barriers."""
    assert tokens_per_s(model, machine, scheme, "llama.cpp", threads) == pytest.approx(published, rel=0.25)


@pytest.mark.parametrize(
    ("machine", "threads", "scheme", "published"),
    [  # T-MAC's README and profiling_data
        ("apple-m2-ultra", 1, "w4a16", 8.97),
        ("apple-m2-ultra", 8, "w4a16", 35.65),
        ("apple-m2-ultra", 1, "int2_weight_only", 16.68),
        ("agx-orin-cpu", 1, "w4a16", 2.46),
        ("agx-orin-cpu", 1, "int2_weight_only", 4.36),
    ],
)
def test_t_mac(machine: str, threads: int, scheme: str, published: float) -> None:
    """T-MAC's look-up tables decode at the published rate within 25 %, and cost by the bit."""
    assert tokens_per_s(LLAMA_2_7B, machine, scheme, "t-mac", threads) == pytest.approx(published, rel=0.25)


def test_t_mac_costs_by_the_bit_and_llama_cpp_does_not() -> None:
    """On one core two bits take T-MAC half the time of four; llama.cpp unpacks Q2_K slower than Q4_0, as measured."""
    rates = {
        (stack, scheme): tokens_per_s(LLAMA_2_7B, "apple-m2-ultra", scheme, stack, 1)
        for stack, schemes in (("t-mac", ("w4a16", "int2_weight_only")), ("llama.cpp", ("q4_0", "q2_k")))
        for scheme in schemes
    }
    assert 1.7 < rates["t-mac", "int2_weight_only"] / rates["t-mac", "w4a16"] < 2.1  # published 1.86
    assert rates["llama.cpp", "q2_k"] < rates["llama.cpp", "q4_0"]  # published 3.82 and 5.65


def speed_up(kernel: str, weights: str, rows: int, compute: str = "fp16", activation_bytes: float = 2.0) -> float:
    """Over the 16-bit product of a large LLM matrix on the A100 PCIe, as BitBLAS's charts show it."""
    gpu = load_gpu("a100-pcie-80gb")
    found = find_calibration(gpu)
    assert found is not None
    kernels, form = CalibratedKernels(found[0], DatasheetKernels(gpu)), FORMATS[weights]
    unpacking = KERNELS[kernel].unpacking(form, compute)
    narrow = MatmulFormat(compute, form.stored_bytes, activation_bytes, weights, unpacking, "fused")
    plain = MatmulFormat("fp16", 2.0, 2.0, "fp16")
    return kernels.gemm(rows, 8192, 28672, plain).seconds / kernels.gemm(rows, 8192, 28672, narrow).seconds


@pytest.mark.parametrize(
    ("kernel", "rows", "low", "high"),
    [("bitblas", 1, 3.9, 4.3), ("bitblas", 8192, 0.87, 0.97), ("marlin", 8192, 0.73, 0.93), ("marlin", 1, 3.7, 4.3)],
)
def test_int4_weights_on_an_a100(kernel: str, rows: int, low: float, high: float) -> None:
    """INT4 wins about 4 x at one row and loses at 8192, within 25 % of the range in BitBLAS's charts."""
    assert 0.75 * low <= speed_up(kernel, "int4", rows) <= 1.25 * high


def test_ladder_multiplies_two_bit_weights_in_int8() -> None:
    """INT2 weights with INT8 activations gain at any batch, 1.4 to 2.4 x at thousands of rows (BitBLAS's charts)."""
    assert 0.75 * 1.4 <= speed_up("bitblas", "int2", 4096, "int8", 1.0) <= 1.25 * 2.4
    assert speed_up("bitblas", "int2", 1, "int8", 1.0) > speed_up("bitblas", "int4", 1)
