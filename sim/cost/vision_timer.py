"""Steps in which images are encoded before the prompts that hold them."""

from __future__ import annotations

from sim.cost.ops import ForwardPass, OpCost
from sim.cost.shape import RunShape, Span
from sim.cost.step_timer import StepPricer
from sim.cost.step_times import StepTimes, one_step
from sim.cost.vision import VisionEncoder
from sim.units import PS_PER_S


class VisionTimer:
    """Another timer's steps, and the vision encoder in front of those that begin a prompt with images.

    The encoder runs in the step that computes an image's first token, all its images together, before the language
    model (vLLM V1 runs it inside the step as well). A prompt that is computed again is seen again.
    """

    def __init__(self, inner: StepPricer, encoder: VisionEncoder) -> None:
        self._inner, self._encoder = inner, encoder
        self._encode_ps: dict[int, int] = {}

    @property
    def forward(self) -> ForwardPass:
        """The language model's."""
        return self._inner.forward

    @property
    def spans(self) -> tuple[Span, ...]:
        """The language model's."""
        return self._inner.spans

    def host_seconds(self, tokens: int, sampled: int) -> float:
        """Exposed host time of a step; what the host does to images is not priced."""
        return self._inner.host_seconds(tokens, sampled)

    def run(self, shape: RunShape, max_steps: int) -> StepTimes:
        """Times of up to `max_steps` steps (of one, when there are chunks)."""
        times = self._inner.run(shape, max_steps)
        if not shape.chunks or not shape.images:
            return times
        return one_step(times.total_ps + self._encoding_ps(shape.images))

    def _encoding_ps(self, images: int) -> int:
        found = self._encode_ps.get(images)
        if found is None:
            seconds = sum(op.seconds for op in self._vision(images)) if images else 0.0
            self._encode_ps[images] = found = round(seconds * PS_PER_S)
        return found

    def images_in(self, shape: RunShape, duration_ps: int) -> int:
        """The number of images with which a step of this shape lasts about so long."""
        if not shape.chunks:
            return 0
        left = duration_ps - self._inner.run(shape, 1).total_ps
        images = 0
        while abs(left - self._encoding_ps(images + 1)) < abs(left - self._encoding_ps(images)):
            images += 1
        return images

    def explain(self, shape: RunShape) -> list[OpCost]:
        """The operators of the first step of a shape, those of the vision tower behind the others."""
        ops = self._inner.explain(shape)
        return ops + self._vision(shape.images) if shape.chunks and shape.images else ops

    def _vision(self, images: int) -> list[OpCost]:
        """Images go to the lanes of data-parallel groups and pipeline stages as sequences do."""
        return self._encoder.encode(self.forward.layout.fullest(images))
