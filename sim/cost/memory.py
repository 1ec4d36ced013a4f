"""How much of a GPU's memory is left for KV blocks, by the definition of each serving engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from sim.errors import ConfigError
from sim.specs.architecture import ModelArchitecture
from sim.units import GIB, human_bytes

CUDA_RESERVE_BYTES = GIB // 2
"""nvidia-smi shows this much more than CUDA lets a process allocate; engines take their fractions of the latter.

85.52e9 against about 85.0e9 bytes on H100, 150.75e9 against about 150e9 on H200.
"""

FRAMEWORK_BYTES = 250 * 10**6
"""Libraries' workspaces and allocator rounding of one engine process, apart from NCCL.

What remains of the KV block counts that vLLM 0.15.1 logged on H100 for Llama-2-7B, Llama-2-70B, Mixtral-8x7B and
CodeLlama-34B (published by inference-sim) when weights, activations and NCCL are taken off: 0.24 GB on one GPU, 0.33 to
0.37 GB on two and four. With it those counts come out within 0.5 %. A fit, then, not a prediction.
aiconfigurator sets 3.5 GiB aside for everything but NCCL, which those runs contradict.
"""

_NCCL_2_BYTES, _NCCL_MORE_BYTES = 342 * 2**20, 392 * 2**20  # aiconfigurator system files, 2026-08: 2 GPUs; 4 or 8

SAMPLER_BYTES_PER_LOGIT = 2 + 4 + 4 + 8 + 4 + 4 + 4
"""16-bit logits, float32 copy, sorted copy, int64 order, probabilities, running sum, scattered back.

The tensors that a top-k/top-p sampler written in PyTorch keeps alive at once, as vLLM V1's does (list from memory). It
matters with many sequences and large vocabularies: on an RTX 4090 with 256 x 128k logits (vLLM 0.19, published by
LLMServingSim) 1.0 GB; the KV block count then comes out 0.8 % low. The list was written knowing that count.
"""

Engine = Literal["vllm", "sglang", "tensorrt-llm"]


@dataclass(frozen=True)
class ForwardWidths:
    """Values per token of the widest tensors of one layer, for the whole model; tensor parallelism divides later."""

    hidden: int
    intermediate: int
    """MLP width; of one expert in a mixture-of-experts layer."""
    qkv: int
    """(query heads + 2 x KV heads) x head size."""
    vocab: int
    experts_per_token: int = 1

    @classmethod
    def of(cls, model: ModelArchitecture) -> ForwardWidths:
        """The widths of a model's widest layers."""
        qkv = max((m.n for m in model.matrices() if m.role in ("qkv", "q_b", "q", "linear_in")), default=0)
        mlps = [group.mlp for group in model.layers if group.mlp is not None]
        widest = max(mlps, key=lambda mlp: mlp.intermediate_size)
        moe = next((mlp for mlp in mlps if mlp.kind == "moe"), None)
        experts = moe.experts_per_token if moe is not None else 1
        return cls(model.hidden_size, (moe or widest).intermediate_size, qkv, model.vocab_size, experts)


@dataclass(frozen=True)
class MemoryDemand:
    """What one GPU must hold besides KV, in bytes; weights and activations already divided by tensor parallelism."""

    weight_bytes: int
    activation_bytes: int
    cuda_graph_bytes: int = 0
    framework_bytes: int = FRAMEWORK_BYTES

    @property
    def runtime_bytes(self) -> int:
        """Everything but weights: what a bigger tensor-parallel group does not shrink reliably."""
        return self.activation_bytes + self.cuda_graph_bytes + self.framework_bytes


@dataclass(frozen=True)
class MemoryBudget:
    """Which engine's definition of its memory fraction applies, and the fraction.

    `fraction` is vLLM's `gpu_memory_utilization`, SGLang's `mem_fraction_static` or TensorRT-LLM's
    `free_gpu_memory_fraction`. `counts_cuda_graphs`: vLLM takes graph pools from inside its fraction since 0.21.0 only.
    `kv_cache_memory_bytes` states the KV bytes outright and overrides the fraction, as in vLLM.
    """

    engine: Engine = "vllm"
    fraction: float = 0.9
    counts_cuda_graphs: bool = False
    kv_cache_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.engine not in _KV_BYTES:
            raise ConfigError("unknown memory budget", key="engine", value=self.engine, choices=_KV_BYTES)
        if not 0 < self.fraction <= 1:
            raise ConfigError("must be above 0 and at most 1", key=_FRACTION_KEY[self.engine], value=self.fraction)


@dataclass(frozen=True)
class MemoryPlan:
    """Where one GPU's memory goes, in bytes; `num_blocks` KV blocks of `block_bytes` fit into `kv_bytes`."""

    total_bytes: int
    budget_bytes: int
    weight_bytes: int
    activation_bytes: int
    cuda_graph_bytes: int
    framework_bytes: int
    kv_bytes: int
    block_bytes: int

    @property
    def num_blocks(self) -> int:
        """KV blocks that fit, rounded down as engines do."""
        return self.kv_bytes // self.block_bytes

    @property
    def unused_bytes(self) -> int:
        """What the engine leaves alone: outside its fraction, less than one block, or the driver's."""
        held = self.weight_bytes + self.activation_bytes + self.cuda_graph_bytes + self.framework_bytes
        return self.total_bytes - held - self.num_blocks * self.block_bytes

    def as_dict(self) -> dict[str, int]:
        """The rows of a memory table, largest container first."""
        names = ("total", "budget", "weight", "activation", "cuda_graph", "framework", "kv", "unused", "block")
        return {**{f"{name}_bytes": getattr(self, f"{name}_bytes") for name in names}, "num_blocks": self.num_blocks}


def activation_peak_bytes(
    widths: ForwardWidths,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    tensor_parallel_size: int = 1,
    dtype_bytes: int = 2,
) -> int:
    """Largest temporary memory of one step on one GPU: what an engine's profiling run at full budget measures.

    The larger of a layer at `max_num_batched_tokens` (input and residual, plus gate, up and their product or Q, K, V
    and the attention output) and the sampler at `max_num_seqs` (hidden states plus the logits' copies; every rank
    gathers the whole vocabulary, as vLLM does).
    """
    mlp = 3 * widths.intermediate * widths.experts_per_token
    layer = 2 * widths.hidden + max(mlp, 2 * widths.qkv) / tensor_parallel_size
    forward = max_num_batched_tokens * layer * dtype_bytes
    rows = min(max_num_seqs, max_num_batched_tokens)
    hidden_states = max_num_batched_tokens * widths.hidden * dtype_bytes
    return round(max(forward, hidden_states + rows * widths.vocab * SAMPLER_BYTES_PER_LOGIT))


def framework_bytes(tensor_parallel_size: int = 1) -> int:
    """Memory of libraries on one GPU: fixed workspaces, and NCCL's buffers where several GPUs work together."""
    if tensor_parallel_size == 1:
        return FRAMEWORK_BYTES
    return FRAMEWORK_BYTES + (_NCCL_2_BYTES if tensor_parallel_size == 2 else _NCCL_MORE_BYTES)


def plan_memory(
    visible_bytes: int,
    demand: MemoryDemand,
    block_bytes: int,
    budget: MemoryBudget | None = None,
    tensor_parallel_size: int = 1,
) -> MemoryPlan:
    """The KV blocks left on one GPU whose driver shows `visible_bytes` (nvidia-smi's memory.total).

    With M the memory CUDA can allocate (`visible_bytes` less CUDA_RESERVE_BYTES) and f the engine's fraction
    (definitions as contrasted in aiconfigurator issue 1159):

    * vLLM: f M - (weights + activation peak + framework [+ CUDA graphs since 0.21.0]);
    * SGLang: f M - weights, the rest having to fit into (1 - f) M;
    * TensorRT-LLM: f (M - weights - activations - CUDA graphs - framework).

    Raises ConfigError when not one block is left, with what is needed, what there is and what would help.
    `tensor_parallel_size` serves that advice only: `demand` is per GPU already.
    """
    budget = budget or MemoryBudget()
    if block_bytes <= 0:
        raise ConfigError("must be positive", key="block_bytes", value=block_bytes)
    usable = visible_bytes - CUDA_RESERVE_BYTES
    kv = _kv_bytes(usable, demand, budget)
    if kv < block_bytes:
        raise _does_not_fit(usable, demand, block_bytes, budget, tensor_parallel_size)
    if budget.engine == "sglang" and demand.runtime_bytes > usable * (1 - budget.fraction):
        raise ConfigError(
            f"leaves {human_bytes(usable * (1 - budget.fraction))} for activations, CUDA graphs and libraries, which "
            f"need {human_bytes(demand.runtime_bytes)}; lower it to at most {1 - demand.runtime_bytes / usable:.2f}",
            key=_FRACTION_KEY["sglang"],
            value=budget.fraction,
        )
    return MemoryPlan(
        total_bytes=int(visible_bytes),  # a plain integer, whatever it was read from
        budget_bytes=round(budget.fraction * usable),
        weight_bytes=demand.weight_bytes,
        activation_bytes=demand.activation_bytes,
        cuda_graph_bytes=demand.cuda_graph_bytes,
        framework_bytes=demand.framework_bytes,
        kv_bytes=kv,
        block_bytes=block_bytes,
    )


def _vllm(usable: int, demand: MemoryDemand, budget: MemoryBudget) -> float:
    graphs = 0 if budget.counts_cuda_graphs else demand.cuda_graph_bytes
    return budget.fraction * usable - demand.weight_bytes - (demand.runtime_bytes - graphs)


def _sglang(usable: int, demand: MemoryDemand, budget: MemoryBudget) -> float:
    return budget.fraction * usable - demand.weight_bytes


def _tensorrt_llm(usable: int, demand: MemoryDemand, budget: MemoryBudget) -> float:
    return budget.fraction * (usable - demand.weight_bytes - demand.runtime_bytes)


_KV_BYTES = {"vllm": _vllm, "sglang": _sglang, "tensorrt-llm": _tensorrt_llm}
_FRACTION_KEY: dict[Engine, str] = {
    "vllm": "gpu_memory_utilization",
    "sglang": "mem_fraction_static",
    "tensorrt-llm": "free_gpu_memory_fraction",
}


def _kv_bytes(usable: int, demand: MemoryDemand, budget: MemoryBudget) -> int:
    """Bytes for KV; zero or negative when the model does not fit."""
    stated = budget.kv_cache_memory_bytes
    if stated is None:
        return int(_KV_BYTES[budget.engine](usable, demand, budget))
    free = usable - demand.weight_bytes - demand.runtime_bytes
    if stated > free > 0:
        problem = f"only {human_bytes(free)} are free beside the model"
        raise ConfigError(problem, key="kv_cache_memory_bytes", value=stated)
    return min(stated, free)


def _does_not_fit(
    usable: int, demand: MemoryDemand, block_bytes: int, budget: MemoryBudget, tensor_parallel_size: int
) -> ConfigError:
    needed = demand.weight_bytes + demand.runtime_bytes + block_bytes
    return ConfigError(
        f"the model does not fit: one GPU needs {needed / GIB:.1f} GiB (weights {demand.weight_bytes / GIB:.1f}, "
        f"activations and libraries {demand.runtime_bytes / GIB:.1f}, one KV block {block_bytes / GIB:.3f}), "
        f"available are {budget.fraction * usable / GIB:.1f} GiB ({_FRACTION_KEY[budget.engine]} {budget.fraction:g} "
        f"of {usable / GIB:.1f}); {_advice(usable, demand, block_bytes, budget, tensor_parallel_size)}"
    )


def _advice(
    usable: int, demand: MemoryDemand, block_bytes: int, budget: MemoryBudget, tensor_parallel_size: int
) -> str:
    room = _kv_bytes(usable, replace(demand, weight_bytes=0), replace(budget, kv_cache_memory_bytes=None))
    if room <= block_bytes:
        return "not even without weights: lower max_num_batched_tokens or max_num_seqs"
    whole_model = demand.weight_bytes * tensor_parallel_size
    larger = (2**n for n in range(1, 8) if 2**n > tensor_parallel_size)
    enough = next((n for n in larger if room - whole_model / n >= block_bytes), None)
    group = f"tensor_parallel_size {enough} or " if enough else ""
    return f"would help: {group}quantised weights of less than {(room - block_bytes) / GIB:.1f} GiB per GPU"
