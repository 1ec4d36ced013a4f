"""Decoding sequences that advance by several tokens per step, each by its own number."""

from __future__ import annotations

import numpy as np

from sim.acceptance import Acceptance
from sim.batch import DecodeBatch
from sim.cost.shape import Span
from sim.increments import Increments
from sim.prefix_groups import PrefixGroups
from sim.request import Request


class SpeculativeBatch(DecodeBatch):
    """As `DecodeBatch`, where a step verifies `query_tokens` tokens of every member and keeps those that are right.

    How far each step takes a member is drawn when it joins, so the sums of all steps to come are known: a step adds the
    numbers that stand ready for it, whatever the size of the batch. Nothing is linear over several steps, so a replica
    takes them one by one.
    """

    # Without __slots__: `query_tokens` is an attribute of the class above.

    def __init__(
        self,
        acceptance: Acceptance,
        query_tokens: int,
        spans: tuple[Span, ...] = (),
        groups: PrefixGroups | None = None,
    ) -> None:
        super().__init__(spans, groups)
        self.query_tokens, self._acceptance = query_tokens, acceptance
        self._progress: dict[Request, list[int]] = {}  # tokens after 0, 1, 2, ... steps, by member
        self._stretches: dict[Request, int] = {}  # tokens of those that have left, until somebody asks
        self._context = Increments()
        self._local = [Increments() for _ in spans]

    def progress_of(self, request: Request) -> list[int]:
        """Tokens a member will have added after 0, 1, 2, ... steps since it joined."""
        return self._progress[request]

    def steps_to_end(self, request: Request) -> int:
        """Steps until the member has its last token."""
        return len(self._progress[request]) - 1

    def stretch_tokens(self, request: Request, steps: int) -> int:
        """Tokens that a request which has just left emitted since its prompt was computed."""
        return self._stretches.pop(request)

    def join(self, request: Request) -> None:
        """The prompt is computed: from the next step on the request decodes."""
        self._progress[request] = progress = self._acceptance.progress(request)
        request.joined_step = self.steps
        self.count += 1
        self.context_tokens += request.computed_tokens
        self._context.add(self.steps, np.diff(progress))
        for i, seen in enumerate(self._seen(request, progress)):
            self.local_tokens[i] += seen[0]
            self._local[i].add(self.steps, np.diff(seen))
        if self.groups is not None:
            self.groups.join(request)

    def leave(self, request: Request, delivered_step: int) -> None:
        """The request stops decoding; its counts become current."""
        progress = self._progress.pop(request)
        done = self.steps - request.joined_step
        self._context.add(self.steps, -np.diff(progress)[done:])
        for i, seen in enumerate(self._seen(request, progress)):
            self.local_tokens[i] -= seen[done]
            self._local[i].add(self.steps, -np.diff(seen)[done:])
        if self.groups is not None:
            self.groups.leave(request)
        request.computed_tokens += progress[done]
        emitted = progress[delivered_step - request.joined_step]
        self._stretches[request] = emitted + 1
        request.emitted_tokens += emitted
        self.count -= 1
        self.context_tokens -= request.computed_tokens
        request.joined_step = -1

    def advance(self, steps: int) -> None:
        """All members have done `steps` more steps."""
        for step in range(self.steps, self.steps + steps):
            self.context_tokens += self._context.at(step)
            for i, local in enumerate(self._local):
                self.local_tokens[i] += local.at(step)
        self.steps += steps
        self._context.forget(self.steps)
        for local in self._local:
            local.forget(self.steps)

    def context_of(self, request: Request) -> int:
        """Tokens in the cache of a member, now."""
        return request.computed_tokens + self._progress[request][self.steps - request.joined_step]

    def steps_to_crossing(self, limit: int) -> int:
        """One: sums over spans do not grow linearly."""
        return min(limit, 1)

    def _seen(self, request: Request, progress: list[int]) -> list[list[int]]:
        """What a member sees through each span after 0, 1, 2, ... steps."""
        computed = request.computed_tokens
        return [[span.visible(computed + tokens) for tokens in progress] for span in self.spans]
