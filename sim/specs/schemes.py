"""The named quantisation schemes: their formats on each axis, the kernels, and what it takes to make them.

A name says what papers and engines mean by it; a mapping in the scenario can still change any axis. Calibration data
and times are those of the papers (from memory).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sim.specs.weight_kernels import AUTO

Scales = Literal["static", "dynamic"]
"""When the scales of activations are found: from sample data beforehand, or from each token as it comes."""


@dataclass(frozen=True)
class Scheme:
    """What a name stands for; `kv_cache` None leaves that axis alone, `auto` is the model's own 16-bit type.

    `quality` is the name under which published losses are filed, where it is not the scheme's own.
    """

    name: str
    title: str
    weights: str
    activations: str = AUTO
    kv_cache: str | None = None
    kernel: str = AUTO
    scales: Scales = "dynamic"
    kv_back_end: str = AUTO
    calibration: str = "none"
    quality: str = ""


_SAMPLES = "128 sequences of 2048 tokens"
_ALL = (
    Scheme("none", "the model's own 16 bit", AUTO, quality="none"),
    Scheme("w8a16", "INT8 weights, 16-bit activations", "int8-gptq", quality="int8_weight_only"),
    Scheme("int8_weight_only", "INT8 weights, a scale per channel", "int8"),
    Scheme("w4a16", "INT4 weights in groups of 128, symmetric", "int4", quality="rtn"),
    Scheme("gptq", "GPTQ: INT4, g128, rounded by second-order error", "int4-gptq",
           calibration=f"{_SAMPLES}; 4 GPU hours for 175B"),
    Scheme("gptq_marlin", "GPTQ by Marlin's kernels", "int4-gptq", kernel="marlin",
           calibration=_SAMPLES, quality="gptq"),
    Scheme("gptq_int8", "GPTQ at 8 bits, g128", "int8-gptq", calibration=_SAMPLES, quality="int8_weight_only"),
    Scheme("awq", "AWQ: INT4, g128, zero points, salient channels scaled", "int4-awq",
           calibration="128 sequences, minutes"),
    Scheme("awq_marlin", "AWQ by Marlin's kernels", "int4-awq", kernel="marlin",
           calibration="128 sequences, minutes", quality="awq"),
    Scheme("awq_gemm", "AWQ by its own kernels", "int4-awq", kernel="awq",
           calibration="128 sequences, minutes", quality="awq"),
    Scheme("spqr", "SpQR: 3 bit, g16, 1 % outliers in 32 bit", "spqr",
           calibration=f"{_SAMPLES}; 4.5 GPU hours for 65B"),
    Scheme("bitsandbytes", "bitsandbytes NF4", "nf4", quality="nf4"),
    Scheme("nf4", "NF4: quantiles of the normal distribution, g64", "nf4"),
    Scheme("nf4_dq", "NF4 with quantised scales (QLoRA)", "nf4-dq", quality="nf4"),
    Scheme("fp8_weight_only", "FP8 weights, 16-bit activations", "fp8", quality="fp8"),
    Scheme("fp8", "FP8 E4M3, a scale per tensor, activations per token as they come", "fp8", "fp8"),
    Scheme("fp8_static", "FP8, activation scales fixed beforehand", "fp8", "fp8", scales="static",
           calibration="512 sequences", quality="fp8"),
    Scheme("fp8_channel", "FP8, a scale per channel and token", "fp8_channel", "fp8", quality="fp8"),
    Scheme("fp8_block", "FP8, a scale per 128 x 128 block (DeepSeek-V3)", "fp8_block", "fp8",
           quality="fp8"),
    Scheme("int8", "INT8 weights and activations, a scale per channel and token", "int8", "int8",
           quality="w8a8"),
    Scheme("w8a8", "INT8 weights and activations, a scale per channel and token", "int8", "int8",
           calibration="512 sequences"),
    Scheme("smoothquant", "SmoothQuant W8A8: activation outliers moved into the weights, per token", "int8", "int8",
           calibration="512 sequences"),
    Scheme("smoothquant_static", "SmoothQuant W8A8, O3: a fixed scale per tensor", "int8", "int8", scales="static",
           calibration="512 sequences", quality="smoothquant"),
    Scheme("mxfp4", "MXFP4 weights (OCP): E2M1, E8M0 scale per 32", "mxfp4"),
    Scheme("nvfp4", "NVFP4 weights and activations: E2M1, E4M3 scale per 16", "nvfp4", "nvfp4"),
    Scheme("nvfp4_weight_only", "NVFP4 weights, 16-bit activations", "nvfp4", quality="nvfp4"),
    Scheme("q8_0", "GGUF Q8_0: INT8 in blocks of 32", "gguf-q8_0"),
    Scheme("q6_k", "GGUF Q6_K: 6 bit in super-blocks of 256", "gguf-q6_k"),
    Scheme("q5_0", "GGUF Q5_0: 5 bit in blocks of 32", "gguf-q5_0"),
    Scheme("q4_0", "GGUF Q4_0: INT4 in blocks of 32", "gguf-q4_0"),
    Scheme("q4_k_m", "GGUF Q4_K_M: Q4_K, half of V and down in Q6_K", "gguf-q4_k_m"),
    Scheme("q2_k", "GGUF Q2_K: 2.6 to 6.6 bits by matrix", "gguf-q2_k"),
    Scheme("int2_weight_only", "INT2 weights, g128", "int2", quality="int2"),
    Scheme("kv_fp8", "FP8 KV cache alone", AUTO, kv_cache="fp8"),
    Scheme("kv_int8", "INT8 KV cache, a scale per token and head", AUTO, kv_cache="int8_per_token_head"),
    Scheme("kv_int4", "INT4 KV cache, a scale per token and head", AUTO, kv_cache="int4_per_token_head"),
    Scheme("kivi", "KIVI: INT4 KV cache, keys per channel, values per token, groups of 32", AUTO,
           kv_cache="int4-kivi", kv_back_end="kivi"),
    Scheme("kivi_2", "KIVI at 2 bits", AUTO, kv_cache="int2-kivi", kv_back_end="kivi"),
)  # fmt: skip

SCHEMES: Mapping[str, Scheme] = {scheme.name: scheme for scheme in _ALL}
"""By name, as in `quantization: awq`; vLLM's own words are among them."""

KV_BACK_ENDS: Mapping[str, tuple[str, ...]] = {
    "vllm": ("fp8", "nvfp4", "int8_per_token_head", "int4_per_token_head"),
    "sglang": ("fp8",),
    "tensorrt-llm": ("fp8", "int8", "nvfp4"),
    "transformers": ("int4-kivi", "int2-kivi", "int8-g128", "int4"),
    "kivi": ("int4-kivi", "int2-kivi"),
    "llama.cpp": ("q8_0", "q4_0"),
    "t-mac": (),
}
"""What the attention of each engine reads besides 16 bit (vLLM 0.19's --kv-cache-dtype; the others from memory)."""
