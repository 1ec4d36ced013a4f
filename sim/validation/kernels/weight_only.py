"""4-bit weights under 16-bit activations: group dequantisation fused into the product, in Triton.

The packing puts two codes of one group of 128 into a byte, elements j and j + 64, so that a tile of bytes unpacks into
two operand tiles without shuffling. Codes are integers (symmetric, zero at 8, as in GPTQ's and AWQ's symmetric modes)
or indices into a table of 16 values (NF4: the quantiles of a normal distribution, Dettmers et al., "QLoRA", 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sim.validation.kernels.attention import processors_of
from sim.validation.kernels.dot import dot

GROUP = 128
_HALF = GROUP // 2
_COLUMNS = 64
_MOST_SPLITS = 8
_INNER_TILES = 8
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The sixteen values of NF4 (QLoRA, appendix E)."""


@dataclass(frozen=True)
class PackedWeight:
    """4-bit weights [n, k]: codes [n, k / 2], 16-bit scales [n, k / 128], and the table of a look-up format."""

    codes: torch.Tensor
    scales: torch.Tensor
    table: torch.Tensor | None = None


@triton.jit(do_not_specialize=["m", "groups_per_split"])
def _product(
    x, codes, scales, table, out, m, n, k, groups_per_split,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, HALF: tl.constexpr, LOOK_UP: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(2)
    half = tl.arange(0, HALF)
    groups = k // (2 * HALF)
    inside, alive = (column < n)[None, :], (row < m)[:, None]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    first = split * groups_per_split
    for group in range(first, tl.minimum(first + groups_per_split, groups)):
        at = x + row.to(tl.int64)[:, None] * k + group * (2 * HALF) + half[None, :]
        low, high = tl.load(at, mask=alive, other=0.0), tl.load(at + HALF, mask=alive, other=0.0)
        pair = tl.load(
            codes + column.to(tl.int64)[None, :] * (k // 2) + group * HALF + half[:, None], mask=inside, other=0
        )
        if LOOK_UP:
            weight_low, weight_high = tl.load(table + (pair & 15)), tl.load(table + (pair >> 4))
        else:
            weight_low = ((pair & 15).to(tl.float32) - 8.0).to(low.dtype)
            weight_high = ((pair >> 4).to(tl.float32) - 8.0).to(low.dtype)
        scale = tl.load(scales + column * groups + group, mask=column < n, other=0.0).to(tl.float32)
        total += (dot(low, weight_low) + dot(high, weight_high)) * scale[None, :]
    at = out + (split * m + row).to(tl.int64)[:, None] * n + column[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=alive & inside)


@triton.jit
def _sum_parts(parts, out, size, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for split in range(SPLITS):
        total += tl.load(parts + split * size + at, mask=at < size, other=0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=at < size)


def product(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """x [m, k] times 4-bit weights, in the format of x; k is a multiple of 128."""
    (m, k), n = x.shape, weight.codes.shape[0]
    rows = 16 if m <= 16 else 32 if m <= 32 else 64 if m <= 64 else 128
    tiles = triton.cdiv(n, _COLUMNS) * triton.cdiv(m, rows)
    groups = k // GROUP
    splits = min(_MOST_SPLITS, groups, max(1, processors_of(x.device) // tiles))
    each = triton.cdiv(groups, splits)
    splits = triton.cdiv(groups, each)
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    parts = out if splits == 1 else torch.empty((splits, m, n), dtype=torch.float32, device=x.device)
    table = weight.scales if weight.table is None else weight.table
    _product[triton.cdiv(n, _COLUMNS), triton.cdiv(m, rows), splits](
        x, weight.codes, weight.scales, table, parts, m, n, k, each, ROWS=rows, COLUMNS=_COLUMNS, HALF=_HALF,
        LOOK_UP=weight.table is not None, num_warps=4, num_stages=3,
    )  # fmt: skip
    if splits > 1:
        _sum_parts[(triton.cdiv(m * n, 1024),)](parts, out, m * n, SPLITS=splits, BLOCK=1024)
    return out


def pack(weight: torch.Tensor, kind: str = "int4") -> PackedWeight:
    """Quantise weights [n, k] to `int4` or `nf4` in groups of 128 along k, nearest code."""
    n, k = weight.shape
    groups = weight.float().view(n, k // GROUP, GROUP)
    largest = groups.abs().amax(-1, keepdim=True).clamp_min(1e-12)
    scale = (largest / (7.0 if kind == "int4" else 1.0)).half()
    scaled = groups / scale.float()
    table = None
    if kind == "int4":
        codes = (scaled + 0.5).floor().clamp(-8, 7) + 8
    else:
        levels = torch.tensor(NF4, device=weight.device)
        codes = torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2)
        table = levels.to(weight.dtype)
    codes = codes.to(torch.uint8).view(n, k // GROUP, 2, _HALF)
    packed = (codes[:, :, 0] | (codes[:, :, 1] << 4)).reshape(n, k // 2)
    return PackedWeight(packed, scale.view(n, k // GROUP), table)


def unpack(weight: PackedWeight) -> torch.Tensor:
    """What the codes stand for, [n, k] in float64."""
    n, half = weight.codes.shape
    pairs = weight.codes.view(n, -1, 1, _HALF)
    codes = torch.cat([pairs & 15, pairs >> 4], dim=2).long()
    values = codes.double() - 8 if weight.table is None else weight.table.double()[codes]
    return (values * weight.scales.double()[:, :, None, None]).reshape(n, 2 * half)


@dataclass(frozen=True)
class TorchInt4:
    """Weights of torch's own weight-only int4 product (tinygemm): asymmetric codes in groups of 128."""

    codes: torch.Tensor
    scales: torch.Tensor

    def clone(self) -> TorchInt4:
        """The same in other memory."""
        return TorchInt4(self.codes.clone(), self.scales.clone())

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """bf16 x [m, k] times the weights."""
        ops = torch.ops.aten
        multiply = ops._weight_int4pack_mm if x.is_cuda else ops._weight_int4pack_mm_for_cpu
        return multiply(x, self.codes, GROUP, self.scales)


def pack_for_torch(weight: torch.Tensor) -> TorchInt4:
    """Weights [n, k] in torch's own packing, which differs between GPU and CPU."""
    codes, scale, middle = asymmetric_codes(weight)
    scales = torch.stack([scale, middle], -1).transpose(0, 1).contiguous()
    if weight.is_cuda:
        pairs = ((codes[:, ::2] << 4) | codes[:, 1::2]).to(torch.uint8)
        return TorchInt4(torch.ops.aten._convert_weight_to_int4pack(pairs, _INNER_TILES), scales)
    return TorchInt4(torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, _INNER_TILES), scales)


def asymmetric_codes(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [n, k], and [n, k / 128] scales and values of code 8, such that w = (code - 8) scale + value."""
    n, k = weight.shape
    groups = weight.float().view(n, k // GROUP, GROUP)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = ((high - low) / 15).clamp_min(1e-6).bfloat16()
    middle = (low + scale.float() * 8).bfloat16()
    codes = ((groups - middle.float()[..., None]) / scale.float()[..., None] + 8).round().clamp(0, 15)
    return codes.to(torch.int32).reshape(n, k), scale, middle
