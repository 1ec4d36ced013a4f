"""Dynamic quantisation of activations: one scale per row (token)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_COLUMNS = 2048


@triton.jit
def _quantise(x, codes, scales, k, LARGEST: tl.constexpr, ROUND: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([COLUMNS], tl.float32)
    for first in range(0, k, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        value = tl.load(x + row * k + column, mask=column < k, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(value))
    scale = tl.maximum(tl.max(largest, 0), 1e-12) / LARGEST
    tl.store(scales + row, scale)
    for first in range(0, k, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        code = tl.load(x + row * k + column, mask=column < k, other=0.0).to(tl.float32) / scale
        if ROUND:
            code = tl.floor(code + 0.5)
        code = tl.minimum(tl.maximum(code, -LARGEST), LARGEST)
        tl.store(codes + row * k + column, code.to(codes.dtype.element_ty), mask=column < k)


def quantise_rows(x: torch.Tensor, dtype: torch.dtype, fewest_rows: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [m, k] of a row-scaled matrix and its scales [m, 1]; codes have `fewest_rows` rows at least."""
    m, k = x.shape
    whole = not dtype.is_floating_point
    codes = torch.empty((max(m, fewest_rows), k), dtype=dtype, device=x.device)
    scales = torch.empty((m, 1), dtype=torch.float32, device=x.device)
    largest = 127.0 if whole else float(torch.finfo(dtype).max)
    _quantise[(m,)](x, codes, scales, k, LARGEST=largest, ROUND=whole, COLUMNS=_COLUMNS, num_warps=8)
    return codes, scales
