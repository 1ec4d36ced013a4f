"""The schema of a scenario file: one whole run, as people write it.

A policy stays `{kind, options}` here; `sim.build` turns names into objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from sim.catalog import find
from sim.client import ClientSpec
from sim.documents import Document, load_yaml, parse_value, validate
from sim.errors import ConfigError
from sim.kv.load_policy import LoadPolicy
from sim.presets import Policy, Seconds
from sim.slo import check_objective
from sim.tariff import CostSpec
from sim.techniques import KernelSpec, SharedPrefixAttention, SpeculativeSpec
from sim.units import BYTES, BYTES_PER_S, quantity

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)
_MOST = 2**31 - 1
_POLICY_KEYS = ("scheduler", "scheduling_policy", "length_predictor", "allocator", "router")


def _read_bytes(raw: Any) -> Any:
    if not isinstance(raw, str):
        return raw
    return round(quantity(raw, BYTES_PER_S if raw.rstrip().endswith("/s") else BYTES))


Count = Annotated[int, Field(gt=0, le=_MOST)]
ByteCount = Annotated[
    int,
    BeforeValidator(_read_bytes),
    Field(gt=0, le=2**62),
    WithJsonSchema({"type": ["string", "integer"], "description": "bytes with their unit, such as '16 GiB', or bare"}),
]
"""Bytes, or bytes per second, as people write them."""
Objective = Annotated[str, AfterValidator(check_objective)]
LimitValue = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class OffloadSpec(BaseModel):
    """Host memory for the keys and values of preempted requests, and the way there."""

    model_config = _STRICT

    capacity: ByteCount | None = Field(default=None, description="of a replica, such as 16 GiB; default: 4 GiB per GPU")
    bandwidth: ByteCount | None = Field(
        default=None, description="each way, all GPUs of a replica together, such as 50 GB/s; default: from the profile"
    )
    latency_s: Seconds = Field(default=0.0, description="of every copy besides, such as 10 us")
    overlap: bool = Field(default=False, description="steps go on while copies are under way (false: vLLM V0)")


class PrefixCacheSpec(BaseModel):
    """How the beginnings of prompts are found again, and which of them go first when memory is needed."""

    model_config = _STRICT

    match: str | None = Field(
        default=None,
        description="hash_block: full blocks, each known by all before it (vLLM); radix: a tree of tokens, evicted "
        "leaf by leaf (SGLang), with a block_size of 1 unless you say another",
    )
    eviction: Literal["lru", "lfu"] | None = Field(
        default=None, description="what goes first: the least recently or the least frequently used"
    )


class TierSpec(BaseModel):
    """Memory below the GPU's for what prompts leave behind."""

    model_config = _STRICT

    name: str = Field(description="host, disk, remote, ...: for people")
    capacity: ByteCount = Field(description="of a replica, such as 64 GiB")
    bandwidth: ByteCount | None = Field(
        default=None,
        description="reading, for all GPUs of a replica together, such as 6 GB/s; default for the first tier: the "
        "GPUs' links to the host",
    )
    write_bandwidth: ByteCount | None = Field(default=None, description="writing; default: as reading")
    latency_s: Seconds = Field(default=0.0, description="of every copy besides, such as 100 us")


class KVCacheSpec(BaseModel):
    """How KV memory is handed out."""

    model_config = _STRICT

    allocator: Policy | None = Field(
        default=None, description="policy that hands out KV memory: paged, max-length or predicted"
    )
    block_size: int | None = Field(default=None, gt=0, le=4096, description="tokens per KV block (vLLM --block-size)")
    enable_prefix_caching: bool | None = Field(
        default=None, description="share KV blocks of equal prompt prefixes (vLLM --enable-prefix-caching)"
    )
    sliding_window: Count | None = Field(
        default=None, description="keep the last so many tokens of every sequence, whatever the model (StreamingLLM)"
    )
    attention_sinks: int | None = Field(
        default=None, ge=0, le=_MOST, description="keep the first so many as well; StreamingLLM found 4 enough"
    )
    prefix_cache: PrefixCacheSpec = Field(default_factory=PrefixCacheSpec, description="how prefixes are matched")
    tiers: list[TierSpec] = Field(
        default_factory=list, description="where prefixes go that the GPU forgets, fastest first (needs a prefix cache)"
    )
    load_policy: LoadPolicy = Field(
        default="cheaper",
        description="what tiers know of a prompt: load always, never, or when it beats computing",
    )
    prefetch: bool = Field(
        default=True, description="load when a request arrives, while others pass it; false: at the head of the queue"
    )
    offload: OffloadSpec = Field(
        default_factory=OffloadSpec, description="where preempted requests go with preemption_mode: swap"
    )


class HostSpec(BaseModel):
    """Time between steps that is not hidden behind the GPU; what is left out comes from the preset."""

    model_config = _STRICT

    step_s: Seconds | None = Field(default=None, description="per step, such as 264 us")
    sequence_s: Seconds | None = Field(default=None, description="per sequence and step")
    token_s: Seconds | None = Field(default=None, description="per new token of a step")
    request_s: Seconds | None = Field(default=None, description="per request, between client and scheduler and back")
    prompt_token_s: Seconds | None = Field(default=None, description="per prompt token, one request after the other")


class EngineSpec(BaseModel):
    """The serving engine: vLLM's argument names; what is left out comes from the preset."""

    model_config = _STRICT

    preset: str = Field(default="vllm-v1", description="engine whose defaults fill what is left out")
    scheduler: Policy | None = Field(
        default=None,
        description="what a step computes: chunked (prompts in pieces beside the decodes), continuous (whole prompts), "
        "sglang, static or dynamic; `roofserve list schedulers`",
    )
    scheduling_policy: Policy = Field(
        default=Policy(kind="fcfs"),
        description="order of the waiting queue: fcfs, priority, shortest_prompt, shortest_predicted or fair_share",
    )
    preemption_victim: Literal["newest", "lowest_priority"] | None = Field(
        default=None,
        description="who gives way when memory is short; default: newest, under scheduling_policy: priority "
        "lowest_priority",
    )
    max_num_seqs: Count | None = Field(default=None, description="most sequences in one step")
    max_num_batched_tokens: Count | None = Field(default=None, description="most new tokens in one step")
    long_prefill_token_threshold: int | None = Field(
        default=None, ge=0, le=_MOST, description="longest chunk of one prompt; 0: as long as the budget"
    )
    max_model_len: Count | None = Field(default=None, description="longest prompt plus output; default: the model's")
    gpu_memory_utilization: float | None = Field(
        default=None, gt=0, le=1, description="share of the GPU's memory that the engine may use"
    )
    kv_cache: KVCacheSpec = Field(default_factory=KVCacheSpec, description="KV memory")
    kv_cache_dtype: str | None = Field(default=None, description="number format of the KV cache; auto: the model's")
    kv_cache_memory_bytes: int | None = Field(
        default=None, gt=0, le=2**62, description="KV bytes per GPU, instead of a share"
    )
    num_gpu_blocks_override: Count | None = Field(
        default=None, description="KV blocks of a replica, for instance from a server's start-up log"
    )
    quantization: str | dict[str, Any] | None = Field(
        default=None,
        description="vLLM's scheme name, or formats of {weights, activations, kv_cache}, on top of a "
        "{scheme}, with what stays in 16 bit {keep, keep_layers} and how it is multiplied {kernel, compute, fuse, ...}",
    )
    dtype: str = Field(default="auto", description="16-bit type of what is not quantised: auto, bfloat16 or float16")
    tensor_parallel_size: Count = Field(default=1, description="GPUs that share every layer")
    pipeline_parallel_size: Count = Field(default=1, description="stages that hold a part of the layers each")
    data_parallel_size: Count = Field(
        default=1, description="groups that attend to different sequences and share the experts (MoE models)"
    )
    enable_expert_parallel: bool | None = Field(
        default=None, description="whole experts on each GPU, instead of a slice of every expert"
    )
    expert_parallel_size: Count | None = Field(
        default=None, description="groups of GPUs that hold whole experts (SGLang --ep-size); default: all or one"
    )
    preemption_mode: Literal["recompute", "swap"] = Field(
        default="recompute", description="what becomes of preempted requests (vLLM V0): swap copies them to the host"
    )
    max_queued_requests: Count | None = Field(
        default=None, description="arrivals are rejected while so many wait (SGLang --max-queued-requests)"
    )
    async_scheduling: bool | None = Field(default=None, description="plan a step while the one before it runs")
    length_predictor: Policy | None = Field(
        default=None,
        description="guesses output lengths for policies that use them: oracle, noisy (sigma) or quantile (quantile, "
        "window); without one they see the longest output allowed, but shortest_predicted takes the oracle",
    )
    sampling: Literal["auto", "greedy", "filtered"] = Field(
        default="auto",
        description="greedy, or filtered by top-k or top-p; auto: as the checkpoint asks for (generation_config.json)",
    )
    sampling_device: Literal["gpu", "cpu"] = Field(
        default="gpu", description="where the next token is chosen; cpu: logits are copied to the host first"
    )
    kernels: KernelSpec = Field(default_factory=KernelSpec, description="techniques inside and around the kernels")
    shared_prefix_attention: SharedPrefixAttention = Field(
        default="none",
        description="a prefix that decoding sequences share is read once: relay (what all have in common) or "
        "hydragen (all levels); needs enable_prefix_caching",
    )
    speculative: SpeculativeSpec | None = Field(
        default=None, description="speculative decoding: {method, num_speculative_tokens, acceptance, ...}"
    )
    host: HostSpec = Field(default_factory=HostSpec, description="work of the engine that the GPU waits for")

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str) -> str:
        known = {"auto": "auto", "bfloat16": "bfloat16", "bf16": "bfloat16", "float16": "float16", "half": "float16",
                 "fp16": "float16"}  # fmt: skip
        if value not in known:
            raise ValueError("is not a 16-bit type; choose auto, bfloat16 or float16")
        return known[value]


class ReplicasSpec(BaseModel):
    """Copies of the model and who gets which request."""

    model_config = _STRICT

    count: int = Field(default=1, gt=0, le=32767, description="copies of the model, each on its own GPUs")
    router: Policy = Field(default=Policy(kind="round_robin"), description="which copy serves an arriving request")


class PoolSpec(BaseModel):
    """Replicas that do one half of the work; what is left out comes from the scenario."""

    model_config = _STRICT

    hardware: str | None = Field(default=None, description="a GPU profile; default: the scenario's")
    count: int = Field(default=1, gt=0, le=16383, description="replicas of the pool")
    router: Policy = Field(default=Policy(kind="round_robin"), description="which of them gets a request")
    engine: EngineSpec = Field(default_factory=EngineSpec, description="what differs from the scenario's engine")


class PoolLinkSpec(BaseModel):
    """What keys and values travel over from prefill to decode replicas; all copies share it."""

    model_config = _STRICT

    bandwidth: ByteCount | None = Field(
        default=None, description="of all copies together, such as 50 GB/s; default: the network of one replica's GPUs"
    )
    latency_s: Seconds = Field(default=0.0, description="of every copy besides, such as 10 us")
    layerwise: bool = Field(default=False, description="send layer by layer, while the prompt is computed")


class PoolsSpec(BaseModel):
    """Disaggregated serving: some replicas compute prompts, others decode."""

    model_config = _STRICT

    prefill: PoolSpec = Field(default_factory=PoolSpec, description="compute prompts")
    decode: PoolSpec = Field(default_factory=PoolSpec, description="emit all tokens but the first")
    link: PoolLinkSpec = Field(default_factory=PoolLinkSpec, description="between them")


class Scenario(BaseModel):
    """One run: a model on hardware under traffic, with an engine. Needs only `model`, `hardware` and `workload`."""

    model_config = _STRICT

    name: str = Field(default="", description="default: the file's name")
    description: str = Field(default="", description="free text for people")
    model: str = Field(description="Hugging Face id from the catalogue, or a path to a config.json")
    hardware: str = Field(description="a GPU profile: a name in hardware_profiles/, or a path")
    workload: str | dict[str, Any] = Field(description="traffic: a name in workloads/, a path, or a mapping")
    engine: EngineSpec = Field(default_factory=EngineSpec, description="the serving engine")
    replicas: ReplicasSpec = Field(default_factory=ReplicasSpec, description="how many copies")
    pools: PoolsSpec | None = Field(default=None, description="disaggregated prefill and decode, instead of replicas")
    client: ClientSpec | None = Field(default=None, description="how answers travel; default: nothing is added to them")
    slo: dict[Objective, LimitValue] = Field(
        default_factory=dict, description="objectives such as ttft_p99_ms: 500 (ttft, tpot, itl, e2e, queue)"
    )
    cost: CostSpec = Field(default_factory=CostSpec, description="prices, PUE and carbon of your own")
    seed: int = Field(default=0, ge=0, lt=2**63, description="all random draws follow from it")

    @model_validator(mode="after")
    def _pools_or_replicas(self) -> Scenario:
        if self.pools is not None and "replicas" in self.model_fields_set:
            raise ValueError("replicas are counted in pools.prefill.count and pools.decode.count when there are pools")
        return self


@dataclass(frozen=True)
class LoadedScenario:
    """A scenario together with where it was written, so that later errors can still point at file and line."""

    scenario: Scenario
    document: Document

    @property
    def path(self) -> Path | None:
        """The file it came from."""
        return self.document.path


def load_scenario(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    origins: Mapping[str, str] | None = None,
) -> LoadedScenario:
    """A scenario from a shipped name, a path, or a mapping; `overrides` are dotted keys as in `--set a.b=c`.

    `origins` names where an override was written when it was not `--set`. Raises ConfigError naming file, line, key
    and the nearest valid choice.
    """
    if isinstance(source, Mapping):
        document = Document(None, dict(source))
    else:
        document = load_yaml(find("scenario", str(source)))
    for key, value in (overrides or {}).items():
        document = _override(document, key, value, (origins or {}).get(key, "--set"))
    if not document.data.get("name") and document.path is not None:
        document = replace(document, data={**document.data, "name": document.path.stem})
    return LoadedScenario(scenario=validate(Scenario, document), document=document)


def parse_setting(text: str) -> tuple[str, Any]:
    """`engine.max_num_seqs=64` as a dotted key and a value; the value is read as YAML."""
    key, separator, value = (part.strip() for part in text.partition("="))
    if not separator or not all(key.split(".")):
        raise ConfigError("expected KEY=VALUE, such as engine.max_num_seqs=64", file="--set", key=text)
    try:
        return key, parse_value(value)
    except ConfigError as error:
        raise ConfigError(f"the value {error.problem}", file="--set", key=key, value=value) from error


def _override(document: Document, dotted: str, value: Any, origin: str) -> Document:
    key = tuple(dotted.split("."))
    with document.blamed(key):
        data = document.data
        if key[0] == "workload" and len(key) > 1 and isinstance(data.get("workload"), str):
            data = {**data, "workload": _written_out(data["workload"], document.path)}
        try:
            data = _with(data, key, 0, value)
        except ConfigError as error:
            raise error.placed(file=origin, line=None, key=dotted) from None
    lines = {at: line for at, line in document.lines.items() if tuple(map(str, at[: len(key)])) != key}
    return Document(document.path, data, lines, {**document.origins, key: origin})


def _with(here: Any, key: tuple[str, ...], depth: int, value: Any) -> Any:
    """`here` with the value at `key[depth:]` exchanged; mappings that are missing on the way are made."""
    if depth == len(key):
        return value
    part = key[depth]
    if isinstance(here, str) and key[depth - 1] in _POLICY_KEYS:
        here = {"kind": here}
    if isinstance(here, list) and part.isdecimal() and int(part) < len(here):
        return [_with(item, key, depth + 1, value) if i == int(part) else item for i, item in enumerate(here)]
    if here is not None and not isinstance(here, Mapping):
        raise ConfigError(f"{'.'.join(key[:depth])} is {here!r}, which has no key {part!r}")
    here = here or {}
    return {**here, part: _with(here.get(part), key, depth + 1, value)}


def _written_out(workload: str, beside: Path | None) -> dict[str, Any]:
    """A named workload as the mapping that may stand in its place, so that single keys of it can be overridden."""
    path = find("workload", workload, beside=beside)
    if path.suffix not in (".yaml", ".yml", ""):
        return {"trace": str(path)}
    data = load_yaml(path).data
    trace = data.get("trace")
    if isinstance(trace, str) and not Path(trace).expanduser().is_file():
        data["trace"] = str(path.parent / Path(trace).expanduser())
    return data
