"""Matrix products of the libraries: 16-bit and FP8 through cuBLAS, INT8 with a scaling epilogue of our own.

Weights are [n, k], as checkpoints hold them; Y[m, n] = X[m, k] W^T.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sim.validation.kernels.quantise import quantise_rows

_FEWEST_INT8_ROWS = 32
"""torch._int_mm asks for more than 16 rows."""
_COLUMNS = 1024


def dense(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    """Both operands in 16 bit, accumulated in fp32 (cuBLAS)."""
    torch.mm(x, weight.t(), out=out)


def fp8(x: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor) -> torch.Tensor:
    """Rows of x quantised to e4m3 with a scale each, then a scaled FP8 product; `weight_scale` is [1, n]."""
    codes, scale = quantise_rows(x, torch.float8_e4m3fn)
    return torch._scaled_mm(codes, weight.t(), scale_a=scale, scale_b=weight_scale, out_dtype=torch.bfloat16)


def int8(x: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor) -> torch.Tensor:
    """Rows of x in int8 with a scale each, an integer product, and a pass that scales it; `weight_scale` [1, n]."""
    codes, scale = quantise_rows(x, torch.int8, _FEWEST_INT8_ROWS)
    sums = torch._int_mm(codes, weight.t())
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=torch.bfloat16, device=x.device)
    scale_sums(sums, scale, weight_scale, out)
    return out


def scale_sums(sums: torch.Tensor, row_scale: torch.Tensor, column_scale: torch.Tensor, out: torch.Tensor) -> None:
    """Integer sums times the scales of their row and column, for the rows of `out`."""
    m, n = out.shape
    _scale[m, triton.cdiv(n, _COLUMNS)](sums, row_scale, column_scale, out, n, COLUMNS=_COLUMNS)


@triton.jit
def _scale(sums, row_scale, column_scale, out, n, COLUMNS: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < n
    value = tl.load(sums + row * n + column, mask=inside, other=0).to(tl.float32)
    value = value * tl.load(row_scale + row) * tl.load(column_scale + column, mask=inside, other=0.0)
    tl.store(out + row * n + column, value.to(out.dtype.element_ty), mask=inside)


def quantise_weight(weight: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights with one scale per output column: codes [n, k] and scales [1, n]."""
    largest = torch.finfo(dtype).max if dtype.is_floating_point else 127.0
    scale = weight.float().abs().amax(1, keepdim=True).clamp_min(1e-12) / largest
    codes = weight.float() / scale
    return (codes if dtype.is_floating_point else codes.round()).to(dtype), scale.t().contiguous()
