"""What guessing tokens costs: the passes of a draft model or the heads that guess, and the step that verifies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sim.cost.ops import ForwardPass, OpCost
from sim.cost.shape import Chunk, RunShape, Span
from sim.cost.step_timer import StepPricer
from sim.cost.step_times import StepTimes, one_step
from sim.units import PS_PER_S

Rows = Callable[[int], list[OpCost]]
"""Operators that work on so many rows."""


class Guesser(Protocol):
    """Prices the guesses of one step."""

    def ps(self, shape: RunShape) -> int:
        """Time to guess for all decoding sequences of a step, and to follow its prompts, in picoseconds."""
        ...

    def explain(self, shape: RunShape) -> list[OpCost]:
        """The operators behind it."""
        ...


class Lookup:
    """Guesses found in the prompt and the answer so far (n-grams): no work for the GPU."""

    def ps(self, shape: RunShape) -> int:
        """Nothing."""
        return 0

    def explain(self, shape: RunShape) -> list[OpCost]:
        """Nothing."""
        return []


class Heads:
    """Heads on the model's last hidden state, all at once (Medusa; blockwise parallel decoding)."""

    def __init__(self, heads: Rows, rows_per_sequence: int = 1) -> None:
        self._heads, self._rows = heads, rows_per_sequence
        self._known: dict[int, int] = {}

    def ps(self, shape: RunShape) -> int:
        """One pass of every head."""
        count = shape.decodes
        if count not in self._known:
            self._known[count] = round(sum(op.seconds for op in self.explain(shape)) * PS_PER_S)
        return self._known[count]

    def explain(self, shape: RunShape) -> list[OpCost]:
        """Products with the matrices of the heads."""
        return self._heads(shape.decodes * self._rows) if shape.decodes else []


@dataclass(frozen=True)
class DraftPasses:
    """A smaller model, or a layer of its own (EAGLE, MTP), that guesses one depth after the other.

    `passes[i]` prices the pass that yields the guesses of depth i + 1; it takes `rows[i]` tokens of every sequence: the
    last one, or with a tree the guesses of the depth before. The first pass also follows the prompts of the step, so
    that the draft has seen what the model has. `more`: what a pass does besides.
    """

    passes: Sequence[StepPricer]
    rows: Sequence[int]
    more: Rows | None = None

    def ps(self, shape: RunShape) -> int:
        """All passes, one after the other."""
        total = sum(timer.run(at, 1).total_ps for timer, at in self._steps(shape))
        return total + round(sum(op.seconds for op in self._more(shape)) * PS_PER_S)

    def explain(self, shape: RunShape) -> list[OpCost]:
        """The operators of all passes."""
        ops = [op for timer, at in self._steps(shape) for op in timer.explain(at)]
        return [op._replace(name=f"draft {op.name}") for op in ops + self._more(shape)]

    def _steps(self, shape: RunShape) -> list[tuple[StepPricer, RunShape]]:
        if not shape.decodes:
            return [(self.passes[0], self._shape(shape, 0, shape.chunks))]
        return [(p, self._shape(shape, i, () if i else shape.chunks)) for i, p in enumerate(self.passes)]

    def _shape(self, shape: RunShape, depth: int, chunks: Sequence[Chunk]) -> RunShape:
        """The draft's own step: contexts are longer by the guesses so far, and taken as equal under its windows."""
        count = shape.decodes
        context, spans = shape.context_tokens + depth * count, self.passes[depth].spans
        return RunShape(count, context, chunks, visible_sums(spans, count, context), [0] * len(spans))

    def _more(self, shape: RunShape) -> list[OpCost]:
        if self.more is None or not shape.decodes:
            return []
        return [op for rows in self.rows for op in self.more(shape.decodes * rows)]


def visible_sums(spans: Sequence[Span], count: int, context_tokens: int) -> list[int]:
    """What `count` sequences of equal length see through each span."""
    return [count * span.visible(context_tokens // count) if count else 0 for span in spans]


class SpeculativeTimer:
    """A step that guesses, then verifies; each follows from its own operators.

    `verify` prices the model's pass over the last token and the guesses of every sequence
    (`Choices.query_tokens`). Each sequence advances by a number of its own, so runs are single steps.
    """

    def __init__(self, verify: StepPricer, guesser: Guesser) -> None:
        self._verify, self._guesser = verify, guesser

    @property
    def forward(self) -> ForwardPass:
        """The pass that verifies."""
        return self._verify.forward

    @property
    def spans(self) -> tuple[Span, ...]:
        """The attention spans whose sums a shape must carry, in this order."""
        return self._verify.spans

    def run(self, shape: RunShape, max_steps: int) -> StepTimes:
        """The time of one step."""
        return one_step(self._verify.run(shape, 1).total_ps + self._guesser.ps(shape))

    def explain(self, shape: RunShape) -> list[OpCost]:
        """The operators of both parts."""
        return self._verify.explain(shape) + self._guesser.explain(shape)

    def host_seconds(self, tokens: int, sampled: int) -> float:
        """Exposed host time of a step."""
        return self._verify.host_seconds(tokens, sampled)
