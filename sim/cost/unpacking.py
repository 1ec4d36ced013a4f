"""Products and attention in formats that nobody measured: the measured 16-bit kernel, other bytes, and unpacking."""

from __future__ import annotations

from dataclasses import replace

from sim.cost.kernels.arithmetic import SCALAR, THROTTLE_AFTER_S, Terms, ceil_div, smooth_max, terms
from sim.cost.kernels.attention_decode import DecodeKernel
from sim.cost.kernels.gemm import GemmKernel, gemm_formula
from sim.cost.kernels.moe import MoeKernel
from sim.cost.roofline import Heads, tile_share
from sim.specs.weight_kernels import Unpacking


def unpacked_terms(m: int, n: int, k: int, kernel: GemmKernel, weight_bytes: float, unpacking: Unpacking) -> Terms:
    """The 16-bit `kernel` with weights of `weight_bytes` that vector units widen for every `rows` rows of m.

    Without the residual table, which belongs to the library whose tiles it corrects. The operand feed of a tile
    shrinks with the bytes, as narrow weights travel further into the SM before they are widened.
    """
    narrow = replace(kernel.without_residual(), format=replace(kernel.format, weight_bytes=weight_bytes))
    _, product, memory, _ = gemm_formula(m, n, k, narrow, True, SCALAR)
    p = kernel.params
    product = product / tile_share(m, unpacking)
    unpack = ceil_div(m, unpacking.rows) * n * k * unpacking.operations / kernel.chip.vector_ops_per_s
    compute = smooth_max(unpack, product if unpacking.multiplies else 0.0, unpacking.overlap, SCALAR)
    busy = smooth_max(compute, memory, p.overlap_power, SCALAR)
    seconds = (p.launch_s + busy) * (1.0 + p.throttle * compute / (compute + THROTTLE_AFTER_S))
    parts = {"launch": p.launch_s, "compute": compute, "memory": memory}
    return terms(float(seconds), parts)


def without_quantising(kernel: GemmKernel) -> GemmKernel:
    """The same product on activations that an earlier operator has quantised."""
    return replace(kernel, format=replace(kernel.format, quantises_activations=False))


def with_cache(kernel: DecodeKernel, heads: Heads) -> DecodeKernel:
    """The same attention over keys and values of these bytes per element, scales included."""
    elements = heads.kv_heads * (heads.query_dim + heads.value_dim)
    return replace(kernel, format=replace(kernel.format, kv_bytes_per_element=heads.kv_bytes_per_token / elements))


def with_weights(kernel: MoeKernel, weight_bytes: float) -> MoeKernel:
    """The same experts with weights of these bytes per parameter."""
    return replace(kernel, format=replace(kernel.format, weight_bytes=weight_bytes))
