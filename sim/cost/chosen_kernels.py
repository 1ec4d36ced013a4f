"""Kernels other than those that were measured: attention without its techniques, and another depth of pipelining."""

from __future__ import annotations

from sim.cost.attention_io import SCORE_BYTES
from sim.cost.collectives import Operation
from sim.cost.kernel_options import KernelOptions
from sim.cost.pipelining import LOAD_LATENCY_CYCLES, pipelined_seconds
from sim.cost.roofline import Cost, Experts, Heads, Kernels, MatmulFormat, PrefillWork, roofline
from sim.specs.efficiency import OpEfficiency
from sim.specs.hardware import Gpu
from sim.units import ceil_div

TILE = 128
"""Rows and columns of a matrix product that one block computes at a time; its depth is half of it."""


class ChosenKernels:
    """The prices of `kernels`, with the terms that a technique removes put back where it is switched off.

    `standard` attention: two batched products and a softmax that meet in memory, over the whole rectangle of queries
    and keys (the causal mask saves nothing), instead of one kernel. Without `split_kv` a block reads the cache of one
    query head by itself: with fewer blocks than SMs each still gets only an SM's share of the bandwidth, which is what
    FlashAttention 2.0.9 did in the Flash-Decoding blog's measurements.
    With `pipeline_stages` products and attention wait for their loads as `pipelined_seconds` says.
    """

    def __init__(self, kernels: Kernels, gpu: Gpu, options: KernelOptions) -> None:
        self.kernels, self._gpu, self._options = kernels, gpu, options
        self._bandwidth = float(gpu.memory_bandwidth_bytes_per_s)
        self._sms = int(gpu.sm_count)
        self._latency_s = LOAD_LATENCY_CYCLES / float(gpu.boost_clock_hz)

    @property
    def trust(self) -> str:
        """What was measured is not what runs."""
        return "extrapolated" if self.kernels.trust in ("validated", "calibrated") else self.kernels.trust

    def gemm(self, m: int, k: int, n: int, form: MatmulFormat) -> Cost:
        """Y[m,n] = X[m,k] W[k,n]."""
        cost = self.kernels.gemm(m, k, n, form)
        tiles = ceil_div(m, TILE) * ceil_div(n, TILE) * ceil_div(k, TILE // 2)
        return self._pipelined(cost, form.compute, self._gpu.efficiency.gemm, tiles)

    def experts(self, tokens: int, experts: Experts) -> Cost:
        """As they are."""
        return self.kernels.experts(tokens, experts)

    def decode_attention(self, sequences: int, context_tokens: int, heads: Heads) -> Cost:
        """One new token of each sequence against its cache."""
        if self._options.attention == "standard":
            seen = context_tokens + sequences
            return self._standard(sequences, float(seen), float(seen), heads)
        if not self._options.split_kv:
            return self._unsplit(sequences, context_tokens, heads)
        cost = self.kernels.decode_attention(sequences, context_tokens, heads)
        tiles = heads.kv_heads * ceil_div(context_tokens + sequences, TILE // 2)
        return self._pipelined(cost, heads.compute, self._gpu.efficiency.attention_decode, tiles)

    def prefill_attention(self, work: PrefillWork, heads: Heads) -> Cost:
        """Prompt chunks against themselves and what is cached before them."""
        if self._options.attention == "standard":
            masked = work.new_tokens * (work.longest - 1) / 2  # above the diagonal; chunks are taken as equal ones
            return self._standard(work.new_tokens, work.pairs + masked, float(work.context_tokens), heads)
        cost = self.kernels.prefill_attention(work, heads)
        tiles = heads.query_heads * work.pairs // (TILE * TILE // 2)
        return self._pipelined(cost, heads.compute, self._gpu.efficiency.attention_prefill, tiles)

    def elementwise(self, bytes_moved: float) -> Cost:
        """As they are."""
        return self.kernels.elementwise(bytes_moved)

    def collective(self, operation: Operation, tensor_bytes: float, num_gpus: int) -> Cost:
        """As they are."""
        return self.kernels.collective(operation, tensor_bytes, num_gpus)

    def _standard(self, rows: int, pairs: float, keys: float, heads: Heads) -> Cost:
        """Scores, softmax, weighted sum: three kernels. `keys` are read once, the scores moved four times."""
        scores = pairs * heads.query_heads * SCORE_BYTES
        per_pair = heads.prefill_flops_per_pair if pairs > keys else heads.flops_per_pair
        widths = heads.query_dim + heads.value_dim
        parts = []
        for width in (heads.query_dim, heads.value_dim):
            share = width / widths if widths else 0.0
            moved = rows * heads.query_heads * width * 2 + keys * heads.kv_bytes_per_token * share + scores
            peak = self._gpu.peak_flops(heads.compute)
            parts.append(
                roofline(pairs * per_pair * share, moved, peak, self._bandwidth, self._gpu.efficiency.gemm)
            )  # fmt: skip
        parts.append(self.kernels.elementwise(2 * scores))
        slowest = max(parts, key=lambda part: part.seconds)
        return Cost(
            sum(part.seconds for part in parts), sum(part.flops for part in parts),
            sum(part.bytes for part in parts), slowest.bound,
        )  # fmt: skip

    def _unsplit(self, sequences: int, context_tokens: int, heads: Heads) -> Cost:
        seen = context_tokens + sequences
        blocks = sequences * heads.query_heads
        waves = ceil_div(blocks, self._sms)
        block_bytes = seen / sequences * heads.kv_bytes_per_token / heads.kv_heads
        efficiency = self._gpu.efficiency.attention_decode
        seconds = efficiency.launch_floor_s + waves * block_bytes * self._sms / self._bandwidth
        cost = self.kernels.decode_attention(sequences, context_tokens, heads)
        return cost._replace(seconds=max(seconds, cost.seconds), bound="memory")

    def _pipelined(self, cost: Cost, compute: str, efficiency: OpEfficiency, tiles: int) -> Cost:
        """What a kernel waits for its loads beyond one that overlaps them entirely."""
        stages = self._options.pipeline_stages
        if stages is None:
            return cost
        compute_s = cost.flops / (self._gpu.peak_flops(compute) * efficiency.tensor_fraction)
        memory_s = cost.bytes / (self._bandwidth * efficiency.bandwidth_fraction)
        looped = pipelined_seconds(compute_s, memory_s, tiles / self._sms, stages, self._latency_s)
        return cost._replace(seconds=cost.seconds + looped - max(compute_s, memory_s))
