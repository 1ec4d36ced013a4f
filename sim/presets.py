"""Engine presets: the defaults of a serving engine, which may depend on the GPU."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema

from sim.catalog import find
from sim.documents import load_yaml, validate
from sim.specs.hardware import Gpu
from sim.units import GIB, SECONDS, quantity

OperatorClass = Annotated[
    str, Field(pattern=r"^(gemm|moe|attention_decode|attention_prefill|elementwise|collective)(/[a-z0-9_]+)?$")
]
"""`moe`, or `moe/fp8_block` for one number format."""
_FROZEN = ConfigDict(frozen=True, extra="forbid")
_LARGE_GPU_BYTES = 70 * GIB

Seconds = Annotated[
    float,
    BeforeValidator(lambda raw: quantity(raw, SECONDS) if isinstance(raw, (str, int, float)) else raw),
    Field(ge=0, allow_inf_nan=False),
    WithJsonSchema({"type": ["string", "number"], "description": "a time such as '264 us'; a bare number is seconds"}),
]
"""A length of time as people write it, in seconds."""


class Policy(BaseModel):
    """A policy and its options: `chunked`, or `{kind: chunked, ...}`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str = Field(description="name of the policy")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, raw: Any) -> Any:
        return {"kind": raw} if isinstance(raw, str) else raw

    @property
    def options(self) -> dict[str, Any]:
        """Everything beside the name."""
        return dict(self.model_extra or {})

    def as_dict(self) -> dict[str, Any]:
        """Name and options as they may be written."""
        return {"kind": self.kind, **self.options}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler(core)]}


class HostDefaults(BaseModel):
    """Time of the engine around the GPU that is not hidden behind it: between steps, and before and after them."""

    model_config = _FROZEN

    step_s: Seconds = Field(default=0.0, description="per step")
    sequence_s: Seconds = Field(default=0.0, description="per sequence and step")
    token_s: Seconds = Field(default=0.0, description="per new token of a step")
    request_s: Seconds = Field(default=0.0, description="per request, between client and scheduler, there and back")
    prompt_token_s: Seconds = Field(default=0.0, description="per prompt token, tokenised one request after the other")


class SamplerDefaults(BaseModel):
    """What drawing from the likeliest tokens only (top-k, top-p) adds to a step: the logits are sorted."""

    model_config = _FROZEN

    filter_s: Seconds = Field(default=0.0, description="per step: the launches of many small kernels")
    filter_bytes_per_logit: float = Field(default=0.0, ge=0, description="memory traffic per logit")


class LargeGpuDefaults(BaseModel):
    """What differs on GPUs with at least 70 GiB that are not an A100 (vLLM's rule)."""

    model_config = _FROZEN

    max_num_seqs: int = Field(gt=0)
    max_num_batched_tokens: int = Field(gt=0)


class PrefixCacheDefaults(BaseModel):
    """How the prefix cache of an engine matches and evicts."""

    model_config = _FROZEN

    match: str = "hash_block"
    eviction: Literal["lru", "lfu"] = "lru"


class EnginePreset(BaseModel):
    """Defaults for every key of `engine:` that a scenario leaves out."""

    model_config = _FROZEN

    description: str
    scheduler: Policy
    allocator: Policy = Policy(kind="paged")
    max_num_seqs: int = Field(gt=0)
    max_num_batched_tokens: int = Field(gt=0)
    on_large_gpus: LargeGpuDefaults | None = None
    gpu_memory_utilization: float = Field(gt=0, le=1)
    memory_budget: Literal["vllm", "sglang", "tensorrt-llm"]
    stack: str = Field(default="vllm", description="software stack whose kernels price the steps, where measured")
    block_size: int = Field(gt=0)
    enable_prefix_caching: bool
    watermark: float = Field(default=0.0, ge=0, lt=1, description="share of KV blocks kept free at admission")
    prefix_cache: PrefixCacheDefaults = PrefixCacheDefaults()
    async_scheduling: bool
    long_prefill_token_threshold: int = Field(ge=0)
    host: HostDefaults = HostDefaults()
    sampler: SamplerDefaults = SamplerDefaults()
    kernel_factors: dict[OperatorClass, Annotated[float, Field(gt=0)]] = Field(
        default={},
        description="times of this engine's kernels over the measured ones: class, or class/format",
    )

    def limits(self, gpu: Gpu) -> tuple[int, int]:
        """(max_num_seqs, max_num_batched_tokens) that the engine chooses on this GPU."""
        large = gpu.memory_visible_bytes >= _LARGE_GPU_BYTES and not gpu.name.startswith("a100")
        chosen = self.on_large_gpus if large and self.on_large_gpus is not None else self
        return chosen.max_num_seqs, chosen.max_num_batched_tokens


def load_preset(name: str) -> EnginePreset:
    """A shipped preset. Raises ConfigError with the nearest names."""
    return validate(EnginePreset, load_yaml(find("preset", name)))
