"""Matrix products in every format against float64."""

from __future__ import annotations

import pytest
import torch

from sim.validation.kernels import gemm, weight_only
from sim.validation.kernels.quantise import quantise_rows
from sim.validation.kernels.reference import relative_error

BF16, E4M3, INT8 = 6e-3, 4e-2, 1.5e-2
"""Relative error of a product: of bf16 results, and of operands rounded to e4m3 and to int8 (the interpreter
truncates to e4m3 where the GPU rounds, which costs up to three times as much)."""


def _operands(m: int, n: int, k: int, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(m + n + k)
    return torch.randn(m, k).to(dtype), (torch.randn(n, k) / k**0.5).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dense_product(dtype: torch.dtype) -> None:
    """The library's 16-bit product is x times the transposed weights."""
    x, weight = _operands(5, 24, 64, dtype)
    out = torch.empty(5, 24, dtype=dtype)
    gemm.dense(x, weight, out)
    assert relative_error(out, x.double() @ weight.double().t()) < BF16


def test_fp8_product_scales_rows_and_columns() -> None:
    """Rows of very different magnitude keep their relative precision."""
    x, weight = _operands(6, 32, 64)
    x[2] *= 1000
    codes, scale = gemm.quantise_weight(weight, torch.float8_e4m3fn)
    found = gemm.fp8(x, codes, scale)
    exact = x.double() @ weight.double().t()
    for row in range(6):
        assert relative_error(found[row], exact[row]) < 3 * E4M3


@pytest.mark.parametrize("m", [3, 40])
def test_int8_product_pads_few_rows(m: int) -> None:
    """The integer product takes any number of rows, and scales them back."""
    x, weight = _operands(m, 48, 128)
    codes, scale = gemm.quantise_weight(weight, torch.int8)
    found = gemm.int8(x, codes, scale)
    assert found.shape == (m, 48)
    assert relative_error(found, x.double() @ weight.double().t()) < INT8


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_rows_use_the_whole_range(dtype: torch.dtype) -> None:
    """The largest element of each row takes the largest code, rows longer than a chunk included."""
    torch.manual_seed(3)
    x = torch.randn(4, 5000)
    codes, scales = quantise_rows(x, dtype)
    largest = 127.0 if dtype is torch.int8 else 448.0
    assert torch.allclose(scales[:, 0], x.abs().amax(1) / largest)
    assert codes.float().abs().amax(1).eq(largest).all()
    assert relative_error(codes.double() * scales.double(), x) < (INT8 if dtype is torch.int8 else 2 * E4M3)


@pytest.mark.parametrize("kind", ["int4", "nf4"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 96, 256), (17, 64, 128), (130, 40, 512)])
def test_weight_only_product_is_that_of_its_codes(kind: str, m: int, n: int, k: int) -> None:
    """Dequantised inside the product, split over k or not, weights count as exactly what their codes stand for."""
    x, weight = _operands(m, n, k)
    packed = weight_only.pack(weight, kind)
    found = weight_only.product(x, packed)
    assert relative_error(found, x.double() @ weight_only.unpack(packed).t()) < BF16


@pytest.mark.parametrize(("kind", "bound"), [("int4", 0.13), ("nf4", 0.11)])
def test_codes_are_nearest(kind: str, bound: float) -> None:
    """Quantisation of normal weights in groups of 128 loses what four bits must; NF4 loses less."""
    _, weight = _operands(1, 64, 1024)
    assert 0.05 < relative_error(weight_only.unpack(weight_only.pack(weight, kind)), weight) < bound


def test_look_up_values_survive() -> None:
    """Weights that are table values times a scale come back as they were."""
    scale = 0.5
    weight = torch.tensor(weight_only.NF4).repeat(2, 16)[:, :256] * scale
    found = weight_only.unpack(weight_only.pack(weight, "nf4"))
    assert torch.allclose(found, weight.double(), atol=1e-6)


def test_torch_int4_product() -> None:
    """torch's own int4 kernel multiplies by what its codes stand for."""
    x, weight = _operands(4, 64, 256)
    codes, scale, middle = weight_only.asymmetric_codes(weight)
    groups = (codes.double() - 8).view(64, -1, weight_only.GROUP) * scale.double()[..., None] + middle.double()[
        ..., None
    ]
    exact = groups.reshape(64, 256)
    assert relative_error(exact, weight) < 0.12
    assert relative_error(weight_only.pack_for_torch(weight).product(x), x.double() @ exact.t()) < 2 * BF16
