"""Numerical errors of the kernels on this device, each against float64 and with the bound of its format.

Inputs are drawn afresh for every seed, and outputs are poisoned before each run, so that an element that is never
written is found. Operands are rounded to their format before the exact result is computed, except where rounding
them is the kernel's own work; a bound is then the rounding error of normal numbers in that format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from sim.validation.kernels import attention, elementwise, gemm, paging, quantise, sdpa, weight_only
from sim.validation.kernels import reference as exact
from sim.validation.kernels.kv_cache import FORMATS, KvCache, allocate

_BF16, _FP16 = 6e-3, 1e-3
_QUANTISED = {"fp8": 4e-2, "int8": 1.5e-2}
_STORED = {"bf16": _BF16, "fp8": 4e-2, "int8": 1e-2, "int4": 0.13}
_HEADS, _KV_HEADS, _HEAD_DIM, _BLOCK = 8, 2, 64, 16


@dataclass(frozen=True)
class Check:
    """One kernel in one format: its relative error here and the most it may be."""

    kernel: str
    error: float
    bound: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether it ran and is within its bound; an error that is not a number never is."""
        return not self.problem and self.error <= self.bound


def check_kernels(device: str, seed: int) -> Iterator[Check]:
    """Every kernel once; one that raises is a failed check that says why."""
    torch.manual_seed(seed)
    for name, (compute, bound) in _checks(torch.device(device)).items():
        try:
            yield Check(name, compute(), bound)
        except Exception as problem:  # one kernel that cannot run here must not hide the others
            yield Check(name, float("inf"), bound, f"{type(problem).__name__}: {problem}".splitlines()[0][:200])


def _checks(device: torch.device) -> Mapping[str, tuple[Callable[[], float], float]]:
    found: dict[str, tuple[Callable[[], float], float]] = {
        "gemm bf16": (lambda: _dense(device, torch.bfloat16), _BF16),
        "gemm fp16": (lambda: _dense(device, torch.float16), _FP16),
        "gemm fp8": (lambda: _quantised(device, torch.float8_e4m3fn, gemm.fp8), _QUANTISED["fp8"]),
        "gemm w8a8_int8": (lambda: _quantised(device, torch.int8, gemm.int8), _QUANTISED["int8"]),
        "gemm w4a16": (lambda: _weight_only(device, "int4"), _BF16),
        "gemm nf4": (lambda: _weight_only(device, "nf4"), _BF16),
        "gemm w4a16_torch": (lambda: _torch_int4(device), 2 * _BF16),
        "rms_norm": (lambda: _norm(device), _BF16),
        "rope": (lambda: _rope(device), _BF16),
        "silu_mul": (lambda: _silu_mul(device), _BF16),
        "quantise int8": (lambda: _rows(device, torch.int8), _QUANTISED["int8"]),
        "quantise fp8": (lambda: _rows(device, torch.float8_e4m3fn), _QUANTISED["fp8"]),
        "prefill unfused": (lambda: _library(device, "unfused"), _BF16),
    }
    for kv in _STORED:
        found[f"decode {kv}"] = (partial(_decode, device, kv), _BF16)
        found[f"shared prefix {kv}"] = (partial(_shared, device, kv), _BF16)
        found[f"prefill {kv}"] = (partial(_prefill, device, kv), _BF16)
        found[f"KV write {kv}"] = (partial(_write, device, kv), _STORED[kv])
        found[f"block copy {kv}"] = (partial(_copy, device, kv), 0.0)
    for backend in ("flash", "cudnn") if device.type == "cuda" else ("flash",):
        found[f"prefill {backend}"] = (partial(_library, device, backend), _BF16)
    return found


def _normal(device: torch.device, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, device=device).to(dtype)


def _operands(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, torch.Tensor]:
    return _normal(device, 40, 256, dtype=dtype), _normal(device, 96, 256, dtype=dtype) / 16


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.double() @ weight.double().t()


def _poisoned(like: torch.Tensor) -> torch.Tensor:
    return torch.full_like(like, float("nan"))


def _dense(device: torch.device, dtype: torch.dtype) -> float:
    x, weight = _operands(device, dtype)
    out = _poisoned(x[:, :96].contiguous())
    gemm.dense(x, weight, out)
    return exact.relative_error(out, _product(x, weight))


def _quantised(device: torch.device, dtype: torch.dtype, multiply: Callable[..., torch.Tensor]) -> float:
    x, weight = _operands(device)
    return exact.relative_error(multiply(x, *gemm.quantise_weight(weight, dtype)), _product(x, weight))


def _weight_only(device: torch.device, kind: str) -> float:
    x, weight = _operands(device)
    packed = weight_only.pack(weight, kind)
    return exact.relative_error(weight_only.product(x, packed), _product(x, weight_only.unpack(packed)))


def _torch_int4(device: torch.device) -> float:
    x, weight = _operands(device)
    codes, scale, middle = (part.double() for part in weight_only.asymmetric_codes(weight))
    groups = (codes - 8).view(weight.shape[0], -1, weight_only.GROUP) * scale[..., None] + middle[..., None]
    found = weight_only.pack_for_torch(weight).product(x)
    return exact.relative_error(found, _product(x, groups.reshape(weight.shape)))


def _norm(device: torch.device) -> float:
    x, residual, weight = _normal(device, 5, 300), _normal(device, 5, 300), _normal(device, 300)
    total = x.double() + residual.double()
    out = _poisoned(x)
    elementwise.add_rms_norm(x, residual, weight, out)
    right = total / (total.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    return max(exact.relative_error(out, right), exact.relative_error(residual, total))


def _rope(device: torch.device) -> float:
    x = _normal(device, 3, 4 * _HEAD_DIM)
    before, positions = x.double().view(3, 4, 2, _HEAD_DIM // 2), torch.tensor([0, 5, 77], device=device)
    cosines, sines = (part.double() for part in elementwise.rope_angles(80, _HEAD_DIM, 1e4, device))
    turn = torch.complex(cosines, sines)[positions][:, None]
    right = torch.complex(before[:, :, 0], before[:, :, 1]) * turn
    elementwise.rope(x, 4, elementwise.rope_angles(80, _HEAD_DIM, 1e4, device), positions)
    return exact.relative_error(x.view(3, 4, -1), torch.cat([right.real, right.imag], -1))


def _silu_mul(device: torch.device) -> float:
    both = _normal(device, 3, 5000)
    out = _poisoned(both[:, :2500].contiguous())
    elementwise.silu_mul(both, out)
    gate, up = both.double().chunk(2, -1)
    return exact.relative_error(out, gate / (1 + (-gate).exp()) * up)


def _rows(device: torch.device, dtype: torch.dtype) -> float:
    x = _normal(device, 4, 3000)
    codes, scales = quantise.quantise_rows(x, dtype)
    return exact.relative_error(codes.double() * scales.double(), x)


def _filled(device: torch.device, kv: str, blocks: int) -> KvCache:
    cache = allocate(FORMATS[kv], blocks, _BLOCK, _KV_HEADS, _HEAD_DIM, device)
    exact.store(cache, *(_normal(device, blocks * _BLOCK, _KV_HEADS, _HEAD_DIM) for _ in range(2)))
    return cache


def _units(device: torch.device, contexts: list[int], tokens: list[int], blocks: list[int]) -> attention.Units:
    """Units whose blocks are taken off the end of a list."""
    counts = [-(-context // _BLOCK) for context in contexts]
    tables = torch.zeros((len(contexts), max(counts)), dtype=torch.int32)
    for unit, count in enumerate(counts):
        tables[unit, :count] = torch.tensor([blocks.pop() for _ in range(count)], dtype=torch.int32)
    starts = torch.tensor([0, *tokens]).cumsum(0).to(torch.int32)
    lengths = torch.tensor(contexts, dtype=torch.int32)
    return attention.Units(starts.to(device), tables.to(device), lengths.to(device), max(tokens), max(contexts))


def _context(cache: KvCache, units: attention.Units, unit: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = int(units.contexts[unit])
    blocks = units.tables[unit, : -(-tokens // _BLOCK)].tolist()
    return exact.stored(cache, "key", blocks, tokens), exact.stored(cache, "value", blocks, tokens)


def _decode(device: torch.device, kv: str) -> float:
    cache = _filled(device, kv, 24)
    units = _units(device, [1, 150, 67], [1] * 3, torch.randperm(24).tolist())
    query = _normal(device, 3, _HEADS, _HEAD_DIM)
    errors = []
    for splits in (1, 3):
        out = _poisoned(query)
        attention.decode(query, cache, units, out, splits=splits)
        right = [exact.attention(query[i : i + 1], *_context(cache, units, i), None) for i in range(3)]
        errors.append(exact.relative_error(out, torch.cat(right)))
    return max(errors)


def _shared(device: torch.device, kv: str) -> float:
    cache, order = _filled(device, kv, 24), torch.randperm(24).tolist()
    prefix = _units(device, [96], [4], order)
    suffix = _units(device, [5, 40, 17, 33], [1] * 4, order)
    query = _normal(device, 4, _HEADS, _HEAD_DIM)
    out = _poisoned(query)
    attention.shared_prefix_decode(query, cache, prefix, suffix, out)
    right = []
    for i in range(4):
        before, after = _context(cache, prefix, 0), _context(cache, suffix, i)
        keys, values = (torch.cat(pair) for pair in zip(before, after, strict=True))
        right.append(exact.attention(query[i : i + 1], keys, values, None))
    return exact.relative_error(out, torch.cat(right))


def _prefill(device: torch.device, kv: str) -> float:
    cached, new = [40, 0], [9, 70]
    cache = _filled(device, kv, 24)
    units = _units(device, [c + n for c, n in zip(cached, new, strict=True)], new, torch.randperm(24).tolist())
    query = _normal(device, sum(new), _HEADS, _HEAD_DIM)
    out = _poisoned(query)
    attention.prefill(query, cache, units, out)
    parts = query.split(new)
    right = [exact.attention(parts[i], *_context(cache, units, i), cached[i]) for i in range(2)]
    return exact.relative_error(out, torch.cat(right))


def _write(device: torch.device, kv: str) -> float:
    cache = allocate(FORMATS[kv], 4, _BLOCK, _KV_HEADS, _HEAD_DIM, device)
    keys, values = (_normal(device, 20, _KV_HEADS, _HEAD_DIM) for _ in range(2))
    slots = torch.randperm(4 * _BLOCK, device=device)[:20]
    paging.write(keys, values, cache, slots)
    found = [exact.stored(cache, which, range(4), 4 * _BLOCK)[slots] for which in ("key", "value")]
    return max(exact.relative_error(*pair) for pair in zip(found, (keys, values), strict=True))


def _copy(device: torch.device, kv: str) -> float:
    cache = _filled(device, kv, 6)
    paging.copy_blocks(cache, cache, torch.tensor([0, 3], device=device), torch.tensor([5, 2], device=device))
    same: list[Any] = [torch.equal(part[[5, 2]], part[[0, 3]]) for part in cache.parts]
    return 0.0 if all(same) else 1.0


def _library(device: torch.device, how: str) -> float:
    query = _normal(device, 2, _HEADS, 48, _HEAD_DIM)
    keys, values = (_normal(device, 2, _KV_HEADS, 48, _HEAD_DIM) for _ in range(2))
    found = sdpa.unfused(query, keys, values) if how == "unfused" else sdpa.fused(how, query, keys, values)()
    turned = [x.transpose(1, 2) for x in (query, keys, values)]
    right = [exact.attention(turned[0][i], turned[1][i], turned[2][i], 0) for i in range(2)]
    return exact.relative_error(found.transpose(1, 2), torch.stack(right))
