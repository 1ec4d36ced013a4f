"""How much of a roof an operator reaches when nobody has calibrated it: three constants per operator class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from sim.units import SECONDS, quantity

Seconds = Annotated[float, BeforeValidator(lambda raw: quantity(raw, SECONDS)), Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]
_ANY_OF_THEM: JsonDict = {"required": []}
"""In a profile only what differs from the defaults need be written."""


class OpEfficiency(BaseModel):
    """What one operator class reaches: `seconds = floor + max(flops / (peak x f), bytes / (bandwidth x g))`."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_ANY_OF_THEM)

    launch_floor_s: Seconds = Field(description="shortest time of one operator inside a CUDA graph, such as '3 us'")
    tensor_fraction: Fraction = Field(description="share of the dense tensor peak that a large operator reaches")
    bandwidth_fraction: Fraction = Field(description="share of the memory bandwidth that a streaming operator reaches")


class LinkEfficiency(BaseModel):
    """What a collective reaches of the link it runs over."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_ANY_OF_THEM)

    launch_floor_s: Seconds = Field(description="time of a collective that carries next to nothing")
    link_fraction: Fraction = Field(description="share of the one-way link rate that a large collective reaches")


_GEMM = OpEfficiency(launch_floor_s=3e-6, tensor_fraction=0.70, bandwidth_fraction=0.80)
_ATTENTION_PREFILL = OpEfficiency(launch_floor_s=11e-6, tensor_fraction=0.50, bandwidth_fraction=0.80)
_ATTENTION_DECODE = OpEfficiency(launch_floor_s=12e-6, tensor_fraction=0.40, bandwidth_fraction=0.75)
_MOE = OpEfficiency(launch_floor_s=35e-6, tensor_fraction=0.40, bandwidth_fraction=0.75)
_ELEMENTWISE = OpEfficiency(launch_floor_s=3e-6, tensor_fraction=0.06, bandwidth_fraction=0.80)
_COLLECTIVE = LinkEfficiency(launch_floor_s=5e-6, link_fraction=0.75)


class Efficiency(BaseModel):
    """The fall-back for a GPU without a calibration: datasheet rates times a constant, per operator class.

    Write only the constants that differ, as `efficiency: {gemm: {tensor_fraction: 0.65}}`; the others keep the
    defaults. A result computed with these carries the trust label `datasheet`.

    Where the defaults come from: 0.80 of the memory bandwidth and 3 us per operator are aiconfigurator's own fit for
    all GPUs it knows. The rest is rounded from least-squares fits of these three constants to the kernel tables that
    aiconfigurator publishes for A100, H100 and H200 (vLLM 0.14 and 0.24, bf16; repository commit 095f58a51c4c):
    GEMM 0.74 to 0.78 of the peak and 0.72 to 0.83 of the bandwidth, rounded down because long runs throttle;
    prefill attention 0.48 to 0.50 and 11 to 13 us for the whole layer call; decode attention 0.70 to 0.83 of the
    bandwidth and 13 to 19 us; fused experts 0.25 to 0.44, 0.68 to 0.80 and 33 to 44 us; all-reduce inside a CUDA graph
    4 to 6 us and 0.66 to 0.78 of the one-way link rate on 2 and 4 GPUs. FP8 GEMMs, timed with their activation
    quantisation, reach only 0.44 to 0.47 of the FP8 peak: calibrate before trusting 8-bit prefill.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gemm: OpEfficiency = _GEMM
    attention_prefill: OpEfficiency = _ATTENTION_PREFILL
    attention_decode: OpEfficiency = _ATTENTION_DECODE
    moe: OpEfficiency = _MOE
    elementwise: OpEfficiency = Field(
        default=_ELEMENTWISE,
        description="norms, rotary, activations, KV writes; they run on CUDA cores, about 1/16 of the tensor peak "
        "(A100: 19.5 of 312 TFLOP/s)",
    )
    collective: LinkEfficiency = _COLLECTIVE
    source: str = Field(default="package defaults", min_length=1, description="where these constants come from")

    @model_validator(mode="before")
    @classmethod
    def _keep_unwritten_defaults(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        return {key: _over_default(cls, key, value) for key, value in raw.items()}


def _over_default(schema: type[BaseModel], key: Any, value: Any) -> Any:
    default = schema.model_fields[key].default if key in schema.model_fields else None
    if isinstance(value, Mapping) and isinstance(default, BaseModel):
        return {**default.model_dump(), **value}
    return value


DEFAULT_EFFICIENCY = Efficiency()
"""Used for every profile without an `efficiency:` block."""
