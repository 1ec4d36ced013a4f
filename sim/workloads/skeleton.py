"""Skeleton-of-Thought: an answer is outlined first, and its points are then written side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sim.request import Request, State, Traits
from sim.rng import stream
from sim.units import ceil_div
from sim.workloads.base import Workload
from sim.workloads.lengths import Lengths, TokenCount, law
from sim.workloads.sizes import HASH_BLOCK_TOKENS

MOST_POINTS = 255
_OWN_CONTENT = 1 << 40
"""Blocks of questions have hashes from here on; those of shared prefixes are smaller."""
_BLOCKS = 1 << 16


class SkeletonLaw(BaseModel):
    """How a question becomes a skeleton and its points (Ning et al., ICLR 2024)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    points: Lengths = Field(description="points of a skeleton: an integer or a law")
    tokens: Lengths = Field(description="length of the skeleton itself: an integer or a law")
    template_tokens: TokenCount = Field(default=1, description="what the prompt for the skeleton adds to the question")
    point_template_tokens: TokenCount = Field(default=1, description="what the prompt for a point adds to the skeleton")
    spread: float = Field(
        default=0.0, ge=0, le=2, description="standard deviation over mean of the points' lengths (a gamma law)"
    )


@dataclass
class _Question:
    """One question under way: what its client asked, and the points that are not answered yet."""

    request: Request
    skeleton: Request
    open: int = 0


class SkeletonOfThought:
    """Other traffic, every question of which is asked twice over: for a skeleton, then for all its points at once.

    The answers to the points are as long together as the answer to the question was; their prompts begin with the
    question and the skeleton, which a prefix cache finds again. The requests of question q have the ids
    `q * (MOST_POINTS + 1)` (the skeleton) and those that follow it. When the last point is answered, the client goes
    on; a question whose skeleton fails has no points.
    """

    has_prefixes = True

    def __init__(self, inner: Workload, skeleton: SkeletonLaw, *, seed: int = 0) -> None:
        self._inner, self._law, self._seed = inner, skeleton, seed
        self.num_requests = None
        self.notes = inner.notes
        self._open: dict[int, _Question] = {}  # by question

    def __iter__(self) -> Iterator[Request]:
        self._open = {}
        return map(self._ask, self._inner)

    def on_finish(self, request: Request, now_ps: int) -> Iterable[Request]:
        """The points, once the skeleton is there; what the client does next, once all points are answered."""
        number = request.id // (MOST_POINTS + 1)
        question = self._open[number]
        if request is question.skeleton and request.state is State.COMPLETED:
            points = self._points(question, now_ps)
            question.open = len(points)
            return points
        question.open -= 1
        if question.open > 0:
            return ()
        del self._open[number]
        question.request.state = request.state
        return map(self._ask, self._inner.on_finish(question.request, now_ps))

    def describe(self) -> dict[str, Any]:
        """The traffic as it is without, and how it is outlined."""
        return {**self._inner.describe(), "num_requests": None, "skeleton": self._law.model_dump(mode="json")}

    def _ask(self, request: Request) -> Request:
        tokens = self._draw("skeleton_tokens", self._law.tokens, request.id)
        prompt = request.prompt_tokens + self._law.template_tokens
        skeleton = Request(
            request.id * (MOST_POINTS + 1), request.arrival_ps, prompt, tokens,
            traits=self._traits(request, prompt + tokens, turn=0),
        )  # fmt: skip
        self._open[request.id] = _Question(request, skeleton)
        return skeleton

    def _points(self, question: _Question, now_ps: int) -> list[Request]:
        asked, skeleton = question.request, question.skeleton
        known = skeleton.prompt_tokens + skeleton._output_tokens
        traits = self._traits(asked, known, turn=1)
        prompt = known + self._law.point_template_tokens
        return [
            Request(skeleton.id + 1 + i, now_ps, prompt, tokens, traits=traits)
            for i, tokens in enumerate(self._lengths(asked))
        ]

    def _lengths(self, asked: Request) -> list[int]:
        """The answer's tokens dealt to the points, at least one each."""
        points = min(MOST_POINTS, self._draw("skeleton_points", self._law.points, asked.id))
        weights = np.ones(points)
        if self._law.spread:
            shape = 1.0 / self._law.spread**2
            weights = stream(self._seed, "point_tokens", asked.id).gamma(shape, size=points)
        ends = np.rint(np.cumsum(weights) / weights.sum() * asked._output_tokens).astype(int)
        return [max(1, tokens) for tokens in np.diff(ends, prepend=0).tolist()]

    def _traits(self, request: Request, tokens: int, turn: int) -> Traits:
        """The identity of the question and its skeleton, behind what the question shares with others."""
        traits = replace(request.traits, session=request.traits.session or str(request.id), turn=turn)
        if traits.prefix_block_tokens not in (0, HASH_BLOCK_TOKENS):
            return traits  # hashed in blocks of another length, as in some traces: the question alone is known
        shared = traits.prefix_hashes
        first = _OWN_CONTENT + request.id * _BLOCKS
        own = tuple(range(first + len(shared), first + ceil_div(tokens, HASH_BLOCK_TOKENS)))
        return replace(
            traits, prefix_hashes=(*shared, *own), prefix_block_tokens=HASH_BLOCK_TOKENS, hashes_output=turn == 0
        )  # fmt: skip

    def _draw(self, name: str, lengths: Any, question: int) -> int:
        return int(law(lengths).draw(stream(self._seed, name, question), 1)[0])
