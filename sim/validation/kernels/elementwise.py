"""The operators between the matrix products: norms, rotary embedding, gated activation, and sampling."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_CHUNK = 2048


@triton.jit
def _norm(x, residual, weight, out, hidden, eps, ADD: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < hidden
    value = tl.load(x + row * hidden + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(residual + row * hidden + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(residual + row * hidden + column, value.to(residual.dtype.element_ty), mask=inside)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, 0) / hidden + eps)
    value = value * scale * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * hidden + column, value.to(out.dtype.element_ty), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float = 1e-5) -> None:
    """out = x / rms(x) * weight, row by row."""
    _launch_norm(x, x, weight, out, eps, add=False)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float = 1e-5
) -> None:
    """residual += x, then out = its norm: one pass instead of two."""
    _launch_norm(x, residual, weight, out, eps, add=True)


def _launch_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float, *, add: bool
) -> None:
    rows, hidden = x.shape
    columns = triton.next_power_of_2(hidden)
    _norm[(rows,)](x, residual, weight, out, hidden, eps, ADD=add, COLUMNS=columns, num_warps=8)


@triton.jit
def _rope(qkv, cosines, sines, positions, stride, HEADS: tl.constexpr, HEADS_PADDED: tl.constexpr, HALF: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token).to(tl.int64)
    head, element = tl.arange(0, HEADS_PADDED), tl.arange(0, HALF)
    inside = (head < HEADS)[:, None] & (element < HALF)[None, :]
    at = qkv + token * stride + head[:, None] * (2 * HALF) + element[None, :]
    low = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    cosine = tl.load(cosines + position * HALF + element)[None, :]
    sine = tl.load(sines + position * HALF + element)[None, :]
    tl.store(at, (low * cosine - high * sine).to(qkv.dtype.element_ty), mask=inside)
    tl.store(at + HALF, (high * cosine + low * sine).to(qkv.dtype.element_ty), mask=inside)


def rope(qkv: torch.Tensor, heads: int, angles: tuple[torch.Tensor, torch.Tensor], positions: torch.Tensor) -> None:
    """Rotate the first `heads` heads of each row (queries, then keys) in place by their position.

    `angles` are cosines and sines [position, head_dim / 2]; element i is paired with i + head_dim / 2 (GPT-NeoX style).
    """
    half = angles[0].shape[1]
    _rope[(qkv.shape[0],)](
        qkv, *angles, positions, qkv.stride(0), HEADS=heads, HEADS_PADDED=triton.next_power_of_2(heads), HALF=half,
        num_warps=4,
    )  # fmt: skip


def rope_angles(
    positions: int, head_dim: int, theta: float, device: str | torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of every position (Su et al., "RoFormer", 2021, eq. 15)."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
    return angle.cos().float().to(device), angle.sin().float().to(device)


@triton.jit
def _silu_mul(gate_up, out, width, COLUMNS: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, (gate / (1.0 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=inside)


def silu_mul(gate_up: torch.Tensor, out: torch.Tensor) -> None:
    """silu(gate) * up of rows that hold both, one after the other."""
    rows, width = out.shape
    _silu_mul[rows, triton.cdiv(width, _CHUNK)](gate_up, out, width, COLUMNS=_CHUNK, num_warps=8)


def sample_greedy(logits: torch.Tensor, out: torch.Tensor) -> None:
    """The likeliest token of each row."""
    torch.argmax(logits, dim=-1, out=out)


def sample_top_k_top_p(logits: torch.Tensor, k: int, p: float) -> torch.Tensor:
    """A token of each row out of the k likeliest, and of these the fewest that hold probability p.

    Drawn by the exponential race, which needs no host synchronisation (the argmax of probability over Exp(1) noise).
    """
    ranked, tokens = logits.float().sort(dim=-1, descending=True)
    probability = ranked.softmax(-1)
    before = probability.cumsum(-1) - probability
    rank = torch.arange(ranked.shape[-1], device=logits.device)
    probability = probability.masked_fill((before >= p) | (rank >= k), 0.0)
    winner = (probability / torch.empty_like(probability).exponential_()).argmax(-1, keepdim=True)
    return tokens.gather(-1, winner)[:, 0]


@triton.jit
def _nothing():
    pass


def empty_kernel() -> None:
    """A launch without work."""
    _nothing[(1,)]()
