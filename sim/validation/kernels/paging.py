"""Moving KV about: new tokens into blocks, block copies, gathers out of blocks, and swaps over PCIe."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sim.validation.kernels.kv_cache import KvCache

_COPY_WORDS = 1024


@triton.jit
def _quantised(value, scales, place, there, LARGEST: tl.constexpr):
    """Half heads as integer codes, rounded to nearest; their scales are stored."""
    largest = tl.max(tl.abs(value), 1)
    scale = tl.where(largest > 0, largest / LARGEST, 1.0).to(tl.float16)
    tl.store(scales + place, scale, mask=there)
    code = tl.floor(value / scale.to(tl.float32)[:, None] + 0.5)
    return tl.minimum(tl.maximum(code, -LARGEST), LARGEST)


@triton.jit
def _write_vectors(
    source, codes, scales, slot, HEADS: tl.constexpr, HEADS_PADDED: tl.constexpr, HALF: tl.constexpr,
    LARGEST: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    head, element = tl.arange(0, HEADS_PADDED), tl.arange(0, HALF)
    there = head < HEADS
    both = there[:, None] & (element < HALF)[None, :]
    at = source + head[:, None] * (2 * HALF) + element[None, :]
    low, high = tl.load(at, mask=both, other=0.0), tl.load(at + HALF, mask=both, other=0.0)
    place = slot * HEADS + head
    target = codes + place[:, None] * (HALF if PACKED else 2 * HALF) + element[None, :]
    if LARGEST > 0:
        low = _quantised(low.to(tl.float32), scales, place * 2, there, LARGEST)
        high = _quantised(high.to(tl.float32), scales, place * 2 + 1, there, LARGEST)
    if PACKED:
        tl.store(target, ((low + 8).to(tl.int32) | ((high + 8).to(tl.int32) << 4)).to(tl.uint8), mask=both)
    else:
        tl.store(target, low.to(codes.dtype.element_ty), mask=both)
        tl.store(target + HALF, high.to(codes.dtype.element_ty), mask=both)


@triton.jit
def _write(
    new_keys, new_values, keys, values, key_scales, value_scales, slots, key_stride, value_stride,
    HEADS: tl.constexpr, HEADS_PADDED: tl.constexpr, HALF: tl.constexpr, LARGEST: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    if slot < 0:  # padding of a captured graph
        return
    _write_vectors(new_keys + token * key_stride, keys, key_scales, slot, HEADS, HEADS_PADDED, HALF, LARGEST, PACKED)
    _write_vectors(
        new_values + token * value_stride, values, value_scales, slot, HEADS, HEADS_PADDED, HALF, LARGEST, PACKED
    )


@triton.jit(do_not_specialize=["words"])
def _copy_rows(source, target, source_rows, target_rows, words, WORDS: tl.constexpr):
    pair, piece = tl.program_id(0), tl.program_id(1)
    at = piece * WORDS + tl.arange(0, WORDS)
    inside = at < words
    origin, place = tl.load(source_rows + pair).to(tl.int64), tl.load(target_rows + pair).to(tl.int64)
    tl.store(target + place * words + at, tl.load(source + origin * words + at, mask=inside), mask=inside)


def write(keys: torch.Tensor, values: torch.Tensor, cache: KvCache, slots: torch.Tensor) -> None:
    """Store the vectors of new tokens, `keys[token, head, element]`, at their slots (block x block_tokens + place).

    A slot of -1 is skipped. Integer formats are rounded to nearest, scaled by the largest magnitude of their group.
    """
    form, heads = cache.format, cache.kv_heads
    _write[(slots.shape[0],)](
        keys, values, cache.keys, cache.values, cache.key_scales, cache.value_scales, slots,
        keys.stride(0), values.stride(0), HEADS=heads, HEADS_PADDED=triton.next_power_of_2(heads),
        HALF=cache.head_dim // 2, LARGEST=form.largest_code, PACKED=form.packed, num_warps=4,
    )  # fmt: skip


def copy_blocks(source: KvCache, target: KvCache, sources: torch.Tensor, targets: torch.Tensor) -> None:
    """Copy whole blocks, pair by pair: copy-on-write and compaction within one cache, gathers between two."""
    for origin, place in zip(source.parts, target.parts, strict=True):
        from_words, to_words = _words(origin), _words(place)
        words = from_words.shape[1]
        grid = (sources.shape[0], triton.cdiv(words, _COPY_WORDS))
        _copy_rows[grid](from_words, to_words, sources, targets, words, WORDS=_COPY_WORDS)


def _words(blocks: torch.Tensor) -> torch.Tensor:
    """Blocks as rows of 32-bit words."""
    return blocks.reshape(blocks.shape[0], -1).view(torch.int32)


def swap_blockwise(source: torch.Tensor, target: torch.Tensor, pairs: list[tuple[int, int]]) -> None:
    """Copy blocks between GPU and pinned host memory one by one (vLLM V0's swap)."""
    for origin, place in pairs:
        target[place].copy_(source[origin], non_blocking=True)


def swap_out_batched(source: torch.Tensor, target: torch.Tensor, blocks: torch.Tensor, staging: torch.Tensor) -> None:
    """Gather blocks on the GPU, then move them to consecutive pinned host blocks in one copy."""
    torch.index_select(source, 0, blocks, out=staging)
    target[: blocks.shape[0]].copy_(staging, non_blocking=True)


def swap_in_batched(source: torch.Tensor, target: torch.Tensor, blocks: torch.Tensor, staging: torch.Tensor) -> None:
    """Move consecutive pinned host blocks to the GPU in one copy, then scatter them."""
    staging.copy_(source[: blocks.shape[0]], non_blocking=True)
    target.index_copy_(0, blocks, staging)
