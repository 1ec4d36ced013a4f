"""A Llama-like decoder on random weights over a paged cache: one forward pass of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sim.validation.engine.dims import ModelDims
from sim.validation.kernels import attention, elementwise, paging
from sim.validation.kernels.kv_cache import FORMATS, KvCache, allocate


@dataclass(frozen=True)
class Layer:
    """Weights of one layer and its part of the cache."""

    qkv: torch.Tensor
    out: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    attention_norm: torch.Tensor
    mlp_norm: torch.Tensor
    cache: KvCache


@dataclass(frozen=True)
class Batch:
    """A step's tokens on the device: decodes first, then chunks. `last` are the tokens that are sampled after."""

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    last: torch.Tensor
    num_decodes: int
    decodes: attention.Units | None
    chunks: attention.Units | None


class Decoder:
    """Random weights of a model's sizes, scaled so that activations stay of order one."""

    def __init__(
        self, dims: ModelDims, *, num_blocks: int, block_tokens: int, max_positions: int,
        device: str = "cuda", dtype: torch.dtype = torch.bfloat16, seed: int = 0,
    ) -> None:  # fmt: skip
        self.dims, self.device, self.dtype = dims, torch.device(device), dtype
        torch.manual_seed(seed)
        name = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
        d, kv = dims, FORMATS[name]
        self.layers = [
            Layer(
                self._weight(d.qkv_columns, d.hidden), self._weight(d.hidden, d.heads * d.head_dim),
                self._weight(2 * d.intermediate, d.hidden), self._weight(d.hidden, d.intermediate),
                self._ones(d.hidden), self._ones(d.hidden),
                allocate(kv, num_blocks, block_tokens, d.kv_heads, d.head_dim, self.device),
            )
            for _ in range(d.layers)
        ]  # fmt: skip
        self.embedding = torch.randn((d.vocabulary, d.hidden), device=self.device, dtype=dtype)
        self.head = self._weight(d.vocabulary, d.hidden)
        self.norm = self._ones(d.hidden)
        self.angles = elementwise.rope_angles(max_positions, d.head_dim, d.rope_theta, self.device)

    def _weight(self, rows: int, columns: int) -> torch.Tensor:
        return torch.randn((rows, columns), device=self.device, dtype=self.dtype) * columns**-0.5

    def _ones(self, size: int) -> torch.Tensor:
        return torch.ones(size, device=self.device, dtype=self.dtype)

    def forward(self, batch: Batch) -> torch.Tensor:
        """The likeliest next token after each of `batch.last`; keys and values of all tokens are cached."""
        residual = self.embedding[batch.tokens]
        x = torch.empty_like(residual)
        elementwise.rms_norm(residual, self.layers[0].attention_norm, x)
        for i, layer in enumerate(self.layers):
            x = self._layer(layer, x, residual, batch)
            after = self.layers[i + 1].attention_norm if i + 1 < len(self.layers) else self.norm
            normed = torch.empty_like(x)
            elementwise.add_rms_norm(x, residual, after, normed)
            x = normed
        logits = x[batch.last] @ self.head.t()
        out = torch.empty(logits.shape[0], dtype=torch.long, device=self.device)
        elementwise.sample_greedy(logits, out)
        return out

    def _layer(self, layer: Layer, x: torch.Tensor, residual: torch.Tensor, batch: Batch) -> torch.Tensor:
        d = self.dims
        mixed = self._attend(layer, x @ layer.qkv.t(), batch) @ layer.out.t()
        normed = torch.empty_like(mixed)
        elementwise.add_rms_norm(mixed, residual, layer.mlp_norm, normed)
        gated = torch.empty((x.shape[0], d.intermediate), device=self.device, dtype=self.dtype)
        elementwise.silu_mul(normed @ layer.gate_up.t(), gated)
        return gated @ layer.down.t()

    def _attend(self, layer: Layer, qkv: torch.Tensor, batch: Batch) -> torch.Tensor:
        d, n = self.dims, batch.num_decodes
        elementwise.rope(qkv, d.heads + d.kv_heads, self.angles, batch.positions)
        heads = qkv.view(qkv.shape[0], -1, d.head_dim)
        query, keys, values = heads.split([d.heads, d.kv_heads, d.kv_heads], dim=1)
        paging.write(keys, values, layer.cache, batch.slots)
        out = torch.empty((qkv.shape[0], d.heads, d.head_dim), device=self.device, dtype=self.dtype)
        if batch.decodes is not None:
            attention.decode(query[:n], layer.cache, batch.decodes, out[:n])
        if batch.chunks is not None:
            attention.prefill(query[n:], layer.cache, batch.chunks, out[n:])
        return out.view(qkv.shape[0], -1)
