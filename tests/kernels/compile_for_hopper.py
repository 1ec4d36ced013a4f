"""Compile every Triton kernel for compute capability 9.0, as far as machine code; no GPU is needed.

The interpreter accepts Python that the compiler refuses. Launches are replaced by compilations of what they would
launch; each kernel that was compiled is named on a line of its own.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from sim.validation.kernels import attention, elementwise, gemm, paging, quantise, weight_only
from sim.validation.kernels.kv_cache import FORMATS, allocate

BF16 = torch.bfloat16
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128


def _compile_instead(kernel: JITFunction[Any], grid: Any) -> Any:
    def launch(*arguments: Any, **options: Any) -> None:
        compiled = kernel.warmup(*arguments, grid=grid, **options)
        if compiled.asm["cubin"]:
            print(kernel.__name__)

    return launch


def compile_attention(kv_format: str) -> None:
    """Decode whole and split, shared prefixes, chunks, and the moves of their blocks."""
    cache = allocate(FORMATS[kv_format], 8, 16, KV_HEADS, HEAD_DIM, "cpu")
    query, out = (torch.zeros(4, HEADS, HEAD_DIM, dtype=BF16) for _ in range(2))
    tables, contexts = torch.zeros((4, 8), dtype=torch.int32), torch.full((4,), 100, dtype=torch.int32)
    units = attention.Units(torch.arange(5, dtype=torch.int32), tables, contexts, 1, 100)
    one = attention.Units(torch.tensor([0, 4], dtype=torch.int32), tables[:1], contexts[:1], 4, 100)
    attention.decode(query, cache, units, out, splits=1)
    attention.decode(query, cache, units, out, splits=4)
    attention.decode(query, cache, units, out, splits=4, paged=False)
    attention.prefill(query, cache, units, out)
    attention.shared_prefix_decode(query, cache, one, units, out)
    new, slots = torch.zeros(4, KV_HEADS, HEAD_DIM, dtype=BF16), torch.zeros(4, dtype=torch.int64)
    paging.write(new, new, cache, slots)
    paging.copy_blocks(cache, cache, slots, slots)


def compile_products() -> None:
    """Weight-only products in all tile heights, quantisation, and the scaling pass."""
    x = torch.zeros(16, 4096, dtype=BF16)
    for dtype in (torch.int8, torch.float8_e4m3fn):
        quantise.quantise_rows(x, dtype)
    for kind in ("int4", "nf4"):
        weight = weight_only.pack(torch.randn(256, 4096).to(BF16), kind)
        for m in (1, 33, 200):
            weight_only.product(torch.zeros(m, 4096, dtype=BF16), weight)
    sums, scale = torch.zeros(4, 64, dtype=torch.int32), torch.ones(4, 1)
    gemm.scale_sums(sums, scale, torch.ones(1, 64), torch.zeros(4, 64, dtype=BF16))


def compile_elementwise() -> None:
    """Norms, rotary embedding, activation, and the empty kernel."""
    x = torch.zeros(16, 4096, dtype=BF16)
    elementwise.rms_norm(x, x[0], x.clone())
    elementwise.add_rms_norm(x, x.clone(), x[0], x.clone())
    angles, rows = elementwise.rope_angles(16, HEAD_DIM, 1e4, "cpu"), HEADS + 2 * KV_HEADS
    elementwise.rope(torch.zeros(4, rows * HEAD_DIM, dtype=BF16), HEADS + KV_HEADS, angles, torch.zeros(4).long())
    elementwise.silu_mul(torch.zeros(4, 8192, dtype=BF16), torch.zeros(4, 4096, dtype=BF16))
    elementwise.empty_kernel()


if __name__ == "__main__":
    target = GPUTarget("cuda", 90, 32)
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0, get_current_stream=lambda device=0: 0, get_current_target=lambda: target
        )
    )
    JITFunction.__getitem__ = _compile_instead
    for name in ("bf16", "fp8", "int4"):
        compile_attention(name)
    compile_products()
    compile_elementwise()
