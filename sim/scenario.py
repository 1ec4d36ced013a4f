"""The schema of a scenario file: one whole run, as people write it.

A policy stays `{kind, options}` here; `sim.build` turns names into objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sim.catalog import find
from sim.documents import Document, KeyPath, load_yaml, validate
from sim.errors import ConfigError
from sim.slo import check_slo

_STRICT = ConfigDict(frozen=True, extra="forbid")


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


class KVCacheSpec(BaseModel):
    """How KV memory is handed out."""

    model_config = _STRICT

    allocator: str = Field(default="paged", description="policy that hands out KV memory: paged")
    block_size: int | None = Field(default=None, gt=0, le=4096, description="tokens per KV block (vLLM --block-size)")
    enable_prefix_caching: bool | None = Field(
        default=None, description="share KV blocks of equal prompt prefixes (vLLM --enable-prefix-caching)"
    )


class EngineSpec(BaseModel):
    """The serving engine: vLLM's argument names; what is left out comes from the preset."""

    model_config = _STRICT

    preset: str = Field(default="vllm-v1", description="engine whose defaults fill what is left out")
    scheduler: Policy | None = Field(default=None, description="chunked or continuous (prefill first)")
    max_num_seqs: int | None = Field(default=None, gt=0, description="most sequences in one step")
    max_num_batched_tokens: int | None = Field(default=None, gt=0, description="most new tokens in one step")
    long_prefill_token_threshold: int | None = Field(
        default=None, ge=0, description="longest chunk of one prompt; 0: as long as the budget"
    )
    max_model_len: int | None = Field(
        default=None, gt=0, description="longest prompt plus output; default: the model's"
    )
    gpu_memory_utilization: float | None = Field(
        default=None, gt=0, le=1, description="share of the GPU's memory that the engine may use"
    )
    kv_cache: KVCacheSpec = Field(default_factory=KVCacheSpec, description="KV memory")
    kv_cache_dtype: str | None = Field(default=None, description="number format of the KV cache; auto: the model's")
    kv_cache_memory_bytes: int | None = Field(default=None, gt=0, description="KV bytes per GPU, instead of a share")
    num_gpu_blocks_override: int | None = Field(
        default=None, gt=0, description="KV blocks of a replica, for instance from a server's start-up log"
    )
    quantization: str | dict[str, str] | None = Field(
        default=None, description="vLLM's scheme name, or formats of {weights, activations, kv_cache}"
    )
    dtype: str = Field(default="auto", description="16-bit type of what is not quantised: auto, bfloat16 or float16")
    tensor_parallel_size: int = Field(default=1, gt=0, description="GPUs that share every layer")
    async_scheduling: bool | None = Field(default=None, description="plan a step while the one before it runs")

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str) -> str:
        known = {"auto": "auto", "bfloat16": "bfloat16", "bf16": "bfloat16", "float16": "float16", "half": "float16",
                 "fp16": "float16"}  # fmt: skip
        if value not in known:
            raise ValueError(f"{value!r} is not a 16-bit type; choose auto, bfloat16 or float16")
        return known[value]


class ReplicasSpec(BaseModel):
    """Copies of the model and who gets which request."""

    model_config = _STRICT

    count: int = Field(default=1, gt=0, le=32767, description="copies of the model, each on its own GPUs")
    router: Policy = Field(default=Policy(kind="round_robin"), description="which copy serves an arriving request")


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
    slo: dict[str, float] = Field(
        default_factory=dict, description="objectives such as ttft_p99_ms: 500 (ttft, tpot, itl, e2e, queue)"
    )
    seed: int = Field(default=0, ge=0, description="all random draws follow from it")

    @field_validator("slo")
    @classmethod
    def _known_objectives(cls, value: dict[str, float]) -> dict[str, float]:
        check_slo(value)
        return value


@dataclass(frozen=True)
class LoadedScenario:
    """A scenario together with where it was written, so that later errors can still point at file and line."""

    scenario: Scenario
    document: Document

    @property
    def path(self) -> Path | None:
        """The file it came from."""
        return self.document.path


def load_scenario(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> LoadedScenario:
    """A scenario from a shipped name, a path, or a mapping; `overrides` are dotted keys as in `--set a.b=c`.

    Raises ConfigError naming file, line, key and the nearest valid choice.
    """
    if isinstance(source, Mapping):
        document = Document(None, dict(source))
    else:
        document = load_yaml(find("scenario", str(source)))
    document = _override(document, overrides or {})
    if not document.data.get("name") and document.path is not None:
        document.data["name"] = document.path.stem
    return LoadedScenario(scenario=validate(Scenario, document), document=document)


def parse_setting(text: str) -> tuple[str, Any]:
    """`engine.max_num_seqs=64` as a dotted key and a value; the value is read as YAML."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError("expected KEY=VALUE, such as engine.max_num_seqs=64", key="--set", value=text)
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError("the value is not valid YAML", key=f"--set {key.strip()}", value=value) from error


def _override(document: Document, overrides: Mapping[str, Any]) -> Document:
    data = _copy(document.data)
    lines: dict[KeyPath, int] = dict(document.lines)
    for dotted, value in overrides.items():
        parts = tuple(dotted.split("."))
        here = data
        for i, part in enumerate(parts[:-1]):
            inner = here.get(part)
            if isinstance(inner, str) and part in ("scheduler", "router"):
                inner = {"kind": inner}
            if inner is not None and not isinstance(inner, dict):
                at = ".".join(parts[: i + 1])
                raise ConfigError(f"{at} is {inner!r}, which has no key {parts[i + 1]!r}", key=f"--set {dotted}")
            here[part] = here = _copy(inner) if isinstance(inner, dict) else {}
        here[parts[-1]] = value
        lines = {key: line for key, line in lines.items() if key[: len(parts)] != parts}
    return Document(document.path, data, lines)


def _copy(value: Any) -> Any:
    return {key: _copy(inner) for key, inner in value.items()} if isinstance(value, dict) else value
