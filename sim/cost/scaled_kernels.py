"""Kernels that are all slower or faster by a factor per operator class: of an engine, or for a run with error bars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sim.cost.collectives import Operation
from sim.cost.roofline import Cost, Experts, Heads, Kernels, MatmulFormat, PrefillWork
from sim.cost.schemes import gemm_scheme, kv_scheme

CLASSES = ("gemm", "moe", "attention_decode", "attention_prefill", "elementwise", "collective")


@dataclass(frozen=True)
class ScaledKernels:
    """The prices of `kernels`, times the factor of their operator class (1 where none is given).

    `moe/w4a16_mxfp4` is the factor of one format, as measured tables name it, and goes before that of its class.
    """

    kernels: Kernels
    factors: Mapping[str, float]

    @property
    def trust(self) -> str:
        """The label of what is scaled."""
        return self.kernels.trust

    def gemm(self, m: int, k: int, n: int, form: MatmulFormat) -> Cost:
        """Scaled."""
        return self._scaled("gemm", self.kernels.gemm(m, k, n, form), gemm_scheme(form))

    def experts(self, tokens: int, experts: Experts) -> Cost:
        """Scaled."""
        return self._scaled("moe", self.kernels.experts(tokens, experts), gemm_scheme(experts.format))

    def decode_attention(self, sequences: int, context_tokens: int, heads: Heads) -> Cost:
        """Scaled."""
        cost = self.kernels.decode_attention(sequences, context_tokens, heads)
        return self._scaled("attention_decode", cost, kv_scheme(heads))

    def prefill_attention(self, work: PrefillWork, heads: Heads) -> Cost:
        """Scaled."""
        return self._scaled("attention_prefill", self.kernels.prefill_attention(work, heads), kv_scheme(heads))

    def elementwise(self, bytes_moved: float) -> Cost:
        """Scaled."""
        return self._scaled("elementwise", self.kernels.elementwise(bytes_moved))

    def collective(self, operation: Operation, tensor_bytes: float, num_gpus: int) -> Cost:
        """Scaled."""
        return self._scaled("collective", self.kernels.collective(operation, tensor_bytes, num_gpus))

    def _scaled(self, op_class: str, cost: Cost, number_format: str = "") -> Cost:
        factor = self.factors.get(f"{op_class}/{number_format}") or self.factors.get(op_class, 1.0)
        return cost._replace(seconds=cost.seconds * factor)
