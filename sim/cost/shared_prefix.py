"""Steps in which attention to shared beginnings of prompts is computed for all sequences at once."""

from __future__ import annotations

from sim.cost.ops import ForwardPass, OpCost
from sim.cost.shape import RunShape, Span
from sim.cost.step_timer import StepPricer
from sim.cost.step_times import Piece, StepTimes
from sim.units import PS_PER_S


class SharedPrefixTimer:
    """The steps of `inner`, in which decode attention sees what is not shared, and a product sees the rest.

    Groups change only when sequences join or leave, so the product takes the same time in all steps of a run.
    """

    def __init__(self, inner: StepPricer) -> None:
        self._inner = inner
        self._product_ps: dict[tuple[int, int, int], int] = {}

    @property
    def forward(self) -> ForwardPass:
        """The forward pass that is priced."""
        return self._inner.forward

    @property
    def spans(self) -> tuple[Span, ...]:
        """The attention spans whose sums a shape must carry, in this order."""
        return self._inner.spans

    def run(self, shape: RunShape, max_steps: int) -> StepTimes:
        """Times of up to `max_steps` steps (of one, when there are chunks)."""
        stored, covered = shape.shared
        if not stored or not shape.decodes:
            return self._inner.run(shape, max_steps)
        key = shape.decodes, stored, covered
        product = self._product_ps.get(key)
        if product is None:
            seconds = sum(op.seconds for op in self.forward.shared_prefix(*key))
            product = self._product_ps[key] = round(seconds * PS_PER_S)
        shape.context_tokens -= covered
        times = self._inner.run(shape, max_steps)
        shape.context_tokens += covered
        return longer(times, product)

    def explain(self, shape: RunShape) -> list[OpCost]:
        """The operators of the first step of a shape."""
        stored, covered = shape.shared
        if not stored or not shape.decodes:
            return self._inner.explain(shape)
        shape.context_tokens -= covered
        ops = self._inner.explain(shape)
        shape.context_tokens += covered
        return ops + self.forward.shared_prefix(shape.decodes, stored, covered)

    def host_seconds(self, tokens: int, sampled: int) -> float:
        """Exposed host time of a step."""
        return self._inner.host_seconds(tokens, sampled)


def longer(times: StepTimes, by_ps: int) -> StepTimes:
    """The same steps, each longer by so much."""
    pieces: list[Piece] = [
        (done, start + done * by_ps, first + by_ps, slope, steps) for done, start, first, slope, steps in times.pieces
    ]
    return StepTimes(times.steps, times.total_ps + times.steps * by_ps, pieces)
