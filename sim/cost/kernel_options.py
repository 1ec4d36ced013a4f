"""Which kernels an engine runs: attention with or without its scores in memory, what is fused, how launches happen."""

from __future__ import annotations

from dataclasses import dataclass

FUSIONS = ("norm", "activation", "rope", "qkv")
"""Groups of operators that engines fuse: residual add and RMSNorm; the MLP's activation and product; rotary embedding
of queries and keys; the three projections of attention. Conversions of quantised operands are the number format's
(`QuantScheme.fuse`)."""


@dataclass(frozen=True)
class KernelOptions:
    """What is switched on. The defaults are what the calibrated kernels of today's engines do, and change no price."""

    attention: str = "flash"
    """`flash`: scores stay on the chip (Dao et al. 2022). `standard`: they are written to memory and read again."""
    split_kv: bool = True
    """Decode deals the cache of one sequence to several blocks (Flash-Decoding) when there are SMs to spare."""
    latent_attention: str = "absorbed"
    """MLA in decode, on the latent vectors themselves (`absorbed`) or on keys and values rebuilt from them
    (`expanded`)."""
    fusion: frozenset[str] = frozenset(FUSIONS)
    cuda_graphs: bool = True
    """Whether the launches of a step are one replay; else each is made by the host."""
    launch_s: float = 34e-6
    """Host time per kernel without CUDA graphs, with the Python that leads to it. gpt-fast's eager Llama-7B on an A100
    takes 39 ms per token (25.5 tokens/s, PyTorch blog "Accelerating generative AI with PyTorch II", 2023, as quoted by
    others) for the 1155 kernels that it has here when nothing is fused. A C++ engine needs 2 to 4 us."""
    pipeline_stages: int | None = None
    """Tiles of a kernel that are loaded or computed at once; None: as the calibrated kernels do."""


DEFAULT_KERNELS = KernelOptions()
