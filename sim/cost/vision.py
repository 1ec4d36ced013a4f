"""What it costs to encode images: the operators of a vision tower, before the prompt that holds their tokens."""

from __future__ import annotations

from collections.abc import Iterator

from sim.cost.ops import OpCost
from sim.cost.roofline import Heads, Kernels, MatmulFormat, PrefillWork
from sim.specs.vision import VisionTower
from sim.units import ceil_div

_16_BIT = 2.0


class VisionEncoder:
    """Prices the encoding of images of one size on one GPU, in 16 bit: checkpoints leave the tower unquantised.

    Tensor parallelism cuts the layers as it does the language model's, with two all-reduces each (vLLM's default,
    `mm_encoder_tp_mode: weights`; from memory). Every patch sees the patches of its image, or of its window, in both
    directions: patches^2 or patches x window pairs per head and layer.
    """

    def __init__(self, tower: VisionTower, size: tuple[int, int], kernels: Kernels, dtype: str, tp: int = 1) -> None:
        self._tower, self._kernels, self._tp, self._dtype = tower, kernels, tp, dtype
        self._patches, self._tokens = tower.patches(*size), tower.tokens(*size)

    def encode(self, images: int) -> list[OpCost]:
        """The operators of a step that encodes so many images; their names begin with `vision`."""
        return [*self._products(images), *self._attention(images), *self._rest(images)]

    def _products(self, images: int) -> Iterator[OpCost]:
        tower, tp, rows = self._tower, self._tp, images * self._patches
        hidden, width = tower.hidden_size, ceil_div(tower.intermediate_size, tp)
        form = MatmulFormat(self._dtype, _16_BIT, _16_BIT, self._dtype)
        layers = [
            ("qkv", ceil_div(3 * hidden, tp), hidden), ("o", hidden, ceil_div(hidden, tp)),
            ("up", width * (2 if tower.gated else 1), hidden), ("down", hidden, width),
        ]  # fmt: skip
        yield OpCost("vision patches", 1, self._kernels.gemm(rows, tower.patch_inputs, hidden, form))
        for name, n, k in layers:
            yield OpCost(f"vision {name}", tower.layers, self._kernels.gemm(rows, k, n, form))
        for k, n in tower.projector:
            cost = self._kernels.gemm(images * self._tokens, k, ceil_div(n, tp), form)
            yield OpCost("vision projector", 1, cost)

    def _attention(self, images: int) -> Iterator[OpCost]:
        tower, rows = self._tower, images * self._patches
        heads, dim = ceil_div(tower.num_heads, self._tp), tower.hidden_size // tower.num_heads
        pair = 4.0 * heads * dim
        shape = Heads(heads, heads, dim, dim, 2 * heads * dim * _16_BIT, pair, pair, self._dtype)
        windowed = tower.layers - tower.full_layers if tower.window_patches else 0
        seen = {self._patches: tower.layers - windowed, min(tower.window_patches, self._patches): windowed}
        for patches, layers in seen.items():
            if layers:
                cost = self._kernels.prefill_attention(PrefillWork(rows, rows * patches, rows, patches), shape)
                yield OpCost("vision attention", layers, cost)

    def _rest(self, images: int) -> Iterator[OpCost]:
        tower, tp, rows = self._tower, self._tp, images * self._patches
        row = tower.hidden_size * _16_BIT
        yield OpCost("vision norm + residual", 2 * tower.layers, self._kernels.elementwise(rows * 4 * row))
        width = ceil_div(tower.intermediate_size, tp) * (3 if tower.gated else 2) * _16_BIT
        yield OpCost("vision activation", tower.layers, self._kernels.elementwise(rows * width))
        if tp > 1:
            cost = self._kernels.collective("all_reduce", rows * row, tp)
            yield OpCost("vision all-reduce", 2 * tower.layers, cost)
