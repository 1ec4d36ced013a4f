"""The operators of one forward pass on one GPU, from architecture, number formats and tensor parallelism."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sim.cost.formats import cache_operations, inserted, matmul_format
from sim.cost.roofline import Cost, Experts, Heads, Kernels, MatmulFormat, PrefillWork
from sim.cost.shape import Chunk, Span
from sim.specs.architecture import Attention, LayerGroup, ModelArchitecture
from sim.specs.attention import FullAttention, LatentAttention, LinearAttention
from sim.specs.hardware import Gpu
from sim.specs.layout import ONE_GPU, Layout
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


class Sampler(NamedTuple):
    """What the choice among the likeliest tokens (top-k, top-p) adds to drawing from all of them, per step."""

    filter_s: float = 0.0
    filter_bytes_per_logit: float = 0.0


GREEDY = Sampler()
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
        sampler: Sampler = GREEDY,
    ) -> None:
        self._kernels, self.layout, self._sampler = kernels, layout, sampler
        self._tp = tp = layout.tp
        self._hidden, self._node = architecture.hidden_size, gpu.gpus_per_node
        self.spans = spans_of(architecture)
        self._gemms: list[_Gemm] = []
        self._elementwise: list[tuple[str, int, float]] = []  # name, calls, bytes per token
        self._plain = plain = QuantScheme.unquantised(architecture)
        for matrix in architecture.matrices():
            if matrix.is_gemm and not matrix.is_expert:
                k, n = matrix.per_gpu(tp)
                kept = scheme.kept_layers(matrix.role, matrix.layers)
                for form_of, calls in ((scheme, matrix.layers - kept), (plain, kept)):
                    if calls:
                        form = matmul_format(form_of, matrix.role, gpu)
                        self._gemms.append(_Gemm(matrix.role, calls, k, n, form))
                        self._elementwise += inserted(form_of, matrix, k, n, calls)
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

    def _add_group(self, group: LayerGroup, scheme: QuantScheme, gpu: Gpu, sixteen: str) -> None:
        attention, mlp, count, tp = group.attention, group.mlp, group.count, self._tp
        row = self._hidden * 2
        self._elementwise.append(("norm + residual", group.norms * count, 4.0 * row))
        if attention is not None:
            self._add_attention(attention, count, scheme, sixteen)
            self._reduces += count if tp > 1 else 0
        if mlp is None:
            return
        self._reduces += count if tp > 1 else 0
        width = ceil_div(mlp.intermediate_size, tp) * (3 if mlp.gated else 2) * 2
        if mlp.kind == "dense":
            self._elementwise.append(("activation", count, float(width)))
            return
        kept = scheme.kept_layers("expert_gate_up", count)
        for form_of, calls in ((scheme, count - kept), (self._plain, kept)):
            experts = Experts(
                mlp.latent_size or self._hidden, ceil_div(mlp.intermediate_size, self.layout.moe_tp), mlp.num_experts,
                mlp.experts_per_token, mlp.gated, matmul_format(form_of, "expert_gate_up", gpu), self.layout.ep,
            )  # fmt: skip
            self._experts += [(calls, experts)] if calls else []
        self._elementwise.append(("routing", count, mlp.num_experts * 4.0 + 2.0 * mlp.experts_per_token * row))
        if mlp.shared_intermediate_size:
            shared = ceil_div(mlp.shared_intermediate_size, tp) * (3 if mlp.gated else 2) * 2
            self._elementwise.append(("activation", count, float(shared)))

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
        rotary = 4.0 * (query_heads + kv_heads) * attention.head_dim + per_token
        self._elementwise.append(("rotary + cache write", count, rotary))

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
        self._attention.append(_AttentionLayers(count, shape, index))
        self._elementwise.append(("rotary + cache write", count, 4.0 * heads * attention.head_dim + latent))
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
        ops += [OpCost(name, calls, kernels.elementwise(tokens * size)) for name, calls, size in self._elementwise]
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
        # 16-bit logits in, 32-bit copy out and in again: greedy sampling; the gather over GPUs is of the same size.
        ops.append(OpCost("sampling", 1, kernels.elementwise(sampled * self._vocab * 10.0)))
        sampler = self._sampler
        if sampler.filter_s or sampler.filter_bytes_per_logit:  # after the gather: of the whole vocabulary
            cost = kernels.elementwise(sampled * self._vocab * self._tp * sampler.filter_bytes_per_logit)
            ops.append(OpCost("top-k/top-p filter", 1, cost._replace(seconds=cost.seconds + sampler.filter_s)))
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
            OpCost("attention decode", layers.layers, kernels.decode_attention(sequences, seen_tokens, layers.heads))
            for layers in self._attention
            if layers.span == span
        ]
        if span < 0:
            ops += [
                OpCost("state update", s.layers, kernels.elementwise(sequences * (2 * s.state_bytes + s.width_bytes)))
                for s in self._states
            ]
        return ops

    def prefill(self, chunks: Sequence[Chunk]) -> list[OpCost]:
        """Attention of the prompt chunks in all layers."""
        return [OpCost(name, layers, cost) for name, layers, cost in self._prefill(chunks)]

    def prefill_seconds(self, chunks: Sequence[Chunk]) -> float:
        """The sum of the same, which is all that the hot path needs."""
        return sum([layers * cost[0] for _, layers, cost in self._prefill(chunks)])

    def _prefill(self, chunks: Sequence[Chunk]) -> list[tuple[str, int, Cost]]:
        price = self._kernels.prefill_attention
        if self.layout.lanes > 1:
            chunks = _fullest_lane(chunks, self.layout.lanes)
        works = [_work(chunks, span) for span in self.spans]
        works.append(whole := _work(chunks, None))  # so that span -1 is the whole context
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


def _fullest_lane(chunks: Sequence[Chunk], lanes: int) -> list[Chunk]:
    """The chunks of the lane with most new tokens, when each goes to the emptiest lane, the longest first."""
    dealt: list[list[Chunk]] = [[] for _ in range(min(lanes, len(chunks)))]
    load = [0] * len(dealt)
    for chunk in sorted(chunks, key=lambda chunk: (-chunk[1], -chunk[0])):
        lane = load.index(min(load))
        dealt[lane].append(chunk)
        load[lane] += chunk[1]
    return dealt[load.index(max(load))]


def _work(chunks: Sequence[Chunk], span: Span | None) -> PrefillWork:
    new = pairs = context = longest = 0
    for cached, tokens in chunks:
        new += tokens
        longest = max(longest, tokens)
        if span is None:
            pairs += tokens * cached + (tokens * (tokens + 1) >> 1)
            context += cached + tokens
        else:
            pairs += span.pairs(cached, tokens)
            context += tokens + span.visible(cached)
    return PrefillWork(new, pairs, context, longest)
