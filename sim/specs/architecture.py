"""Model architectures: layers, weights and KV cache as integers, for dense and mixture-of-experts transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from sim.specs.attention import Attention, FullAttention, Indexer, LatentAttention, LinearAttention
from sim.specs.layout import ONE_GPU, Layout
from sim.specs.matrices import WeightFormat, WeightMatrix, norm, stored_bytes
from sim.specs.vision import VisionTower
from sim.units import ceil_div

__all__ = [
    "Attention",
    "FullAttention",
    "Indexer",
    "LatentAttention",
    "LayerGroup",
    "LinearAttention",
    "Mlp",
    "ModelArchitecture",
    "WeightFormat",
    "WeightMatrix",
]

DTYPE_BYTES: Mapping[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Mlp:
    """The feed-forward part of a layer: dense, or a mixture of experts with optional shared experts.

    `intermediate_size` is the width of the dense MLP or of one expert. Gated MLPs (SwiGLU, GeGLU) have three
    matrices, others two (Shazeer 2020, GLU Variants Improve Transformer). `latent_size`: experts work in a narrower
    space, entered and left by two projections (Nemotron-3).
    """

    kind: Literal["dense", "moe"]
    intermediate_size: int
    gated: bool = True
    bias: bool = False
    num_experts: int = 0
    experts_per_token: int = 0
    shared_intermediate_size: int = 0
    shared_gate: bool = False
    router_bias: bool = False
    latent_size: int | None = None

    def matrices(self, hidden_size: int) -> list[WeightMatrix]:
        """The matrices of one layer; experts carry their number and how many of them a token uses."""
        if self.kind == "dense":
            return self._pair("", hidden_size, self.intermediate_size)
        width = self.latent_size or hidden_size
        experts = self._pair("expert_", width, self.intermediate_size)
        found = [WeightMatrix("router", hidden_size, self.num_experts)]
        found += [replace(m, experts=self.num_experts, experts_per_token=self.experts_per_token) for m in experts]
        if self.router_bias:
            found.append(WeightMatrix("bias", 1, self.num_experts))
        if self.latent_size:
            found.append(WeightMatrix("latent_in", hidden_size, self.latent_size))
            found.append(WeightMatrix("latent_out", self.latent_size, hidden_size))
        if self.shared_intermediate_size:
            found += self._pair("shared_", hidden_size, self.shared_intermediate_size)
        if self.shared_gate:
            found.append(WeightMatrix("shared_gate", hidden_size, 1))
        return found

    def _pair(self, prefix: str, hidden_size: int, width: int) -> list[WeightMatrix]:
        up = width * (2 if self.gated else 1)
        found = [
            WeightMatrix(f"{prefix}gate_up", hidden_size, up, split="column"),
            WeightMatrix(f"{prefix}down", width, hidden_size, split="row"),
        ]
        if self.bias:
            found += [WeightMatrix("bias", 1, up, split="column"), WeightMatrix("bias", 1, hidden_size)]
        return found


@dataclass(frozen=True)
class LayerGroup:
    """`count` identical layers, wherever they stand in the model; costs are computed once per group.

    Hybrid models have layers with only a mixer (`mlp` is None) or only an MLP (`attention` is None).
    """

    count: int
    attention: Attention | None
    mlp: Mlp | None
    norms: int = 2

    def matrices(self, hidden_size: int, *, norm_bias: bool = False) -> list[WeightMatrix]:
        """Every matrix of these layers, with `layers` set to their number."""
        found = [] if self.attention is None else self.attention.matrices(hidden_size)
        found += [] if self.mlp is None else self.mlp.matrices(hidden_size)
        found += [norm(hidden_size, bias=norm_bias)] * self.norms
        return [replace(matrix, layers=self.count) for matrix in found]


@dataclass(frozen=True)
class _DtypeFormat:
    bytes_per_parameter: int

    def weight_bytes_per_parameter(self, role: str) -> float:
        return self.bytes_per_parameter


@dataclass(frozen=True)
class ModelArchitecture:
    """A language model as far as serving is concerned: its layers, its vocabulary and how long a context may be.

    `extra` holds what few families have outside their layers: position tables, an embedding norm, an LM head bias.
    `quantization` is the checkpoint's own `quantization_config`, or None. `mtp_layers` (multi-token prediction) are
    not part of the weights here: engines load them only for speculative decoding.
    """

    name: str
    hidden_size: int
    vocab_size: int
    layers: tuple[LayerGroup, ...]
    tie_word_embeddings: bool = False
    max_model_len: int = 2048
    dtype: str = "bfloat16"
    norm_bias: bool = False
    extra: tuple[WeightMatrix, ...] = ()
    mtp_layers: int = 0
    family: str = ""
    quantization: Mapping[str, Any] | None = field(default=None, hash=False)
    vision: VisionTower | None = None
    filters_samples: bool = False
    """Requests that do not say how to sample get top-k or top-p, as the checkpoint's generation_config.json has it."""

    @property
    def num_layers(self) -> int:
        """Layers of all groups together."""
        return sum(group.count for group in self.layers)

    @cached_property
    def _layer_matrices(self) -> tuple[WeightMatrix, ...]:
        return tuple(
            matrix for group in self.layers for matrix in group.matrices(self.hidden_size, norm_bias=self.norm_bias)
        )

    @cached_property
    def _outer_matrices(self) -> tuple[WeightMatrix, ...]:
        hidden, vocab = self.hidden_size, self.vocab_size
        return (
            WeightMatrix("embed", vocab, hidden, split="row"),
            WeightMatrix("lm_head", hidden, vocab, split="column", stored=not self.tie_word_embeddings),
            norm(hidden, bias=self.norm_bias),
            *self.extra,
        )

    def matrices(self) -> tuple[WeightMatrix, ...]:
        """Every weight of the model exactly once: the layers' matrices, group by group, then embedding and LM head.

        The GEMMs of a step are those with `is_gemm`, `layers` times each; a tied LM head is one, though not stored.
        """
        return self._layer_matrices + self._outer_matrices

    @cached_property
    def num_parameters(self) -> int:
        """Parameters stored, a vision tower's too; tied embeddings count once, multi-token-prediction layers never."""
        return sum(matrix.parameters for matrix in self.matrices()) + self._vision_parameters

    @cached_property
    def active_parameters(self) -> int:
        """Parameters one token passes through: of routed experts only its own (Mixtral's "13B active")."""
        return sum(matrix.active_parameters for matrix in self.matrices()) + self._vision_parameters

    @property
    def _vision_parameters(self) -> int:
        return self.vision.parameters if self.vision is not None else 0

    @property
    def dtype_bytes(self) -> int:
        """Bytes of an unquantised weight or activation element."""
        return DTYPE_BYTES[self.dtype]

    @property
    def is_moe(self) -> bool:
        """Whether any layer routes tokens to experts."""
        return any(group.mlp is not None and group.mlp.kind == "moe" for group in self.layers)

    def weight_bytes(self, scheme: WeightFormat | None = None, layout: Layout = ONE_GPU) -> int:
        """Weight bytes on the fullest GPU; without a scheme, at the checkpoint's unquantised dtype.

        Column- and row-parallel matrices and the vocabulary are divided by `tp`, norms and routers are replicated
        (Megatron-LM, Shoeybi et al. 2019, section 3); KV projections only down to one head. Every GPU holds
        num_experts / `ep` experts. With `pp` > 1 the fullest stage has ceil(layers / pp) average layers and the larger
        of embedding and LM head, which stand in the first and the last stage.
        """
        form = scheme or _DtypeFormat(self.dtype_bytes)
        inner = self._of_stage(stored_bytes(self._layer_matrices, form, layout), layout.pp)
        inner += self._vision_parameters * self.dtype_bytes // layout.tp  # in 16 bit, in the first stage
        if layout.pp == 1:
            return inner + stored_bytes(self._outer_matrices, form, layout)
        head = [replace(m, stored=True) for m in self._outer_matrices if m.role not in ("embed", "position")]
        first = [m for m in self._outer_matrices if m.role in ("embed", "position")]
        return inner + max(stored_bytes(first, form, layout), stored_bytes(head, form, layout))

    def _of_stage(self, whole: float, pp: int) -> int:
        return math.ceil(whole * ceil_div(self.num_layers, pp) / self.num_layers) if pp > 1 else math.ceil(whole)

    # KV cache

    @cached_property
    def windows(self) -> tuple[int, ...]:
        """The distinct sliding-window and chunk sizes in tokens, smallest first."""
        limits = {group.attention.limit_tokens for group in self.layers if group.attention}
        return tuple(sorted(limit for limit in limits if limit is not None))

    @cached_property
    def _growing(self) -> tuple[LayerGroup, ...]:
        """The caching layers that keep the most of a sequence: all of it, or else the longest window."""
        return tuple(g for g in self._caching if g.attention and _kept_tokens(g.attention) == self.kv_limit_tokens)

    @cached_property
    def _caching(self) -> tuple[LayerGroup, ...]:
        return tuple(g for g in self.layers if g.attention and g.attention.kv_bytes_per_token())

    @cached_property
    def kv_limit_tokens(self) -> int | None:
        """The most tokens of a sequence that any layer keeps; None where one keeps all, or none keeps any."""
        limits = [_kept_tokens(g.attention) for g in self._caching if g.attention]
        known = [limit for limit in limits if limit is not None]
        return max(known) if known and len(known) == len(limits) else None

    def bounded(self, tokens: int) -> ModelArchitecture:
        """The same model served with a cache that keeps this many tokens of every sequence.

        StreamingLLM (Xiao et al., ICLR 2024): the first few and the last. A token sees so many, wherever they lie, so
        memory and time are those of a sliding window of this length.
        """
        layers = tuple(replace(g, attention=g.attention and g.attention.bounded(tokens)) for g in self.layers)
        return replace(self, layers=layers)

    def kv_bytes_per_token(self, bytes_per_element: float = 2, *, tp: int = 1, pp: int = 1) -> int:
        """KV bytes that one more token of context adds on one GPU (of one: the whole model).

        Grouped-query layers are divided by min(tp, kv_heads), latent attention is replicated. Layers that see a
        window only are in `kv_bytes_per_sequence_fixed`, unless all layers are windowed (Mistral-7B-v0.1): then the
        cache does grow by this much up to the longest window, `kv_limit_tokens`. Chunked layers (Llama 4) grow: vLLM
        keeps all their tokens, its hybrid cache manager being off for them
        (VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE; from memory).
        """
        total = sum(
            group.count * group.attention.kv_bytes_per_token(bytes_per_element, tp)
            for group in self._growing
            if group.attention
        )
        return self._of_stage(total, pp)

    def kv_bytes_per_sequence_fixed(self, bytes_per_element: float = 2, *, tp: int = 1, pp: int = 1) -> int:
        """The most KV bytes a sequence needs on one GPU beside those that grow with its whole context.

        Sliding-window layers (window x bytes per token) and the states of linear attention.
        """
        total = 0.0
        for group in self.layers:
            if group.attention is None:
                continue
            total += group.count * group.attention.state_bytes(tp)
            if group not in self._growing:
                per_token = group.attention.kv_bytes_per_token(bytes_per_element, tp)
                total += group.count * (group.attention.limit_tokens or 0) * per_token
        return self._of_stage(total, pp)

    def kv_bytes(self, context_tokens: int, bytes_per_element: float = 2, *, tp: int = 1, pp: int = 1) -> int:
        """KV bytes of one sequence with this much context on one GPU, every window taken into account."""
        total = 0.0
        for group in self.layers:
            if group.attention is not None:
                kept = min(context_tokens, _kept_tokens(group.attention) or context_tokens)
                per_token = group.attention.kv_bytes_per_token(bytes_per_element, tp)
                total += group.count * (kept * per_token + group.attention.state_bytes(tp))
        return self._of_stage(total, pp)


def _kept_tokens(attention: Attention) -> int | None:
    """Cached tokens beyond which an engine drops the oldest; None: it keeps all."""
    return None if isinstance(attention, FullAttention) and attention.chunk else attention.limit_tokens
