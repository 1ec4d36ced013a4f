"""Agents: a model calls tools until it knows the answer, and its context grows with everything they return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from sim.units import ceil_div
from sim.workloads.lengths import Lengths, TokenCount, law
from sim.workloads.queries import ApplicationLaw, Call, Query, Question, pause_ps
from sim.workloads.sessions import ThinkTime
from sim.workloads.sizes import HASH_BLOCK_TOKENS


class Agent(ApplicationLaw):
    """A loop of thought, action and observation (ReAct, Yao et al. 2023), as LangChain and LlamaIndex run it.

    The first prompt is the system prompt (`shared_prefix`: instructions and tool descriptions) and the task; each later
    one is the prompt before it, the action that was written, and what the tool returned after `tool_time_s`. The last
    request writes the answer (`output_tokens`). A task whose next prompt does not fit `max_model_len` fails, as one
    does whose request fails.
    """

    kind: Literal["agent"] = "agent"
    steps: Lengths = Field(default=5, description="requests per task, the answer included: an integer, or a law")
    most_steps: int = Field(default=64, ge=1, le=4096, description="a task gets no more requests than this")
    action_tokens: Lengths = Field(default=100, description="written in each step but the last: an integer, or a law")
    observation_tokens: Lengths = Field(default=500, description="returned by a tool: an integer, or a law")
    tool_time_s: ThinkTime = Field(
        default=1.0, description="of a tool: seconds, or {kind: exponential | lognormal, mean}"
    )
    parallel_tools: TokenCount = Field(
        default=1, description="tools called at once; the slowest is waited for, and all their observations come back"
    )

    @property
    def most_calls(self) -> int:
        """As many as steps."""
        return self.most_steps

    @property
    def mean_calls(self) -> float:
        """Mean of the law of steps, cut at `most_steps`."""
        return min(law(self.steps).mean_tokens, float(self.most_steps))

    def query(self, question: Question) -> Query:
        """A task with all its steps drawn."""
        rng, tools = question.rng, self.parallel_tools
        steps = min(int(law(self.steps).draw(rng, 1)[0]), self.most_steps)
        actions = law(self.action_tokens).draw(rng, max(steps - 1, 0)).tolist()
        seen = law(self.observation_tokens).draw(rng, max(steps - 1, 0) * tools).reshape(-1, tools).sum(axis=1).tolist()
        pauses = [max(pause_ps(self.tool_time_s, rng) for _ in range(tools)) for _ in range(steps - 1)]
        return _Task(question, [*zip(actions, seen, pauses, strict=True)])


@dataclass
class _Task:
    question: Question
    rounds: list[tuple[int, int, int]]
    """Action, observation, and the tool's time of every step but the last."""
    prompt: int = 0
    at: int = 0

    def begin(self) -> list[Call]:
        self.prompt = self.question.system_tokens + self.question.tokens
        return [self._call(0)]

    def after(self, number: int, completed: bool) -> list[Call] | None:
        if not completed:
            return None
        if self.at == len(self.rounds):
            return []
        action, seen, pause = self.rounds[self.at]
        self.at += 1
        self.prompt += action + seen
        call, limit = self._call(pause), self.question.max_model_len
        return None if limit is not None and call.prompt_tokens + call.output_tokens > limit else [call]

    def _call(self, delay_ps: int) -> Call:
        question = self.question
        output = self.rounds[self.at][0] if self.at < len(self.rounds) else question.answer_tokens
        own = ceil_div(self.prompt + output, HASH_BLOCK_TOKENS) - len(question.system)
        hashes = (*question.system, *range(question.own, question.own + own))
        return Call(delay_ps, self.prompt, output, hashes, hashes_output=True)
