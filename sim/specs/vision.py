"""Vision towers: what turns an image into tokens of a language model, as integers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class VisionTower:
    """A vision transformer over square patches, and the projector into the language model's width.

    Patches are `patch` pixels a side; `merge` x `merge` of them become one token. With `image_size` every image is
    scaled to that many pixels a side (LLaVA-1.5: CLIP at 336); without, it keeps its shape, in multiples of a token's
    pixels and between `least_pixels` and `most_pixels` in all (Qwen2-VL, arXiv 2409.12191, section 2.1).
    """

    layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    patch: int
    output_size: int
    gated: bool = False
    merge: int = 1
    image_size: int | None = None
    least_pixels: int = 0
    most_pixels: int = 2**62
    channels: int = 3
    frames: int = 1
    """Frames that a patch spans; a still image is repeated."""
    class_token: bool = False
    """Whether one more token than there are patches passes through the layers (CLIP)."""
    window_patches: int = 0
    """Patches that see each other in windowed layers; 0: all layers see the whole image."""
    full_layers: int = 0
    """Layers that see the whole image where the others have windows."""
    projector: tuple[tuple[int, int], ...] = ()
    """Shapes (k, n) of the projector's matrices, applied to every token."""

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of patches of an image, after it has been scaled as the model's preprocessor does."""
        if self.image_size is not None:
            side = self.image_size // self.patch
            return side, side
        unit = self.patch * self.merge
        rows, columns = (max(1, round(side / unit)) for side in (height, width))
        pixels = rows * columns * unit * unit
        if pixels > self.most_pixels:
            shrink = math.sqrt(height * width / self.most_pixels)
            rows, columns = (max(1, math.floor(side / shrink / unit)) for side in (height, width))
        elif pixels < self.least_pixels:
            grow = math.sqrt(self.least_pixels / (height * width))
            rows, columns = (math.ceil(side * grow / unit) for side in (height, width))
        return rows * self.merge, columns * self.merge

    def patches(self, width: int, height: int) -> int:
        """Rows of the tower's matrix products for an image."""
        rows, columns = self.grid(width, height)
        return rows * columns + self.class_token

    def tokens(self, width: int, height: int) -> int:
        """Tokens of the language model's prompt that an image becomes."""
        rows, columns = self.grid(width, height)
        return rows * columns // self.merge**2

    @property
    def patch_inputs(self) -> int:
        """Numbers in a patch."""
        return self.channels * self.frames * self.patch**2

    @cached_property
    def parameters(self) -> int:
        """Of the matrices: patch embedding, layers and projector; norms and biases are less than a thousandth."""
        hidden = self.hidden_size
        mlp = (3 if self.gated else 2) * hidden * self.intermediate_size
        return (
            self.patch_inputs * hidden
            + self.layers * (4 * hidden * hidden + mlp)
            + sum(k * n for k, n in self.projector)
        )
