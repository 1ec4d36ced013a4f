"""GraphRAG's global search: every community of a corpus is asked, and one request makes an answer of their answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from sim.units import ceil_div
from sim.workloads.lengths import Lengths, TokenCount, law
from sim.workloads.queries import ApplicationLaw, Call, Query, Question, whole_blocks
from sim.workloads.sizes import HASH_BLOCK_TOKENS


class GraphRag(ApplicationLaw):
    """Map and reduce over community summaries (Edge et al. 2024, arXiv 2404.16130, section 2).

    The map requests of a query are sent at once: system prompt, the summaries of one community, the question. The
    summaries stand before the question and are the same for every question, so a prefix cache finds them again. When
    all have ended, the reduce request is sent: system prompt, the map answers, the question; `output_tokens` is its
    answer. Maps that fail are left out; a query fails when all do, or the reduce.
    """

    kind: Literal["graph_rag"] = "graph_rag"
    communities: int = Field(default=8, ge=1, le=4096, description="map requests of a query")
    community_tokens: TokenCount = Field(default=8000, description="summaries in a map request, in whole blocks of 16")
    map_output_tokens: Lengths = Field(default=256, description="answer of a map request: an integer, or a law")

    @property
    def most_calls(self) -> int:
        """The maps and the reduce."""
        return self.communities + 1

    @property
    def mean_calls(self) -> float:
        """All queries are alike."""
        return float(self.most_calls)

    def query(self, question: Question) -> Query:
        """The maps of a question."""
        answers = law(self.map_output_tokens).draw(question.rng, self.communities)
        return _MapReduce(self, question, [int(tokens) for tokens in answers])


@dataclass
class _MapReduce:
    law: GraphRag
    question: Question
    answers: list[int]
    usable: list[int] = field(default_factory=list)
    ended: int = 0

    def begin(self) -> list[Call]:
        question, tokens = self.question, whole_blocks(self.law.community_tokens)
        blocks = ceil_div(tokens, HASH_BLOCK_TOKENS)
        prompt = question.system_tokens + tokens + question.tokens
        first = [question.shared + i * blocks for i in range(self.law.communities)]
        return [
            Call(0, prompt, output, (*question.system, *range(start, start + blocks)))
            for start, output in zip(first, self.answers, strict=True)
        ]

    def after(self, number: int, completed: bool) -> list[Call] | None:
        if number == self.law.communities:
            return [] if completed else None
        self.ended += 1
        if completed:
            self.usable.append(self.answers[number])
        if self.ended < self.law.communities:
            return []
        if not self.usable:
            return None
        question = self.question
        prompt = question.system_tokens + sum(self.usable) + question.tokens
        return [Call(0, prompt, question.answer_tokens, question.system)]
