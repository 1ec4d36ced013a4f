"""Techniques of attention and decoding as a scenario switches them on and off."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sim.cost.kernel_options import DEFAULT_KERNELS, FUSIONS, KernelOptions
from sim.presets import Seconds

SharedPrefixAttention = Literal["none", "relay", "hydragen"]
_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)


class KernelSpec(BaseModel):
    """What the kernels of a step do; the defaults are what the calibrated ones do."""

    model_config = _STRICT

    attention: Literal["flash", "standard"] = Field(
        default="flash", description="flash: scores stay on the chip; standard: they are written to memory and read"
    )
    split_kv: bool = Field(
        default=True, description="decode attention deals one sequence to several SMs (Flash-Decoding)"
    )
    latent_attention: Literal["absorbed", "expanded"] = Field(
        default="absorbed", description="MLA decode on the latent vectors, or on keys and values rebuilt from them"
    )
    fusion: list[Literal["norm", "activation", "rope", "qkv", "dequantization"]] | bool = Field(
        default=True, description="which groups of operators are one kernel; true: all, false: none"
    )
    cuda_graphs: bool = Field(default=True, description="a step is launched at once; false: --enforce-eager")
    launch_s: Seconds = Field(default=DEFAULT_KERNELS.launch_s, description="host time per kernel without CUDA graphs")
    pipeline_stages: int | None = Field(
        default=None, ge=1, le=16, description="tiles under way in a kernel; default: as the calibrated kernels"
    )

    def options(self) -> KernelOptions:
        """The same for the cost model."""
        fused = self.fusion
        groups = frozenset(fused) if isinstance(fused, list) else frozenset(FUSIONS if fused else ())
        return KernelOptions(
            self.attention, self.split_kv, self.latent_attention, groups, self.cuda_graphs, self.launch_s,
            self.pipeline_stages,
        )  # fmt: skip

    def resolved(self) -> dict[str, Any]:
        """What differs from the defaults, as it may be written again."""
        return {key: value for key, value in self.model_dump().items() if value != type(self).model_fields[key].default}
