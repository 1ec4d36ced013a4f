"""How the GPUs of one model copy share its work: tensor, pipeline, data and expert parallelism."""

from __future__ import annotations

from dataclasses import dataclass

from sim.units import ceil_div


@dataclass(frozen=True)
class Layout:
    """The GPUs of one copy of the model, and what each of them does.

    `tp` GPUs share every layer (Shoeybi et al. 2019). `pp` stages hold a part of the layers each and work on different
    micro-batches at a time (Huang et al. 2019). `dp` groups attend to different sequences but share the experts
    (attention data parallelism, SGLang 0.4 and vLLM). `ep` groups of GPUs hold whole experts of their own; within each
    the experts are cut as `moe_tp` says.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1

    @property
    def gpus(self) -> int:
        """GPUs of one copy of the model."""
        return self.tp * self.pp * self.dp

    @property
    def stage_gpus(self) -> int:
        """GPUs that work on the same layers: those that share the experts."""
        return self.tp * self.dp

    @property
    def moe_tp(self) -> int:
        """GPUs among which one expert is cut."""
        return self.stage_gpus // self.ep

    @property
    def lanes(self) -> int:
        """Parts into which a step's sequences are dealt: one per data-parallel group and micro-batch."""
        return self.dp * self.pp

    def fullest(self, tokens: int, longest_chunk: int = 0) -> int:
        """New tokens in the fullest lane: dealt evenly, but the chunk of one prompt is never cut."""
        return max(ceil_div(tokens, self.lanes), longest_chunk)


ONE_GPU = Layout()
"""No parallelism at all."""
