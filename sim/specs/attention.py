"""The kinds of attention a layer can have: what they multiply by and what they keep in the KV cache.

Every kind answers the same questions (`matrices`, `kv_bytes_per_token`, `state_bytes`, `limit_tokens`, `bounded`); tell
them apart by `kind`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from sim.specs.matrices import WeightMatrix, norm
from sim.units import ceil_div

QkNorm = Literal["none", "per_head", "per_layer"]


@dataclass(frozen=True)
class Indexer:
    """The lightning indexer of sparse attention: it scores every cached token and keeps `topk` for the attention.

    DeepSeek-V3.2-Exp report, section 2.1. Its keys are cached in FP8 with one FP32 scale per 128 elements, whatever
    the format of the KV cache (vLLM, DeepseekV32IndexerCache). `shared` layers reuse the choice of an earlier layer.
    """

    topk: int
    num_heads: int
    head_dim: int
    shared: bool = False

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of indexer keys per cached token and layer."""
        return 0 if self.shared else self.head_dim + 4 * ceil_div(self.head_dim, 128)

    def matrices(self, hidden_size: int, query_rank: int) -> list[WeightMatrix]:
        """The indexer's query, key and head-weight projections; they are replicated under tensor parallelism."""
        if self.shared:
            return []
        return [
            WeightMatrix("index_q", query_rank, self.num_heads * self.head_dim),
            WeightMatrix("index_k", hidden_size, self.head_dim),
            WeightMatrix("index_weights", hidden_size, self.num_heads),
            norm(self.head_dim, bias=True),
        ]


@dataclass(frozen=True)
class FullAttention:
    """Softmax attention with multi-head, grouped-query or multi-query keys and values.

    `window`: a token sees at most this many predecessors. `chunk`: a token sees only its own chunk of this many
    tokens (Llama-4). `output_gate`: the query projection also yields a gate on the output (Qwen3-Next). `shared_kv`:
    values are the keys before normalisation, so they have no projection of their own (Gemma-4 global layers).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None = None
    chunk: int | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: QkNorm = "none"
    output_gate: bool = False
    sinks: bool = False
    shared_kv: bool = False
    kind: ClassVar[Literal["full"]] = "full"

    @property
    def limit_tokens(self) -> int | None:
        """The most tokens of one sequence that this layer's cache ever needs; None when it needs all."""
        return self.window or self.chunk

    def bounded(self, tokens: int) -> FullAttention:
        """The same with a cache that keeps this many tokens of a sequence, unless it keeps fewer by itself."""
        return self if (self.limit_tokens or tokens + 1) <= tokens else replace(self, window=tokens, chunk=None)

    def kv_bytes_per_token(self, bytes_per_element: float = 2, tp: int = 1) -> float:
        """Cache bytes per token and layer, on one of `tp` GPUs: keys and values of its KV heads.

        2 x kv_heads x head_dim x bytes (Ainslie et al. 2023, GQA, section 2); beyond kv_heads GPUs they are replicated.
        """
        return ceil_div(self.num_kv_heads, tp) * (self.head_dim + self.v_head_dim) * bytes_per_element

    def state_bytes(self, tp: int = 1) -> int:
        """Bytes per sequence and layer that do not grow with its length."""
        return 0

    def matrices(self, hidden_size: int) -> list[WeightMatrix]:
        """The fused query-key-value and the output projection, with their norms and biases."""
        q = self.num_heads * self.head_dim * (2 if self.output_gate else 1)
        kv = self.num_kv_heads * (self.head_dim + (0 if self.shared_kv else self.v_head_dim))
        out = self.num_heads * self.v_head_dim
        found = [
            WeightMatrix("qkv", hidden_size, q + kv, split="column", kv_columns=kv, kv_heads=self.num_kv_heads),
            WeightMatrix("o", out, hidden_size, split="row"),
        ]
        if self.qkv_bias:
            found.append(WeightMatrix("bias", 1, q + kv, split="column", kv_columns=kv, kv_heads=self.num_kv_heads))
        if self.o_bias:
            found.append(WeightMatrix("bias", 1, hidden_size))
        if self.qk_norm == "per_head":
            found += [norm(self.head_dim), norm(self.head_dim)]
        elif self.qk_norm == "per_layer":
            found += [norm(self.num_heads * self.head_dim), norm(self.num_kv_heads * self.head_dim)]
        if self.sinks:
            found.append(WeightMatrix("sink", 1, self.num_heads, split="column"))
        return found


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (MLA): keys and values of all heads are rebuilt from one cached latent vector.

    DeepSeek-V2 (2024), section 2.1. Decode multiplies the query by the key half of `kv_b` and the output by its value
    half instead of rebuilding keys and values (the absorbed form), which costs the same matrix once per query token.
    """

    num_heads: int
    kv_lora_rank: int
    q_lora_rank: int | None
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    qkv_bias: bool = False
    indexer: Indexer | None = None
    window: int | None = None
    kind: ClassVar[Literal["mla"]] = "mla"
    chunk: ClassVar[None] = None

    @property
    def limit_tokens(self) -> int | None:
        """The most tokens of one sequence that this layer's cache ever needs; None when it needs all."""
        return self.window

    def bounded(self, tokens: int) -> LatentAttention:
        """The same with a cache that keeps this many tokens of a sequence."""
        return replace(self, window=min(tokens, self.window or tokens))

    @property
    def head_dim(self) -> int:
        """Width of a query or key head: the part without and the part with rotary position."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Elements cached per token and layer: the latent vector and the one shared rotary key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    def kv_bytes_per_token(self, bytes_per_element: float = 2, tp: int = 1) -> float:
        """Cache bytes per token and layer. Every tensor-parallel GPU holds all of it: there is no head to divide by.

        (kv_lora_rank + qk_rope_head_dim) x bytes (DeepSeek-V2, table 1), plus the indexer's keys.
        """
        return self.latent_dim * bytes_per_element + (self.indexer.kv_bytes_per_token if self.indexer else 0)

    def state_bytes(self, tp: int = 1) -> int:
        """Bytes per sequence and layer that do not grow with its length."""
        return 0

    def matrices(self, hidden_size: int) -> list[WeightMatrix]:
        """Down- and up-projections of queries (when they have a rank) and of keys with values, and the output."""
        heads = self.num_heads
        found = [
            WeightMatrix("kv_a", hidden_size, self.latent_dim),
            norm(self.kv_lora_rank),
            WeightMatrix("kv_b", self.kv_lora_rank, heads * (self.qk_nope_head_dim + self.v_head_dim), split="column"),
            WeightMatrix("o", heads * self.v_head_dim, hidden_size, split="row"),
        ]
        if self.q_lora_rank is None:
            found.append(WeightMatrix("q", hidden_size, heads * self.head_dim, split="column"))
        else:
            found += [
                WeightMatrix("q_a", hidden_size, self.q_lora_rank),
                norm(self.q_lora_rank),
                WeightMatrix("q_b", self.q_lora_rank, heads * self.head_dim, split="column"),
            ]
        if self.indexer:
            found += self.indexer.matrices(hidden_size, self.q_lora_rank or hidden_size)
        return found


@dataclass(frozen=True)
class LinearAttention:
    """Attention that keeps a state of fixed size per sequence instead of a growing cache: Gated DeltaNet and Mamba-2.

    Gated DeltaNet (Yang et al. 2024): `num_key_heads` x `key_dim` keys, `num_value_heads` x `value_dim` values.
    Mamba-2 (Dao and Gu 2024, section 7): keys are the groups' B and C of the state size, values are its heads.
    """

    variant: Literal["gated_delta", "mamba2"]
    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int = 4
    conv_bias: bool = False
    state_bytes_per_element: int = 4
    kind: ClassVar[Literal["linear"]] = "linear"
    window: ClassVar[None] = None
    chunk: ClassVar[None] = None
    limit_tokens: ClassVar[None] = None

    def bounded(self, tokens: int) -> LinearAttention:
        """The same: its state does not grow anyway."""
        return self

    @property
    def num_heads(self) -> int:
        """Heads of the state."""
        return self.num_value_heads

    @property
    def value_width(self) -> int:
        """Width of the values, and of the gate on the output."""
        return self.num_value_heads * self.value_dim

    @property
    def conv_width(self) -> int:
        """Channels of the short convolution: queries, keys and values (C, B and x)."""
        return 2 * self.num_key_heads * self.key_dim + self.value_width

    def kv_bytes_per_token(self, bytes_per_element: float = 2, tp: int = 1) -> float:
        """Nothing is cached per token."""
        return 0

    def state_bytes(self, tp: int = 1) -> int:
        """Bytes per sequence and layer on one of `tp` GPUs: the heads' states, and the last inputs of the convolution.

        heads x key_dim x value_dim (Mamba-2: heads x state size x head dim), as in vLLM's MambaStateShapeCalculator.
        """
        state = ceil_div(self.num_value_heads, tp) * self.key_dim * self.value_dim * self.state_bytes_per_element
        return state + (self.conv_kernel - 1) * ceil_div(self.conv_width, tp) * 2

    def matrices(self, hidden_size: int) -> list[WeightMatrix]:
        """Input projections, convolution, per-head constants, gated norm and output projection."""
        # Per head: DeltaNet projects decay and update gates and keeps A and dt_bias; Mamba-2 projects dt, keeps D too.
        gates, constants = (2, 2) if self.variant == "gated_delta" else (1, 3)
        heads = self.num_value_heads
        found = [
            WeightMatrix("linear_in", hidden_size, self.conv_width + self.value_width, split="column"),
            WeightMatrix("linear_gates", hidden_size, gates * heads, split="column"),
            WeightMatrix("linear_conv", self.conv_kernel, self.conv_width, split="column"),
            WeightMatrix("linear_out", self.value_width, hidden_size, split="row"),
            WeightMatrix("state", constants, heads, split="column"),
            norm(self.value_dim if self.variant == "gated_delta" else self.value_width),
        ]
        if self.conv_bias:
            found.append(WeightMatrix("bias", 1, self.conv_width, split="column"))
        return found


Attention = FullAttention | LatentAttention | LinearAttention
