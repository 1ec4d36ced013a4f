"""The tensor-core product, for the GPU and for Triton's interpreter alike."""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
"""Whether kernels run on the CPU, whose interpreter holds bf16 as bit patterns and multiplies those (Triton 3.9)."""


@triton.jit
def dot(a, b):
    """a @ b, accumulated in fp32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b)
