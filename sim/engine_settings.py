"""Engine settings: what a scenario says, what its preset fills in, and what contradicts itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from sim.documents import KeyPath, validate
from sim.kv_settings import resolve_kv_cache
from sim.presets import EnginePreset, Policy, load_preset
from sim.scenario import LoadedScenario
from sim.specs.architecture import FullAttention, ModelArchitecture
from sim.specs.hardware import Gpu
from sim.specs.layout import Layout
from sim.specs.quantization import QuantScheme
from sim.units import GIB

CHUNKING = ("chunked", "sglang")
"""Schedulers that split prompts, so that a step need not hold the longest one."""
_NOT_OPTIONS = {
    "max_num_seqs", "max_num_batched_tokens", "long_prefill_token_threshold", "max_model_len", "bound_tokens",
    "queue", "preemption_victim", "mover",
}  # fmt: skip
"""What constructors of policies are given from settings of their own."""


RESTORING = ("chunked", "continuous")
"""Schedulers that admit requests whose keys and values are elsewhere."""
PCIE_SHARE = 0.78
"""Of the nominal PCIe rate that large copies reach one way: about 50 of 64 GB/s on the H100, as measured for vLLM's KV
offloading (vLLM blog, January 2026)."""


@dataclass(frozen=True)
class Engine:
    """Every engine setting after presets and defaults: what `engine:` of the saved scenario shows."""

    preset: str
    scheduler: dict[str, Any]
    scheduling_policy: dict[str, Any]
    preemption_victim: str
    max_num_seqs: int
    max_num_batched_tokens: int
    long_prefill_token_threshold: int
    max_model_len: int
    gpu_memory_utilization: float
    kv_cache: dict[str, Any]
    kv_cache_dtype: str
    kv_cache_memory_bytes: int | None
    num_gpu_blocks_override: int | None
    quantization: dict[str, Any]
    dtype: str
    tensor_parallel_size: int
    pipeline_parallel_size: int
    data_parallel_size: int
    expert_parallel_size: int
    preemption_mode: str
    max_queued_requests: int | None
    async_scheduling: bool
    length_predictor: dict[str, Any] | None
    host: dict[str, float]
    sampling: str
    sampling_device: str
    kernels: dict[str, Any]
    """What differs from the defaults of `KernelSpec`."""
    shared_prefix_attention: str
    speculative: dict[str, Any] | None

    @property
    def layout(self) -> Layout:
        """The GPUs of one copy of the model."""
        return Layout(
            self.tensor_parallel_size, self.pipeline_parallel_size, self.data_parallel_size, self.expert_parallel_size
        )


def resolve_engine(
    loaded: LoadedScenario, architecture: ModelArchitecture, gpu: Gpu, scheme: QuantScheme
) -> tuple[Engine, EnginePreset]:
    """Every engine setting of a scenario, and the preset that filled what it leaves out.

    Raises ConfigError for settings that contradict each other, the model or the GPU.
    """
    given = loaded.scenario.engine
    with loaded.document.blamed(("engine", "preset")):
        preset = load_preset(given.preset)
    seqs, budget = preset.limits(gpu)
    scheduler = given.scheduler or preset.scheduler
    order, predictor = given.scheduling_policy, given.length_predictor
    if predictor is None and order.kind == "shortest_predicted":
        predictor = Policy(kind="oracle")
    max_model_len = given.max_model_len or architecture.max_model_len
    if given.max_num_batched_tokens is None and scheduler.kind not in CHUNKING:
        budget = max(budget, max_model_len)  # vLLM V0: without chunks, the longest prompt must fit one step
    if given.max_num_batched_tokens is None and given.max_num_seqs is not None:
        budget = max(budget, given.max_num_seqs)
    if given.max_num_seqs is None and given.max_num_batched_tokens is not None:
        seqs = min(seqs, given.max_num_batched_tokens)
    guesses = given.speculative
    if given.max_num_batched_tokens is None and guesses is not None:
        budget = max(budget, (given.max_num_seqs or seqs) * guesses.query_tokens)
    kv_cache = resolve_kv_cache(loaded, preset)
    caches = kv_cache["enable_prefix_caching"]
    engine = Engine(
        preset=given.preset,
        scheduler=scheduler.as_dict(),
        scheduling_policy=order.as_dict(),
        preemption_victim=given.preemption_victim or ("lowest_priority" if order.kind == "priority" else "newest"),
        max_num_seqs=given.max_num_seqs or seqs,
        max_num_batched_tokens=given.max_num_batched_tokens or budget,
        long_prefill_token_threshold=_first(given.long_prefill_token_threshold, preset.long_prefill_token_threshold),
        max_model_len=max_model_len,
        gpu_memory_utilization=given.gpu_memory_utilization or preset.gpu_memory_utilization,
        kv_cache=kv_cache | _tiers(loaded, gpu, caches) | _offload(loaded, gpu, scheduler.kind),
        kv_cache_dtype=scheme.kv_cache.name,
        kv_cache_memory_bytes=given.kv_cache_memory_bytes,
        num_gpu_blocks_override=given.num_gpu_blocks_override,
        quantization=scheme.as_dict(),
        dtype=architecture.dtype,
        tensor_parallel_size=given.tensor_parallel_size,
        pipeline_parallel_size=given.pipeline_parallel_size,
        data_parallel_size=given.data_parallel_size,
        expert_parallel_size=_expert_parallel(loaded, architecture),
        preemption_mode=given.preemption_mode,
        max_queued_requests=given.max_queued_requests,
        async_scheduling=_first(given.async_scheduling, preset.async_scheduling and guesses is None),
        length_predictor=predictor.as_dict() if predictor is not None else None,
        host=preset.host.model_dump() | given.host.model_dump(exclude_none=True),
        sampling=_sampling(given.sampling, architecture),
        sampling_device=given.sampling_device,
        kernels=given.kernels.resolved(),
        shared_prefix_attention=given.shared_prefix_attention,
        speculative=None if guesses is None else guesses.resolved(),
    )
    _check_limits(loaded, engine, architecture, gpu)
    return engine, preset


def _tiers(loaded: LoadedScenario, gpu: Gpu, caches: bool) -> dict[str, Any]:
    """Memory below the prefix cache, if there is one (`caches`), with the bandwidths that are left out."""
    kv = loaded.scenario.engine.kv_cache
    if not kv.tiers:
        return {}
    if not caches:
        raise loaded.document.error(("engine", "kv_cache", "tiers"), "hold what a prefix cache forgets: they need "
                                    "enable_prefix_caching")  # fmt: skip
    gpus = loaded.scenario.engine.tensor_parallel_size * loaded.scenario.engine.pipeline_parallel_size
    tiers = []
    for i, tier in enumerate(kv.tiers):
        read = tier.bandwidth or (round(PCIE_SHARE * gpu.pcie_bytes_per_s) * gpus if i == 0 else None)
        if read is None:
            raise loaded.document.error(("engine", "kv_cache", "tiers", i, "bandwidth"), "is required but missing: "
                                        "only the first tier is reached over the GPUs' own links")  # fmt: skip
        tiers.append({**tier.model_dump(), "bandwidth": read, "write_bandwidth": tier.write_bandwidth or read})
    return {"tiers": tiers, "load_policy": kv.load_policy, "prefetch": kv.prefetch}


def _offload(loaded: LoadedScenario, gpu: Gpu, scheduler: str) -> dict[str, Any]:
    """The host's share in swapping. Each GPU has its own link to the host, and vLLM V0's 4 GiB of its memory."""
    given = loaded.scenario.engine
    if given.preemption_mode != "swap":
        return {}
    if scheduler not in RESTORING:
        raise loaded.document.error(("engine", "preemption_mode"), f"the {scheduler} scheduler recomputes who is "
                                    f"preempted; swap needs {' or '.join(RESTORING)}", value="swap")  # fmt: skip
    spec, gpus = given.kv_cache.offload, given.tensor_parallel_size * given.pipeline_parallel_size
    offload = {
        "capacity": spec.capacity or 4 * GIB * gpus,
        "bandwidth": spec.bandwidth or round(PCIE_SHARE * gpu.pcie_bytes_per_s) * gpus,
        "latency_s": spec.latency_s,
        "overlap": spec.overlap,
    }
    return {"offload": offload}


def _check_limits(loaded: LoadedScenario, engine: Engine, architecture: ModelArchitecture, gpu: Gpu) -> None:
    error = loaded.document.error
    budget, tp = engine.max_num_batched_tokens, engine.tensor_parallel_size
    if budget < engine.max_num_seqs:
        raise error(("engine", "max_num_batched_tokens"), f"must be at least max_num_seqs ({engine.max_num_seqs})",
                    value=budget)  # fmt: skip
    if engine.scheduler["kind"] not in CHUNKING and budget < engine.max_model_len:
        raise error(("engine", "max_num_batched_tokens"),
                    f"must be at least max_model_len ({engine.max_model_len}) when prompts are not chunked",
                    value=budget)  # fmt: skip
    heads = [g.attention.num_heads for g in architecture.layers if isinstance(g.attention, FullAttention)]
    if any(count % tp for count in heads):
        sizes = (n for n in (1, 2, 4, 8, 16) if n <= gpu.gpus_per_node)
        valid = [str(n) for n in sizes if all(count % n == 0 for count in heads)]
        raise error(("engine", "tensor_parallel_size"), f"must divide the {heads[0]} attention heads of the model",
                    value=tp, choices=valid)  # fmt: skip
    if tp > gpu.gpus_per_node and tp % gpu.gpus_per_node:
        raise error(("engine", "tensor_parallel_size"), f"exceeds the {gpu.gpus_per_node} GPUs of a node and is no "
                    "multiple of them", value=tp)  # fmt: skip
    if engine.shared_prefix_attention != "none" and not engine.kv_cache["enable_prefix_caching"]:
        raise error(("engine", "shared_prefix_attention"), "reads once what is stored once: it needs "
                    "kv_cache.enable_prefix_caching", value=engine.shared_prefix_attention)  # fmt: skip
    if engine.pipeline_parallel_size > architecture.num_layers:
        raise error(("engine", "pipeline_parallel_size"), f"exceeds the {architecture.num_layers} layers of the model",
                    value=engine.pipeline_parallel_size)  # fmt: skip
    if engine.max_model_len > architecture.max_model_len:
        raise error(("engine", "max_model_len"), f"exceeds the model's context of {architecture.max_model_len} tokens",
                    value=engine.max_model_len)  # fmt: skip


def _expert_parallel(loaded: LoadedScenario, architecture: ModelArchitecture) -> int:
    """Groups of GPUs with whole experts: as many as asked for; all GPUs of a stage, or none, when nothing is said."""
    given, error = loaded.scenario.engine, loaded.document.error
    group = given.tensor_parallel_size * given.data_parallel_size
    if not architecture.is_moe:
        for key in ("data_parallel_size", "expert_parallel_size"):
            if (getattr(given, key) or 1) > 1:
                raise error(("engine", key), "is for mixture-of-experts models; "
                            "for copies of a dense one use replicas.count",
                            value=getattr(given, key))  # fmt: skip
        return 1
    size = given.expert_parallel_size or (group if given.enable_expert_parallel else 1)
    experts = min(g.mlp.num_experts for g in architecture.layers if g.mlp is not None and g.mlp.kind == "moe")
    if group % size or experts % size:
        valid = [str(n) for n in range(1, group + 1) if group % n == 0 and experts % n == 0]
        at = "expert_parallel_size" if given.expert_parallel_size else "enable_expert_parallel"
        raise error(("engine", at), f"{size} must divide the {group} GPUs of a stage and the {experts} experts",
                    value=getattr(given, at), choices=valid)  # fmt: skip
    return size


def check_policies(loaded: LoadedScenario, policies: Mapping[KeyPath, Mapping[str, Callable[..., Any]]]) -> None:
    """Raise ConfigError for a policy, or an option of one, that does not exist."""
    given = loaded.scenario.engine
    named = {
        ("engine", "scheduler"): given.scheduler,
        ("engine", "scheduling_policy"): given.scheduling_policy,
        ("engine", "kv_cache", "allocator"): given.kv_cache.allocator,
        ("engine", "kv_cache", "prefix_cache", "match"): _named(given.kv_cache.prefix_cache.match),
        ("engine", "length_predictor"): given.length_predictor,
        ("replicas", "router"): loaded.scenario.replicas.router,
    }
    for key, policy in named.items():
        if policy is not None:
            _check_policy(loaded, key, policy, policies[key])


def _named(kind: str | None) -> Policy | None:
    return None if kind is None else Policy(kind=kind)


def _check_policy(
    loaded: LoadedScenario, key: KeyPath, policy: Policy, table: Mapping[str, Callable[..., Any]]
) -> None:
    if policy.kind not in table:
        raise loaded.document.error(key, "unknown policy", value=policy.kind, choices=sorted(table))
    keyword_only = [
        name for name, p in inspect.signature(table[policy.kind]).parameters.items() if p.kind is p.KEYWORD_ONLY
    ]
    valid = sorted(set(keyword_only) - _NOT_OPTIONS)
    for option in policy.options:
        if option not in valid:
            raise loaded.document.error((*key, option), f"unknown option of {policy.kind}", choices=valid)
    if policy.options:
        validate(_options_model(table[policy.kind], valid), loaded.document, at=key, data=policy.options)


def _options_model(policy: Callable[..., Any], names: list[str]) -> type[BaseModel]:
    """What the options of a policy may be, from the types of its constructor's arguments."""
    types = get_type_hints(getattr(policy, "__init__", policy), include_extras=True)
    fields: dict[str, Any] = {name: (types[name], None) for name in names}
    return create_model("Options", __config__=ConfigDict(extra="forbid", strict=True), **fields)


def options_of(policy: Mapping[str, Any]) -> dict[str, Any]:
    """What is written beside the name of a policy."""
    return {key: value for key, value in policy.items() if key != "kind"}


def _sampling(given: str, architecture: ModelArchitecture) -> str:
    if given != "auto":
        return given
    return "filtered" if architecture.filters_samples else "greedy"


def _first(given: Any, default: Any) -> Any:
    return default if given is None else given
