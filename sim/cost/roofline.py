"""What one operator costs on one GPU: the larger of compute and memory time, on top of a launch floor.

The roofline of Williams, Waterman and Patterson (CACM 2009), with one efficiency per roof and operator class.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, Protocol

from sim.cost.collectives import Operation, collective_seconds
from sim.cost.kernels.arithmetic import SCALAR, smooth_max
from sim.specs.efficiency import OpEfficiency
from sim.specs.hardware import Gpu
from sim.specs.weight_kernels import Unpacking

_CACHE_OVERLAP = 2.0
"""How well widening a quantised cache overlaps with reading it (see smooth_max); a guess between none and all."""

Bound = str
"""What an operator waits for: `compute`, `memory`, `launch`, `link` or `host`."""


class Cost(NamedTuple):
    """Time, useful work and traffic of one operator on one GPU."""

    seconds: float
    flops: float
    bytes: float
    bound: Bound


Quantising = Literal["measured", "apart", "fused"]
"""Where the activations are quantised: as in the measurements, in a pass of its own, or in the operator before."""


class MatmulFormat(NamedTuple):
    """How a matrix product reads its operands and in which format it multiplies them."""

    compute: str
    """A number format of the GPU's tensor cores."""
    weight_bytes: float
    """Per parameter, scales included."""
    activation_bytes: float
    """Per element of the input; the output is 16 bit."""
    name: str
    """The scheme's name for the weights, such as `bf16`, `fp8` or `int4-awq`."""
    unpacking: Unpacking | None = None
    """What it takes to widen the weights; None where they are multiplied as they are, or were measured so."""
    quantising: Quantising = "measured"
    quantising_bytes: float = 3.0
    """Traffic per activation of a pass that quantises it; where the measurements hold the pass, they decide."""


class Heads(NamedTuple):
    """One attention layer on one GPU of a tensor-parallel group."""

    query_heads: int
    kv_heads: int
    query_dim: int
    """Width of a query and a key head."""
    value_dim: int
    kv_bytes_per_token: float
    """Cache bytes per token of this layer."""
    flops_per_pair: float
    """FLOPs per query-key pair, over all query heads, in decode."""
    prefill_flops_per_pair: float
    compute: str
    """Number format of the two matrix products."""
    window: int = 0
    """Sliding window in tokens; 0: none."""
    unpack_operations: float = 0.0
    """Vector operations per cached token to widen quantised keys and values."""

    def bytes_moved(self, cached_tokens: int, new_tokens: int) -> float:
        """Keys and values read once, queries in and outputs out in 16 bit."""
        rows = new_tokens * self.query_heads * (self.query_dim + self.value_dim) * 2
        return cached_tokens * self.kv_bytes_per_token + rows


class Experts(NamedTuple):
    """A mixture-of-experts layer, and what one GPU has of it: gate-up, activation and down of its share.

    `num_experts` and `experts_per_token` are the model's. With expert parallelism a GPU holds one of
    `expert_parallel` parts of the experts and sees the rows of all tokens that chose one of them.
    """

    hidden: int
    intermediate: int
    """Width of one expert on this GPU."""
    num_experts: int
    experts_per_token: int
    gated: bool
    format: MatmulFormat
    expert_parallel: int = 1

    def touched(self, tokens: int) -> float:
        """Expected number of this GPU's experts that `tokens` tokens reach, routed independently: E(1 - (1 - k/E)^M).

        E is the number of experts the GPU holds.
        """
        missed = (1.0 - self.experts_per_token / self.num_experts) ** tokens
        return self.num_experts / self.expert_parallel * (1.0 - missed)

    def rows(self, tokens: int) -> float:
        """Token-expert pairs of the busiest GPU.

        Independent routing deals each pair to one of the GPUs: the fullest of n has about sqrt(2 mu ln n) more than
        the mean mu (the expected maximum of n normal variables; David and Nagaraja 2003, section 10.5).
        """
        mean = tokens * self.experts_per_token / self.expert_parallel
        if self.expert_parallel == 1:
            return mean
        most = tokens * min(self.experts_per_token, self.num_experts // self.expert_parallel)
        return min(mean + math.sqrt(2.0 * mean * math.log(self.expert_parallel)), float(most))

    @property
    def parameters(self) -> int:
        """Of one expert on this GPU."""
        return self.hidden * self.intermediate * (3 if self.gated else 2)

    def flops(self, tokens: int) -> float:
        """Each token passes through its experts."""
        return 2.0 * self.rows(tokens) * self.parameters

    def bytes_moved(self, tokens: int) -> float:
        """The weights of every expert that is touched, once, and the rows in, between and out."""
        rows = self.rows(tokens)
        weights = self.touched(tokens) * self.parameters * self.format.weight_bytes
        return weights + rows * (self.hidden * (self.format.activation_bytes + 2) + 4 * self.intermediate)


class PrefillWork(NamedTuple):
    """Prompt chunks of one step, added up for one attention layer."""

    new_tokens: int
    pairs: int
    """Query-key pairs, causal and within the window."""
    context_tokens: int
    """Cached and new tokens whose keys and values are read."""
    longest: int
    """New tokens of the longest chunk."""


class Kernels(Protocol):
    """Prices of the operators on one GPU. One implementation reads datasheets, another what was measured."""

    @property
    def trust(self) -> str:
        """`datasheet`, `extrapolated`, `calibrated` or `validated`."""
        ...

    def gemm(self, m: int, k: int, n: int, form: MatmulFormat) -> Cost:
        """Y[m,n] = X[m,k] W[k,n]."""
        ...

    def experts(self, tokens: int, experts: Experts) -> Cost:
        """All experts of one layer for `tokens` tokens."""
        ...

    def decode_attention(self, sequences: int, context_tokens: int, heads: Heads) -> Cost:
        """One new token of each sequence against its cache; `context_tokens` is the sum over the sequences."""
        ...

    def prefill_attention(self, work: PrefillWork, heads: Heads) -> Cost:
        """Prompt chunks against themselves and what is cached before them."""
        ...

    def elementwise(self, bytes_moved: float) -> Cost:
        """A fused element-wise operator: norms, rotary embedding, activation, cache write."""
        ...

    def collective(self, operation: Operation, tensor_bytes: float, num_gpus: int) -> Cost:
        """Sum, gather, scatter or exchange a tensor among the GPUs of a group."""
        ...


def roofline(flops: float, bytes_moved: float, peak_flops: float, bandwidth: float, eff: OpEfficiency) -> Cost:
    """`floor + max(flops / (peak x f), bytes / (bandwidth x g))`, and which of the three is the largest."""
    compute = flops / (peak_flops * eff.tensor_fraction)
    memory = bytes_moved / (bandwidth * eff.bandwidth_fraction)
    bound = "compute" if compute > memory else "memory"
    if eff.launch_floor_s > max(compute, memory):
        bound = "launch"
    return Cost(eff.launch_floor_s + max(compute, memory), flops, bytes_moved, bound)


def tile_share(rows: int, unpacking: Unpacking) -> float:
    """Share of the tensor rate that the kernel's tiles reach: narrow ones are as good as any until there are more."""
    return unpacking.mma_share if rows > unpacking.rows else 1.0


def unpacked_cache(cost: Cost, cached_tokens: int, heads: Heads, vector_ops_per_s: float) -> Cost:
    """Decode attention over a quantised cache: vector units widen keys and values while others arrive."""
    if not heads.unpack_operations:
        return cost
    unpack = cached_tokens * heads.unpack_operations / vector_ops_per_s
    bound = "compute" if unpack > cost.seconds else cost.bound
    return cost._replace(seconds=smooth_max(cost.seconds, unpack, _CACHE_OVERLAP, SCALAR), bound=bound)


def unpacked_experts(cost: Cost, tokens: int, experts: Experts, vector_ops_per_s: float) -> Cost:
    """Experts whose weights are widened for every `rows` rows that reach one of them."""
    unpacking = experts.format.unpacking
    if unpacking is None:
        return cost
    touched = max(experts.touched(tokens), 1.0)
    tiles = math.ceil(experts.rows(tokens) / touched / unpacking.rows)
    widen = touched * experts.parameters * tiles * unpacking.operations / vector_ops_per_s
    return cost._replace(seconds=cost.seconds + widen)


class DatasheetKernels:
    """Datasheet rates times the profile's fall-back efficiencies: right to some tens of percent."""

    trust = "datasheet"

    def __init__(self, gpu: Gpu) -> None:
        self._efficiency = gpu.efficiency
        self._bandwidth = float(gpu.memory_bandwidth_bytes_per_s)
        self._peak: dict[str, float] = {str(name): float(rate) for name, rate in gpu.tensor_flops.items()}
        self._peak_16_bit = self._peak[gpu.default_dtype]
        self._vector = gpu.vector_ops_per_s
        self._gpu = gpu

    def gemm(self, m: int, k: int, n: int, form: MatmulFormat) -> Cost:
        """2mkn FLOPs; weights, input and output move once. Unpacking weights keeps the product waiting."""
        moved = k * n * form.weight_bytes + m * k * form.activation_bytes + m * n * 2
        peak, eff = self._peak[form.compute], self._efficiency.gemm
        flops, unpacking, extra = 2.0 * m * k * n, form.unpacking, 0.0
        if unpacking is not None:
            stored = k * n * form.weight_bytes
            if m >= unpacking.separate_from:
                extra = self._pass_s(stored + k * n * 2.0, k * n * unpacking.pass_operations)
                moved += k * n * 2.0 - stored
            else:
                return self._with_unpacking(m, k * n, moved, flops, form, unpacking)
        if form.quantising == "apart" and form.activation_bytes < 2.0:
            extra += self._pass_s(m * k * form.quantising_bytes, 0.0)
        cost = roofline(flops, moved, peak, self._bandwidth, eff)
        return cost._replace(seconds=cost.seconds + extra)

    def _pass_s(self, bytes_moved: float, operations: float) -> float:
        return max(self.elementwise(bytes_moved).seconds, operations / self._vector)

    def _with_unpacking(
        self, m: int, weights: int, moved: float, flops: float, form: MatmulFormat, unpacking: Unpacking
    ) -> Cost:
        """Products and unpacking share the compute side of the roofline, bytes are on the other."""
        eff = self._efficiency.gemm
        unpack = math.ceil(m / unpacking.rows) * weights * unpacking.operations / self._vector
        product = flops / (self._peak[form.compute] * eff.tensor_fraction) if unpacking.multiplies else 0.0
        product = product / tile_share(m, unpacking)
        compute = smooth_max(unpack, product, unpacking.overlap, SCALAR)
        memory = moved / (self._bandwidth * eff.bandwidth_fraction)
        busy = max(compute, memory) if unpacking.multiplies else compute + memory
        return Cost(eff.launch_floor_s + busy, flops, moved, "compute" if compute > memory else "memory")

    def experts(self, tokens: int, experts: Experts) -> Cost:
        """The weights of every expert that is touched are read once."""
        peak = self._peak[experts.format.compute]
        cost = roofline(
            experts.flops(tokens), experts.bytes_moved(tokens), peak, self._bandwidth, self._efficiency.moe
        )  # fmt: skip
        return unpacked_experts(cost, tokens, experts, self._vector)

    def decode_attention(self, sequences: int, context_tokens: int, heads: Heads) -> Cost:
        """The cache is read once; queries and outputs hardly matter."""
        seen = context_tokens + sequences
        flops, moved = seen * heads.flops_per_pair, heads.bytes_moved(seen, sequences)
        peak = self._peak[heads.compute]
        cost = roofline(flops, moved, peak, self._bandwidth, self._efficiency.attention_decode)
        return unpacked_cache(cost, seen, heads, self._vector)

    def prefill_attention(self, work: PrefillWork, heads: Heads) -> Cost:
        """FlashAttention (Dao 2023): the pairs below the diagonal are computed, keys and values stay on the chip."""
        flops, moved = (
            work.pairs * heads.prefill_flops_per_pair,
            heads.bytes_moved(work.context_tokens, work.new_tokens),
        )
        peak = self._peak[heads.compute]
        return roofline(flops, moved, peak, self._bandwidth, self._efficiency.attention_prefill)

    def elementwise(self, bytes_moved: float) -> Cost:
        """Nothing but traffic."""
        return roofline(0.0, bytes_moved, self._peak_16_bit, self._bandwidth, self._efficiency.elementwise)

    def collective(self, operation: Operation, tensor_bytes: float, num_gpus: int) -> Cost:
        """Over the links of a node, and over the network where the group spans several."""
        seconds, floor = collective_seconds(operation, tensor_bytes, num_gpus, self._gpu, self._efficiency.collective)
        return Cost(seconds, 0.0, tensor_bytes, "launch" if floor > seconds - floor else "link")
