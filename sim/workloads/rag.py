"""Retrieval-augmented answers: passages are fetched and put before the question."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from sim.units import ceil_div
from sim.workloads.lengths import TokenCount
from sim.workloads.queries import ApplicationLaw, Call, Query, Question, pause_ps, whole_blocks
from sim.workloads.sessions import ThinkTime
from sim.workloads.sizes import HASH_BLOCK_TOKENS


class Rag(ApplicationLaw):
    """A question waits for retrieval; the prompt is the system prompt, the passages found, and the question.

    Which passages are found follows Zipf's law over the corpus, without repetition in one prompt. Prompts share KV as
    far as they begin alike, so the order of the passages decides what a prefix cache is worth: by relevance they stand
    as they are drawn, by `popularity` the ones that are found most often stand first.
    """

    kind: Literal["rag"] = "rag"
    documents: int = Field(default=10_000, ge=1, le=10_000_000, description="passages in the corpus")
    document_tokens: TokenCount = Field(default=512, description="of a passage, in whole blocks of 16")
    passages: int = Field(default=4, ge=1, le=1000, description="passages put into a prompt")
    popularity: float = Field(
        default=1.0, ge=0, le=10, description="exponent of Zipf's law: 0 is uniform, larger is more skewed"
    )
    order: Literal["relevance", "popularity"] = Field(default="relevance", description="of the passages in the prompt")
    retrieval_time_s: ThinkTime = Field(
        default=0.1, description="embedding, search and reranking: seconds, or {kind: exponential | lognormal, mean}"
    )
    rewrite_output_tokens: TokenCount | None = Field(
        default=None, description="a request before retrieval turns the question into a search of this length"
    )

    @property
    def most_calls(self) -> int:
        """The answer, and the rewriting of the question where there is one."""
        return 1 if self.rewrite_output_tokens is None else 2

    @property
    def mean_calls(self) -> float:
        """All queries are alike."""
        return float(self.most_calls)

    def query(self, question: Question) -> Query:
        """Rewrite (where asked for), retrieve, answer."""
        rng = question.rng
        found = _drawn(min(self.documents, self.passages), self.documents, self.popularity, rng)
        if self.order == "popularity":
            found = sorted(found)  # they are numbered by rank
        return _RagQuery(self, question, tuple(found), pause_ps(self.retrieval_time_s, rng))


@dataclass
class _RagQuery:
    law: Rag
    question: Question
    found: tuple[int, ...]
    retrieval_ps: int

    def begin(self) -> list[Call]:
        rewrite = self.law.rewrite_output_tokens
        if rewrite is None:
            return [self._answer()]
        asked = self.question.system_tokens + self.question.tokens
        return [Call(0, asked, rewrite, self.question.system)]

    def after(self, number: int, completed: bool) -> list[Call] | None:
        if not completed:
            return None
        return [self._answer()] if number + 1 < self.law.most_calls else []

    def _answer(self) -> Call:
        question, tokens = self.question, whole_blocks(self.law.document_tokens)
        blocks = ceil_div(tokens, HASH_BLOCK_TOKENS)
        hashes = [*question.system]
        for document in self.found:
            first = question.shared + document * blocks
            hashes += range(first, first + blocks)
        prompt = question.system_tokens + len(self.found) * tokens + question.tokens
        return Call(self.retrieval_ps, prompt, question.answer_tokens, tuple(hashes))


def _drawn(passages: int, documents: int, exponent: float, rng: np.random.Generator) -> list[int]:
    """Different documents in the order in which they are drawn."""
    found: dict[int, None] = {}
    bounds = _bounds(documents, exponent)
    while len(found) < passages:
        ranks = np.searchsorted(bounds, rng.random(2 * passages) * bounds[-1], side="right")
        found |= dict.fromkeys(np.minimum(ranks, documents - 1).tolist())
    return list(found)[:passages]


@lru_cache(maxsize=8)
def _bounds(documents: int, exponent: float) -> npt.NDArray[np.float64]:
    """Running sums of rank**-exponent."""
    return np.cumsum(np.arange(1, documents + 1, dtype=np.float64) ** -exponent)
