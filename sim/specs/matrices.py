"""The weight matrices of a model: the one list behind parameter counts, weight bytes and the GEMMs of a step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from sim.specs.layout import ONE_GPU, Layout
from sim.units import ceil_div

Split = Literal["column", "row", "replicated"]
"""How tensor parallelism cuts Y[m,n] = X[m,k] W[k,n]: along n, along k, or not at all (Megatron-LM, Shoeybi et al.
2019, section 3)."""

TABLES = frozenset({"embed", "position"})
VECTORS = frozenset({"norm", "bias", "sink", "state"})


class WeightFormat(Protocol):
    """What the size of the weights depends on: how many bytes one parameter of a role takes, scales included."""

    def weight_bytes_per_parameter(self, role: str) -> float:
        """Bytes per parameter of the matrices with this role."""
        ...


@dataclass(frozen=True)
class WeightMatrix:
    """One kind of weight matrix W[k,n], used as Y[m,n] = X[m,k] W[k,n], and how many of them the model holds.

    `layers` is the number of layers that hold it; each of them holds `experts` copies, of which a token uses
    `experts_per_token`. The last `kv_columns` of the n columns belong to `kv_heads` key/value heads: tensor
    parallelism cannot cut a head, so beyond `kv_heads` GPUs they are replicated. A tied LM head is multiplied but
    not stored.
    """

    role: str
    k: int
    n: int
    layers: int = 1
    split: Split = "replicated"
    experts: int = 1
    experts_per_token: int = 1
    kv_columns: int = 0
    kv_heads: int = 0
    stored: bool = True

    @property
    def count(self) -> int:
        """Copies in the whole model: layers x experts."""
        return self.layers * self.experts

    @property
    def is_gemm(self) -> bool:
        """Whether a step multiplies by it; embeddings are looked up, norms and biases are element-wise."""
        return self.role not in TABLES and self.role not in VECTORS

    @property
    def is_expert(self) -> bool:
        """Whether it belongs to the routed experts, which expert parallelism spreads over GPUs."""
        return self.experts > 1

    @property
    def parameters(self) -> int:
        """Parameters of all copies that are stored."""
        return self.k * self.n * self.count if self.stored else 0

    @property
    def active_parameters(self) -> int:
        """Parameters that one token passes through: of the experts only those it is routed to."""
        return self.k * self.n * self.layers * self.experts_per_token if self.stored else 0

    def per_gpu(self, tp: int = 1) -> tuple[int, int]:
        """The (k, n) that one GPU of `tp` multiplies by; uneven cuts are rounded up, as engines pad."""
        if self.split == "row":
            return ceil_div(self.k, tp), self.n
        if self.split == "column":
            kv = ceil_div(self.kv_columns, min(tp, self.kv_heads)) if self.kv_heads else self.kv_columns
            return self.k, ceil_div(self.n - self.kv_columns, tp) + kv
        return self.k, self.n

    def parameters_per_gpu(self, layout: Layout = ONE_GPU) -> int:
        """Parameters one GPU stores: of the experts every `ep`-th, cut `moe_tp` ways."""
        if not self.stored:
            return 0
        k, n = self.per_gpu(layout.moe_tp if self.is_expert else layout.tp)
        return k * n * self.layers * (ceil_div(self.experts, layout.ep) if self.is_expert else 1)


def stored_bytes(matrices: Iterable[WeightMatrix], scheme: WeightFormat, layout: Layout = ONE_GPU) -> int:
    """Bytes one GPU stores for these matrices, all layers of them."""
    return sum(
        math.ceil(matrix.parameters_per_gpu(layout) * scheme.weight_bytes_per_parameter(matrix.role))
        for matrix in matrices
    )


def norm(size: int, *, bias: bool = False) -> WeightMatrix:
    """An RMSNorm over `size` elements, or a LayerNorm when it has a bias."""
    return WeightMatrix("norm", 2 if bias else 1, size)
