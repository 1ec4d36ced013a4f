"""The operators of one forward pass on one GPU, from architecture, number formats and tensor parallelism."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sim.cost.chunk_work import fullest_lane, work_of
from sim.cost.formats import cache_operations, inserted, matmul_format
from sim.cost.fusion import Traffic, activations, norms, rotaries
from sim.cost.kernel_options import DEFAULT_KERNELS, KernelOptions
from sim.cost.roofline import Cost, Experts, Heads, Kernels, MatmulFormat, PrefillWork
from sim.cost.sampling import GREEDY, Sampler, cpu_sampling, gpu_sampling
from sim.cost.shape import Chunk, Span
from sim.specs.architecture import Attention, LayerGroup, ModelArchitecture
from sim.specs.attention import FullAttention, LatentAttention, LinearAttention
from sim.specs.hardware import Gpu
from sim.specs.layout import ONE_GPU, Layout
from sim.specs.matrices import WeightMatrix
from sim.specs.quantization import QuantScheme
from sim.units import ceil_div


class OpCost(NamedTuple):
    """An operator of a step: its name, how often it runs, and what one run costs."""

    name: str
    calls: int
    cost: Cost

    @property
    def seconds(self) -> float:
        """Time of all its runs."""
        return self.calls * self.cost.seconds


_QUERY_TILE, _LEAST_KEYS = 128, 256
"""Rows of queries that a block of an attention kernel takes, and keys worth a block of their own."""


class Choices(NamedTuple):
    """What an engine may do one way or the other in a forward pass."""

    sampler: Sampler = GREEDY
    kernels: KernelOptions = DEFAULT_KERNELS
    query_tokens: int = 1
    """New tokens of every decoding sequence: more than one where guesses are verified."""


PLAIN = Choices()
_SPARSE_HEADS = 64
"""Query heads that FlashMLA's sparse kernel works on at a time, however few a GPU has (from memory)."""


class _Gemm(NamedTuple):
    role: str
    calls: int
    k: int
    n: int
    form: MatmulFormat


class _AttentionLayers(NamedTuple):
    layers: int
    heads: Heads
    span: int  # index into `spans`; -1: the whole context
    expanded: Heads | None = None  # what decode works on, if not on the same


class _StateLayers(NamedTuple):
    layers: int
    state_bytes: float
    width_bytes: float


def spans_of(architecture: ModelArchitecture) -> tuple[Span, ...]:
    """The distinct limits on how far back layers see: windows, chunks, and the top-k of sparse attention."""
    found: dict[Span, None] = {}
    for group in architecture.layers:
        span = _span(group.attention)
        if span is not None:
            found[span] = None
    return tuple(found)


class ForwardPass:
    """Prices the operators of a step on one GPU of a copy of the model, part by part.

    The parts depend on different things: `rows` on the new tokens, `head` on the sampled ones, `decode` on one
    attention span and the context seen through it, `prefill` on the chunks.

    Data-parallel groups and pipeline stages divide the sequences of a step evenly into lanes (`Layout.lanes`), and the
    fullest lane is priced. A step of a pipeline is one round of all its micro-batches: every stage works on each of
    them in turn, so that the round lasts as long as one micro-batch takes through all stages. A prompt alone fills
    one lane, and the pipeline then stands idle but for one stage.
    """

    def __init__(
        self,
        architecture: ModelArchitecture,
        scheme: QuantScheme,
        gpu: Gpu,
        kernels: Kernels,
        layout: Layout = ONE_GPU,
        choices: Choices = PLAIN,
    ) -> None:
        self._kernels, self.layout, self.choices = kernels, layout, choices
        self._sampler, self._fusion = choices.sampler, choices.kernels.fusion
        self._tp = tp = layout.tp
        self._pcie, self._sms = float(gpu.pcie_bytes_per_s), int(gpu.sm_count)
        self._hidden, self._node = architecture.hidden_size, gpu.gpus_per_node
        self.spans = spans_of(architecture)
        self._gemms: list[_Gemm] = []
        self._elementwise: list[Traffic] = []
        self._plain = plain = QuantScheme.unquantised(architecture)
        for matrix in architecture.matrices():
            if matrix.is_gemm and not matrix.is_expert:
                kept = scheme.kept_layers(matrix.role, matrix.layers)
                for form_of, calls in ((scheme, matrix.layers - kept), (plain, kept)):
                    if calls:
                        self._gemms += self._products(matrix, calls, matmul_format(form_of, matrix.role, gpu))
                        self._elementwise += inserted(form_of, matrix, *matrix.per_gpu(tp), calls)
        self._head = [gemm for gemm in self._gemms if gemm.role == "lm_head"]
        self._gemms = [gemm for gemm in self._gemms if gemm.role != "lm_head"]
        self._vocab = ceil_div(architecture.vocab_size, tp)
        self._experts: list[tuple[int, Experts]] = []
        self._attention: list[_AttentionLayers] = []
        self._states: list[_StateLayers] = []
        self._reduces = 1 if tp > 1 else 0  # the vocabulary-parallel embedding
        self._norm_reduces = 0
        compute = matmul_format(scheme, "qkv", gpu).compute
        sixteen = compute if compute in ("bf16", "fp16") else gpu.default_dtype
        self._cache_operations = cache_operations(scheme, gpu)
        for group in architecture.layers:
            self._add_group(group, scheme, gpu, sixteen)

    def _products(self, matrix: WeightMatrix, calls: int, form: MatmulFormat) -> list[_Gemm]:
        """The products with some layers of one kind of matrix; not fused, queries, keys and values are three."""
        k, n = matrix.per_gpu(self._tp)
        if matrix.role != "qkv" or "qkv" in self._fusion or not matrix.kv_heads:
            return [_Gemm(matrix.role, calls, k, n, form)]
        kv = ceil_div(matrix.kv_columns, min(self._tp, matrix.kv_heads))
        return [
            _Gemm(matrix.role, calls, k, n - kv, form),
            _Gemm(matrix.role, 2 * calls, k, ceil_div(kv, 2), form),
        ]

    def _add_group(self, group: LayerGroup, scheme: QuantScheme, gpu: Gpu, sixteen: str) -> None:
        attention, mlp, count, tp = group.attention, group.mlp, group.count, self._tp
        row, fusion = self._hidden * 2, self._fusion
        self._elementwise += norms(fusion, group.norms * count, row)
        if attention is not None:
            self._add_attention(attention, count, scheme, sixteen)
            self._reduces += count if tp > 1 else 0
        if mlp is None:
            return
        self._reduces += count if tp > 1 else 0
        if mlp.kind == "dense":
            self._elementwise += activations(fusion, count, ceil_div(mlp.intermediate_size, tp), gated=mlp.gated)
            return
        kept = scheme.kept_layers("expert_gate_up", count)
        for form_of, calls in ((scheme, count - kept), (self._plain, kept)):
            experts = Experts(
                mlp.latent_size or self._hidden, ceil_div(mlp.intermediate_size, self.layout.moe_tp), mlp.num_experts,
                mlp.experts_per_token, mlp.gated, matmul_format(form_of, "expert_gate_up", gpu), self.layout.ep,
            )  # fmt: skip
            self._experts += [(calls, experts)] if calls else []
        routing = mlp.num_experts * 4.0 + 2.0 * mlp.experts_per_token * row
        self._elementwise.append(Traffic("routing", count, routing))
        if mlp.shared_intermediate_size:
            shared = ceil_div(mlp.shared_intermediate_size, tp)
            self._elementwise += activations(fusion, count, shared, gated=mlp.gated)

    def _add_attention(self, attention: Attention, count: int, scheme: QuantScheme, sixteen: str) -> None:
        tp, kv_bytes = self._tp, scheme.kv_bytes_per_element
        if isinstance(attention, LinearAttention):
            width = ceil_div(attention.conv_width + attention.value_width, tp) * 2.0
            self._states.append(_StateLayers(count, float(attention.state_bytes(tp)), 2 * width))
            return
        span = _span(attention)
        index = -1 if span is None else self.spans.index(span)
        if isinstance(attention, LatentAttention):
            self._add_latent(attention, count, kv_bytes, sixteen, index)
            return
        query_heads, kv_heads = ceil_div(attention.num_heads, tp), ceil_div(attention.num_kv_heads, tp)
        per_pair = 2.0 * query_heads * (attention.head_dim + attention.v_head_dim)
        per_token = attention.kv_bytes_per_token(kv_bytes, tp)
        elements = kv_heads * (attention.head_dim + attention.v_head_dim)
        heads_ = Heads(
            query_heads, kv_heads, attention.head_dim, attention.v_head_dim, per_token, per_pair, per_pair, sixteen,
            attention.window or 0, elements * self._cache_operations,
        )  # fmt: skip
        self._attention.append(_AttentionLayers(count, heads_, index))
        if attention.qk_norm == "per_layer":  # over all heads, so the sums of squares are reduced over the GPUs
            self._norm_reduces += 2 * count if tp > 1 else 0
        self._elementwise += rotaries(self._fusion, count, (query_heads + kv_heads) * attention.head_dim, per_token)

    def _add_latent(self, attention: LatentAttention, count: int, kv_bytes: float, sixteen: str, index: int) -> None:
        heads = ceil_div(attention.num_heads, self._tp)
        latent = attention.latent_dim * kv_bytes
        # Decode works on the latent vectors themselves; prefill expands them to full heads (DeepSeek-V2, section 2.1).
        decode = 2.0 * heads * (attention.latent_dim + attention.kv_lora_rank)
        prefill = 2.0 * heads * (attention.head_dim + attention.v_head_dim)
        if attention.indexer is not None:  # the sparse kernel works on latents too, in tiles of heads
            prefill = 2.0 * max(heads, _SPARSE_HEADS) * (attention.latent_dim + attention.kv_lora_rank)
        widening = attention.latent_dim * self._cache_operations
        shape = Heads(
            heads, 1, attention.latent_dim, attention.kv_lora_rank, latent, decode, prefill, sixteen, 0, widening
        )
        expanded = None
        if self.choices.kernels.latent_attention == "expanded":
            # Every cached token's keys and values are rebuilt, written and read for every new token.
            rebuilt = heads * (attention.qk_nope_head_dim + attention.v_head_dim)
            full = 2.0 * heads * (attention.head_dim + attention.v_head_dim)
            expanded = shape._replace(
                kv_bytes_per_token=latent + 4.0 * rebuilt,
                flops_per_pair=full + 2.0 * attention.kv_lora_rank * rebuilt,
            )
        self._attention.append(_AttentionLayers(count, shape, index, expanded))
        self._elementwise += rotaries(self._fusion, count, heads * attention.head_dim, latent)
        if attention.indexer is not None and not attention.indexer.shared:
            indexer = attention.indexer
            per_pair = 2.0 * indexer.num_heads * indexer.head_dim
            scorer = Heads(
                indexer.num_heads,
                1,
                indexer.head_dim,
                0,
                float(indexer.kv_bytes_per_token),
                per_pair,
                per_pair,
                sixteen,
            )
            self._attention.append(_AttentionLayers(count, scorer, -1))

    def main_formats(self) -> tuple[MatmulFormat | None, MatmulFormat | None, Heads | None]:
        """The formats of the largest matrices, of the experts, and of the commonest attention layers."""
        gemm = max(self._gemms, key=lambda g: g.calls * g.k * g.n, default=None)
        layers = max(self._attention, key=lambda a: a.layers, default=None)
        experts = self._experts[0][1].format if self._experts else None
        return None if gemm is None else gemm.form, experts, None if layers is None else layers.heads

    # ---- the parts
    def rows(self, tokens: int) -> list[OpCost]:
        """Everything that works on all new tokens of a lane, whoever they belong to.

        The experts see the tokens of all data-parallel groups, which are gathered before and scattered after them
        (vLLM's default, `allgather_reducescatter`; `all2all.py`, from memory).
        """
        kernels, layout = self._kernels, self.layout
        routed = tokens * layout.dp
        ops = [OpCost(g.role, g.calls, kernels.gemm(tokens, g.k, g.n, g.form)) for g in self._gemms]
        ops += [OpCost("experts", layers, kernels.experts(routed, experts)) for layers, experts in self._experts]
        for t in self._elementwise:
            ops.append(OpCost(t.name, t.calls, kernels.elementwise(tokens * t.token_bytes)))
        ops.append(OpCost("embed", 1, kernels.elementwise(tokens * self._hidden * 4.0)))
        row = self._hidden * 2.0
        if self._reduces:
            ops.append(OpCost("all-reduce", self._reduces, kernels.collective("all_reduce", tokens * row, layout.tp)))
        if self._norm_reduces:  # a float32 per token (vLLM, MiniMaxText01RMSNormTP)
            cost = kernels.collective("all_reduce", tokens * 4.0, layout.tp)
            ops.append(OpCost("query-key norm all-reduce", self._norm_reduces, cost))
        if layout.dp > 1:
            count = sum(layers for layers, _ in self._experts)
            for operation in ("all_gather", "reduce_scatter"):
                cost = kernels.collective(operation, routed * row, layout.stage_gpus)
                ops.append(OpCost(f"experts {operation.replace('_', '-')}", count, cost))
        if layout.pp > 1:  # hidden state and residual to the next stage
            ops.append(OpCost("stage hand-over", layout.pp - 1, self._hand_over(2 * tokens * row)))
        return ops

    def _hand_over(self, tensor_bytes: float) -> Cost:
        """To the same GPU of the next stage: in the node if two stages fit one, else over the network."""
        span = self.layout.stage_gpus * 2
        return self._kernels.collective("send_recv", tensor_bytes, 2 if span <= self._node else 2 * self._node)

    def head(self, sampled: int) -> list[OpCost]:
        """LM head and sampling of the sequences whose next token is drawn."""
        kernels = self._kernels
        ops = [OpCost(g.role, g.calls, kernels.gemm(sampled, g.k, g.n, g.form)) for g in self._head]
        vocab, tp, sampler = self._vocab, self._tp, self._sampler
        if sampler.on_cpu:
            found = cpu_sampling(sampler, sampled, vocab * tp, self._pcie)
        else:
            found = gpu_sampling(kernels, sampler, sampled, vocab, tp)
        ops += [OpCost(name, 1, cost) for name, cost in found]
        if self._tp > 1:
            gathered = sampled * self._vocab * 2.0
            ops.append(OpCost("logits gather", 1, kernels.collective("all_gather", gathered, self._tp)))
        return ops

    def decode(self, sequences: int, seen_tokens: int, span: int = -1) -> list[OpCost]:
        """Attention of the decoding sequences in the layers of one span, over the tokens they see through it.

        Span -1 is the whole context; layers with a state of fixed size belong there too.
        """
        kernels, lanes = self._kernels, self.layout.lanes
        if lanes > 1:
            sequences, seen_tokens = ceil_div(sequences, lanes), ceil_div(seen_tokens, lanes)
        ops = [
            OpCost("attention decode", a.layers, kernels.decode_attention(sequences, seen_tokens, self._decoding(a)))
            for a in self._attention
            if a.span == span
        ]
        if span < 0:
            ops += [
                OpCost("state update", s.layers, kernels.elementwise(sequences * (2 * s.state_bytes + s.width_bytes)))
                for s in self._states
            ]
        return ops

    def shared_prefix(self, sequences: int, stored_tokens: int, covered_tokens: int) -> list[OpCost]:
        """Attention of the decoding sequences to the beginnings that several of them share, in all layers.

        The queries of those who share a beginning are the rows of one product with its keys (RelayAttention;
        Hydragen): `stored_tokens` are read once, `covered_tokens` is the same for each who sees them.
        The parts are then rescaled and added, as FlashAttention adds its tiles. All beginnings go in one launch; few
        rows leave SMs idle, so their keys are dealt to several blocks, where `split_kv` is on.
        """
        kernels, lanes, ops = self._kernels, self.layout.lanes, []
        sequences, covered = ceil_div(sequences, lanes), ceil_div(covered_tokens, lanes)
        together = max(1, min(sequences, covered // stored_tokens))
        for a in self._attention:
            if a.span < 0:
                heads = self._decoding(a)
                tiles = ceil_div(sequences * heads.query_heads, _QUERY_TILE)
                parts = max(1, min(self._sms // tiles, covered // sequences // _LEAST_KEYS))
                parts = parts if self.choices.kernels.split_kv else 1
                work = PrefillWork(sequences * parts, covered, stored_tokens, together)
                price = kernels.prefill_attention(work, heads._replace(prefill_flops_per_pair=heads.flops_per_pair))
                merged = sequences * heads.query_heads * heads.value_dim * 2 * (parts + 2.0)  # parts in, one out
                ops.append(OpCost("attention shared prefix", a.layers, price))
                ops.append(OpCost("attention merge", a.layers, kernels.elementwise(merged)))
        return ops

    def _decoding(self, layers: _AttentionLayers) -> Heads:
        """The heads of decode: all query tokens of a sequence share one read of its cache, as grouped queries do."""
        heads, queries = layers.expanded or layers.heads, self.choices.query_tokens
        if queries == 1:
            return heads
        return heads._replace(
            query_heads=heads.query_heads * queries, flops_per_pair=heads.flops_per_pair * queries
        )  # fmt: skip

    def prefill(self, chunks: Sequence[Chunk]) -> list[OpCost]:
        """Attention of the prompt chunks in all layers."""
        return [OpCost(name, layers, cost) for name, layers, cost in self._prefill(chunks)]

    def prefill_seconds(self, chunks: Sequence[Chunk]) -> float:
        """The sum of the same, which is all that the hot path needs."""
        return sum([layers * cost[0] for _, layers, cost in self._prefill(chunks)])

    def _prefill(self, chunks: Sequence[Chunk]) -> list[tuple[str, int, Cost]]:
        price = self._kernels.prefill_attention
        if self.layout.lanes > 1:
            chunks = fullest_lane(chunks, self.layout.lanes)
        works = [work_of(chunks, span) for span in self.spans]
        works.append(whole := work_of(chunks, None))  # so that span -1 is the whole context
        found = [("attention prefill", a.layers, price(works[a.span], a.heads)) for a in self._attention]
        for s in self._states:
            moved = len(chunks) * 2 * s.state_bytes + whole.new_tokens * s.width_bytes
            found.append(("state update", s.layers, self._kernels.elementwise(moved)))
        return found


def _span(attention: Attention | None) -> Span | None:
    if isinstance(attention, FullAttention):
        if attention.window is not None:
            return Span(attention.window)
        if attention.chunk is not None:
            return Span(attention.chunk, chunked=True)
    if isinstance(attention, LatentAttention):
        limits = [attention.window, attention.indexer.topk if attention.indexer else None]
        shortest = min((limit for limit in limits if limit is not None), default=None)
        return None if shortest is None else Span(shortest)
    return None
