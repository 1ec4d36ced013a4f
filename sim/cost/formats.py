"""From number formats to what kernels do with them on one GPU: how matrices multiply, and which operators they need."""

from __future__ import annotations

from collections.abc import Iterator

from sim.cost.fusion import Traffic
from sim.cost.roofline import MatmulFormat, Quantising
from sim.specs.hardware import Gpu
from sim.specs.matrices import WeightMatrix
from sim.specs.number_formats import NumberFormat
from sim.specs.quantization import QuantScheme
from sim.specs.weight_kernels import AUTO, KERNELS, Unpacking, WeightKernel, candidates

_UNFUSABLE = frozenset({"o", "linear_out"})
"""Inputs written by attention kernels, which do not quantise them; norms and activations can."""
_CACHE_OPERATIONS = {"fp8": 2.25, "int8": 1.5, "int4": 1.75, "int2": 2.0, "fp4": 2.75}
"""Per cached element, as for weights in registers, scaling included (from memory)."""


_PASS_PAYS_ROWS = 256
"""From here on vLLM writes AWQ's weights out before a plain product (awq.py), as it is cheaper than unpacking again."""


def matmul_format(scheme: QuantScheme, role: str, gpu: Gpu) -> MatmulFormat:
    """How matrices of a role are multiplied on this GPU.

    A format its tensor cores lack becomes weight-only: stored as it is, expanded to 16 bit and multiplied there, as
    vLLM's Marlin kernels do with FP8 checkpoints on Ampere (vLLM pull request 5975).
    """
    weights, compute = scheme.weight_format(role), scheme.compute_format(role).tensor_rate
    stored, name = weights.stored_bytes, weights.name
    if gpu.supports(compute) and scheme.activation_format(role).is_quantised and scheme.compute == "auto":
        activations = scheme.activation_format(role)
        unpacking = None if weights.tensor_rate == compute else unpacking_of(scheme, weights, compute, gpu)
        # A scale found for each token needs its largest element first, so that the row is read twice.
        passed = activations.stored_bytes + (2.0 if scheme.scales == "static" else 4.0)
        where = quantising(scheme, role)
        return MatmulFormat(compute, stored, activations.stored_bytes, name, unpacking, where, passed)
    compute = compute if gpu.supports(compute) else gpu.default_dtype
    unpacking = unpacking_of(scheme, weights, compute, gpu) if weights.is_quantised else None
    return MatmulFormat(compute, stored, 2.0, name, unpacking)


def quantising(scheme: QuantScheme, role: str) -> Quantising:
    """Where the inputs of a role are quantised."""
    return "fused" if scheme.fuse == "all" and role not in _UNFUSABLE else "apart"


def kernel_of(scheme: QuantScheme, weights: NumberFormat, activations: str, gpu: Gpu) -> WeightKernel | None:
    """Who multiplies these weights: the scheme's kernel if it does, else vLLM's choice for this GPU, if any."""
    named = KERNELS.get(scheme.kernel)
    if named is not None and named.takes(weights, activations):
        return named
    return next(candidates(weights, activations, gpu, "vllm"), None) if scheme.kernel == AUTO else None


def unpacking_of(scheme: QuantScheme, weights: NumberFormat, compute: str, gpu: Gpu) -> Unpacking | None:
    """How the scheme's kernel widens these weights; before the product when nothing may be fused."""
    sixteen = compute in ("fp16", "bf16")
    kernel = kernel_of(scheme, weights, "16-bit" if sixteen else compute, gpu)
    if kernel is None:
        return None
    found = kernel.unpacking(weights, compute, gpu.capability)
    if scheme.compute == "16-bit":  # the weights are dequantised by an operator, which small batches may fuse away
        apart = 0 if scheme.fuse == "none" else _PASS_PAYS_ROWS
        return found._replace(separate_from=min(apart, found.separate_from), pass_operations=found.operations)
    return found


def cache_operations(scheme: QuantScheme, gpu: Gpu) -> float:
    """Vector operations to widen one cached element; none where attention multiplies the format itself (FP8, FA3)."""
    form = scheme.kv_cache
    if not form.is_quantised or (form.element == "fp8" and gpu.supports("fp8")):
        return 0.0
    kind = f"int{form.bits:g}" if form.element.startswith("int") else form.element
    return _CACHE_OPERATIONS.get(kind, 2.0) + (0.5 if form.zero_bits else 0.0)


def inserted(scheme: QuantScheme, matrix: WeightMatrix, k: int, n: int, calls: int) -> Iterator[Traffic]:
    """Operators around one matrix beyond those in its product: conversions nobody has fused.

    With products in 16 bit, activations are rounded to the narrow format and widened again: in two passes, in one
    when conversions are fused with each other, or in none when the operator before can do it. With narrow products,
    results are scaled in a pass unless the epilogue does it (32-bit sums in, 16 bit out).
    """
    role = matrix.role
    narrow = scheme.activation_format(role)
    if not narrow.is_quantised:
        return
    stored = narrow.stored_bytes
    if scheme.compute == "auto":
        if scheme.fuse == "none":
            yield Traffic("dequantise", calls, n * 6.0)
    elif scheme.fuse == "none":
        yield Traffic("quantise", calls, k * (2.0 + stored))
        yield Traffic("dequantise", calls, k * (2.0 + stored))
    elif quantising(scheme, role) == "apart":
        yield Traffic("quantise", calls, k * 4.0)
