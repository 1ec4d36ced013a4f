"""A paged KV cache in GPU memory, in the number formats that serving engines store keys and values in."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class KvFormat:
    """How a key or value vector of one head is stored.

    `packed`: two 4-bit codes per byte, the first half of the head in the low nibbles. `scaled`: 16-bit scales, one per
    token, head and half of the head (a group of head_dim / 2 elements).
    """

    name: str
    dtype: torch.dtype
    packed: bool = False
    scaled: bool = False

    @property
    def largest_code(self) -> float:
        """The largest magnitude that an integer code stands for; 0 for formats without scales."""
        return 0.0 if not self.scaled else 7.0 if self.packed else 127.0

    def bytes_per_element(self, head_dim: int) -> float:
        """Bytes read per element, scales included."""
        scales = 2 * 2 / head_dim if self.scaled else 0.0
        return self.dtype.itemsize * (0.5 if self.packed else 1.0) + scales


FORMATS = {
    form.name: form
    for form in (
        KvFormat("bf16", torch.bfloat16),
        KvFormat("fp16", torch.float16),
        KvFormat("fp32", torch.float32),
        KvFormat("fp8", torch.float8_e4m3fn),
        KvFormat("int8", torch.int8, scaled=True),
        KvFormat("int4", torch.uint8, packed=True, scaled=True),
    )
}


@dataclass(frozen=True)
class KvCache:
    """Keys and values of one layer: `keys[block, token in block, head, element]`, scales beside them."""

    format: KvFormat
    keys: torch.Tensor
    values: torch.Tensor
    key_scales: torch.Tensor
    value_scales: torch.Tensor
    head_dim: int

    @property
    def block_tokens(self) -> int:
        """Tokens per block."""
        return int(self.keys.shape[1])

    @property
    def num_blocks(self) -> int:
        """Blocks in the pool."""
        return int(self.keys.shape[0])

    @property
    def kv_heads(self) -> int:
        """Key-value heads."""
        return int(self.keys.shape[2])

    @property
    def parts(self) -> tuple[torch.Tensor, ...]:
        """The tensors a block is spread over, first index the block."""
        scales = (self.key_scales, self.value_scales) if self.format.scaled else ()
        return (self.keys, self.values, *scales)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, scales included."""
        return sum(part[0].numel() * part.element_size() for part in self.parts)


def allocate(
    form: KvFormat, num_blocks: int, block_tokens: int, kv_heads: int, head_dim: int, device: str | torch.device
) -> KvCache:
    """An empty cache; contents are whatever the memory held (as in an engine), scales are zero."""
    shape = (num_blocks, block_tokens, kv_heads)
    elements = head_dim // 2 if form.packed else head_dim
    keys, values = (torch.empty((*shape, elements), dtype=form.dtype, device=device) for _ in range(2))
    groups = 2 if form.scaled else 0
    key_scales, value_scales = (torch.zeros((*shape, groups), dtype=torch.float16, device=device) for _ in range(2))
    return KvCache(form, keys, values, key_scales, value_scales, head_dim)
