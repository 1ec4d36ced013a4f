"""Techniques of attention and decoding as a scenario switches them on and off."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sim.cost.kernel_options import DEFAULT_KERNELS, FUSIONS, KernelOptions
from sim.presets import Seconds

SharedPrefixAttention = Literal["none", "relay", "hydragen"]
_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)


Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


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
    fusion: list[Literal["norm", "activation", "rope", "qkv"]] | bool = Field(
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


class SpeculativeSpec(BaseModel):
    """Speculative decoding: who guesses, how many tokens, and how often the guesses are right."""

    model_config = _STRICT

    method: Literal["draft", "ngram", "medusa", "eagle", "mtp", "blockwise"] = Field(
        description="draft: a smaller model; ngram: prompt lookup; medusa or blockwise: heads; eagle or mtp: a layer"
    )
    num_speculative_tokens: int = Field(ge=1, le=64, description="depth to which tokens are guessed")
    acceptance: Rate | list[Rate] = Field(
        description="how often a guess behind right ones is right: a number, or one per depth"
    )
    acceptance_std: float = Field(
        default=0.0, ge=0, lt=0.5, description="standard deviation of that rate over sequences (a beta law)"
    )
    draft_model: str | None = Field(default=None, description="model that guesses, for method: draft")
    draft_tensor_parallel_size: int | None = Field(
        default=None, gt=0, description="GPUs that share the draft; default: as many as share the model"
    )
    tree: list[Annotated[int, Field(ge=1, le=256)]] | None = Field(
        default=None, description="guesses verified at each depth (SpecInfer, Medusa); default: one at each"
    )

    @property
    def rates(self) -> tuple[float, ...]:
        """How often a guess is right at each depth."""
        given, depth = self.acceptance, self.num_speculative_tokens
        return tuple(given) if isinstance(given, list) else (given,) * depth

    @property
    def query_tokens(self) -> int:
        """Tokens of a sequence that one step verifies: the last one and all guesses."""
        return 1 + sum(self.tree or [1] * self.num_speculative_tokens)

    @property
    def draft_rows(self) -> list[int]:
        """Tokens of a sequence that each pass of a draft takes: the last one, then the guesses of the depth before."""
        return [1, *(self.tree or [1] * self.num_speculative_tokens)[:-1]]

    @model_validator(mode="after")
    def _agrees(self) -> SpeculativeSpec:
        depth = self.num_speculative_tokens
        for key, given in (("acceptance", self.acceptance), ("tree", self.tree)):
            if isinstance(given, list) and len(given) != depth:
                raise ValueError(f"{key} has {len(given)} entries for {depth} num_speculative_tokens")
        if (self.draft_model is None) == (self.method == "draft"):
            raise ValueError("draft_model goes with method: draft, and only with it")
        if self.acceptance_std:
            if isinstance(self.acceptance, list):
                raise ValueError("acceptance_std needs one acceptance for all depths")
            if self.acceptance_std**2 >= self.acceptance * (1 - self.acceptance):
                raise ValueError("acceptance_std is more than a rate with this mean can spread")
        return self

    def resolved(self) -> dict[str, Any]:
        """What was said, as it may be written again."""
        return self.model_dump(exclude_defaults=True)
