"""Kernels that multiply by weights stored in fewer bits than they are multiplied in: where they unpack, at what cost.

Counts are vector operations on 32-bit lanes per weight, read off the kernels' unpacking code (from memory, as each
entry says). A GPU issues `Gpu.vector_ops_per_s` of them. No entry holds a time or a speed-up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sim.specs.hardware import Gpu
from sim.specs.number_formats import NumberFormat

NONE = "none"
AUTO = "auto"
_NEVER = 1 << 40
_HOPPER = 9.0


class Unpacking(NamedTuple):
    """What it takes to turn stored weights into what is multiplied.

    The `operations` of a weight serve `rows` rows of activations and are done again for the next ones; from
    `separate_from` rows on a pass of its own writes the weights out in 16 bit first, for `pass_operations` each, and a
    plain product follows. `overlap` is the power of the smooth maximum with the product: 1 when both wait for each
    other, 8 when they run side by side. `mma_share` is what tiles of `rows` rows reach, where there are more, of the
    tensor rate that the 16-bit library has with larger ones. With a look-up table or on vector units the product is
    part of the `operations` (`multiplies` is False), and cores are taken to wait for memory: their prefetchers hide
    less than a GPU's thousands of threads, and nothing is the careful end.
    """

    operations: float
    rows: int
    separate_from: int = _NEVER
    pass_operations: float = 0.0
    overlap: float = 1.0
    multiplies: bool = True
    mma_share: float = 1.0


@dataclass(frozen=True)
class WeightKernel:
    """One kernel family: the formats and GPUs it is for, and how it unpacks.

    `operations` maps a kind of weights to its count, for products in fp16 and in bf16. `capability` bounds NVIDIA's
    compute capability (least, most); `groups` are the group sizes it takes, () being all; `stacks` the engines that
    have it, `activations` what it multiplies with: `16-bit` or a narrow format.
    """

    name: str
    title: str
    stacks: tuple[str, ...]
    operations: Mapping[str, tuple[float, float]]
    capability: tuple[float, float] = (8.0, 99.0)
    groups: tuple[int, ...] = ()
    zero_points: tuple[bool, ...] = (False, True)
    activations: tuple[str, ...] = ("16-bit",)
    machine: str = "gpu"
    rows: int = 64
    separate_from: int = _NEVER
    pass_operations: float = 0.0
    overlap: float = 1.0
    multiplies: bool = True
    mma_share: float = 1.0
    on_hopper: tuple[float, float] | None = None
    """`overlap` and `mma_share` from compute capability 9.0 on, where they differ."""
    asked: bool = False
    """Whether it is used only when a scenario names it."""

    def takes(self, weights: NumberFormat, activations: str) -> bool:
        """Whether it multiplies these weights with activations of this kind."""
        fits = not self.groups or weights.group_size in self.groups
        zero = bool(weights.zero_bits) in self.zero_points
        return weights.kind in self.operations and fits and zero and activations in self.activations

    def runs_on(self, gpu: Gpu) -> bool:
        """Whether the chip has its instructions; a profile without a compute capability is not asked."""
        capability = gpu.capability
        if (gpu.generation == "cpu") != (self.machine == "cpu"):
            return False
        return capability is None or self.capability[0] <= capability <= self.capability[1]

    def unpacking(self, weights: NumberFormat, compute: str, capability: float | None = None) -> Unpacking:
        """How it unpacks these weights for products in this format."""
        operations, overlap, share = self.operations[weights.kind][compute == "bf16"], self.overlap, self.mma_share
        if self.on_hopper is not None and (capability or 0.0) >= _HOPPER:
            overlap, share = self.on_hopper
        return Unpacking(
            operations, self.rows, self.separate_from, self.pass_operations, overlap, self.multiplies, share
        )


def _same(**operations: float) -> Mapping[str, tuple[float, float]]:
    return {kind: (count, count) for kind, count in operations.items()}


_MARLIN_SHARE = 0.8
"""Of cuBLAS's tensor rate, with tiles of 64 rows: from 1024 rows on INT4 then reaches 0.61 of the 16-bit product on an
A100. Measured were 0.60 to 0.66 (vLLM pull request 2497), and 0.57 to 0.79 of 16 bit end to end (GPUStack)."""
_MARLIN_ON_HOPPER = 2.0, 0.75
"""Unpacking hides in part, and Marlin multiplies with Ampere's instruction. Set to eight end-to-end times of INT8 and
INT4 weights over 16 bit (Llama-3.1-8B on an H100, batches of 1 to 16, vLLM pull request 23197), met within 18 %."""
_GPU_STACKS = ("vllm", "sglang")
# Per 4 weights, vLLM's csrc/quantization/marlin/dequant.h: INT4 two lop3, a shift, two half2 arithmetic, two scalings;
# INT8 to bf16 four prmt into float32, four subtractions, two packings, two scalings, to fp16 two prmt and two
# subtractions; FP8 and FP4 shifts and masks for sign and exponent and a product that corrects its bias (from memory).
_IN_REGISTERS = {"int4": (1.75, 1.75), "int8": (1.5, 3.0), "fp8": (2.25, 2.25), "fp4": (2.75, 2.75)}
_GGML = _same(q8_0=0.75, q4_0=1.25, q5_0=1.75, q4_k=1.5, q5_k=2.0, q6_k=2.0, q3_k=2.25, q2_k=2.25)

KERNELS: Mapping[str, WeightKernel] = {
    kernel.name: kernel
    for kernel in (
        WeightKernel(
            "machete", "Machete (vLLM on Hopper): unpacks beside wgmma, in pre-shuffled order", ("vllm",),
            {kind: _IN_REGISTERS[kind] for kind in ("int4", "int8")}, (9.0, 9.0), (0, 64, 128), (False,),
            rows=128, overlap=8.0,
        ),
        WeightKernel(
            "marlin", "Marlin: unpacks in registers, again for every 64 rows (Frantar et al. 2024)", _GPU_STACKS,
            _IN_REGISTERS, groups=(0, 16, 32, 64, 128, 128 * 128), mma_share=_MARLIN_SHARE, on_hopper=_MARLIN_ON_HOPPER,
        ),
        WeightKernel(
            # gpt-oss on Hopper (InferenceX runs it so); Blackwell multiplies FP4 itself (from memory).
            "triton-mxfp4", "Triton's grouped product of MXFP4 weights and 16-bit activations", ("tensorrt-llm",),
            _same(fp4=2.75), (8.0, 9.0), (32,), rows=128, overlap=8.0,
        ),
        WeightKernel(
            "cutlass-w4a8", "CUTLASS mixed-input product of INT4 weights and FP8 activations",
            ("vllm", "tensorrt-llm"), _same(int4=1.75), (8.9, 9.0), (64, 128), activations=("fp8",), rows=128,
            overlap=8.0,
        ),
        WeightKernel(
            "fpa-intb", "TensorRT-LLM's fpA_intB GEMM, 16-bit activations and integer weights", ("tensorrt-llm",),
            _IN_REGISTERS, (7.0, 99.0), (0, 64, 128), rows=128, overlap=8.0,
        ),
        WeightKernel(
            # vLLM's gptq kernels: above 50 rows the weights are written out and cuBLAS multiplies (from memory).
            "exllama", "ExLlama: fp16 only, unpacks in registers up to 50 rows, else in a pass",
            (*_GPU_STACKS, "transformers"), _same(int2=2.0, int3=2.5, int4=1.75, int8=1.5), (6.0, 99.0),
            zero_points=(False,), rows=8, separate_from=51, pass_operations=4.0,
        ),
        WeightKernel(
            # AutoAWQ's gemm_forward_4bit works on 16 rows at a time; vLLM writes the weights out from 256 rows on.
            "awq", "AWQ's own kernels: fp16 only, unpacks for every 16 rows, from 256 rows in a pass",
            (*_GPU_STACKS, "transformers"), _same(int4=1.75), (7.5, 99.0), (32, 64, 128), (True,), rows=16,
            separate_from=256, pass_operations=2.0,
        ),
        WeightKernel(
            # One row: gemv with the codebook in shared memory. More: a warp of 32 codes walks every branch of a
            # decision tree with 16 leaves (csrc/kernels.cu, from memory).
            "bitsandbytes", "bitsandbytes: a look-up per weight in a pass, then a plain product",
            (*_GPU_STACKS, "transformers"), _same(codebook=4.0), (7.0, 99.0), rows=1, separate_from=2,
            pass_operations=31.0,
        ),
        WeightKernel(
            "spqr", "SpQR: dense 3-bit part in registers, outliers as a sparse product (batch 1 in the paper)",
            ("vllm", "transformers"), _same(spqr=3.5), rows=8,
        ),
        WeightKernel(
            # Look-up codebooks sit in registers; layouts match the tensor cores' fragments (Wang et al., OSDI 2024).
            "bitblas", "Ladder/BitBLAS: low-bit weights in tensor-core order, unpacked beside the product",
            ("vllm", "transformers"), _same(int2=1.25, int3=2.0, int4=1.25, int8=1.0, codebook=3.0, fp4=3.0, int1=1.0),
            (7.0, 9.0), activations=("16-bit", "int8"), rows=128, overlap=3.0, asked=True,
        ),
        WeightKernel(
            # Per block of 32 weights and row: unpacking, integer dot product, conversion, scaling, addition.
            "ggml", "llama.cpp: integer dot products of blocks, unpacked for every row", ("llama.cpp",), _GGML,
            machine="cpu", rows=1, multiplies=False,
        ),
        WeightKernel(
            # Per bit: a 16-way byte shuffle looks up 16 groups of 4 weights; with nibble extraction and two additions
            # 4 operations of 128 bits per 64 weights (Wei et al., EuroSys 2025, section 3).
            "t-mac", "T-MAC: partial sums from look-up tables, one pass per bit", ("t-mac",),
            _same(int1=0.25, int2=0.5, int3=0.75, int4=1.0), machine="cpu", rows=1, multiplies=False,
        ),
    )
}  # fmt: skip


def candidates(weights: NumberFormat, activations: str, gpu: Gpu, stack: str) -> Iterator[WeightKernel]:
    """The kernels of an engine that multiply these weights on this chip, preferred first."""
    for kernel in KERNELS.values():
        if stack in kernel.stacks and kernel.takes(weights, activations) and kernel.runs_on(gpu) and not kernel.asked:
            yield kernel
