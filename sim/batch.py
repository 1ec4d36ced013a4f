"""The decoding sequences of a replica as aggregates, so that a step costs the same whatever their number."""

from __future__ import annotations

import heapq

from sim.cost.shape import NOTHING_SHARED, RunShape, Span
from sim.prefix_groups import PrefixGroups
from sim.request import Request


class DecodeBatch:
    """Who decodes, and the sums that a step's time depends on.

    Progress is a difference: the batch counts its steps, a member remembers the count at which it joined, and its own
    token counts are brought up to date when it leaves.
    """

    __slots__ = (
        "_crossings", "_next", "context_tokens", "count", "encodes", "groups", "local_growth", "local_tokens",
        "spans", "steps",
    )  # fmt: skip
    query_tokens: int = 1
    """New tokens of each member that a step computes."""

    def __init__(self, spans: tuple[Span, ...] = (), groups: PrefixGroups | None = None) -> None:
        self.steps = self.count = self.context_tokens = 0
        self.encodes = False
        """Whether prompts may hold images, which are encoded in the step of their first token."""
        self.groups = groups
        """What attention reads once for several members, where it can."""
        self.spans = spans
        self.local_tokens = [0] * len(spans)
        self.local_growth = [0] * len(spans)
        # Per span: step count -> members that fill it (or enter their next chunk) once that many steps are done.
        self._crossings: list[dict[int, int]] = [{} for _ in spans]
        self._next: list[list[int]] = [[] for _ in spans]

    @property
    def rows(self) -> int:
        """New tokens that a step computes for all members."""
        return self.count * self.query_tokens

    def shape(self) -> RunShape:
        """A shape whose sums over spans and prefixes are those of this batch, now and later."""
        shared = NOTHING_SHARED if self.groups is None else self.groups.sums
        return RunShape(local_tokens=self.local_tokens, local_growth=self.local_growth, shared=shared)

    def join(self, request: Request) -> None:
        """The prompt is computed: from the next step on the request decodes."""
        request.joined_step = self.steps
        self.count += 1
        self.context_tokens += request.computed_tokens
        if self.spans:
            self._join_spans(request)
        if self.groups is not None:
            self.groups.join(request)

    def leave(self, request: Request, delivered_step: int) -> None:
        """The request stops decoding; its counts become current.

        `delivered_step` is the last step whose token counts as emitted: the present one, or an earlier one when
        steps in flight were computed for nothing.
        """
        if self.spans:
            self._leave_spans(request)
        if self.groups is not None:
            self.groups.leave(request)
        done = self.steps - request.joined_step
        request.computed_tokens += done
        request.emitted_tokens += delivered_step - request.joined_step
        self.count -= 1
        self.context_tokens -= request.computed_tokens
        request.joined_step = -1

    def settle(self, request: Request) -> None:
        """Make the counts of a member current while it goes on decoding."""
        done = self.steps - request.joined_step
        request.computed_tokens += done
        request.emitted_tokens += done
        request.joined_step = self.steps

    def steps_to_end(self, request: Request) -> int:
        """Steps until a member has its last token. For the replica, which alone knows how long answers are."""
        return request._output_tokens - request.emitted_tokens

    def stretch_tokens(self, request: Request, steps: int) -> int:
        """Tokens that a request which has just left emitted since its prompt was computed, in so many steps."""
        return steps + 1

    def last_token_in_flight(self, request: Request) -> bool:
        """Whether a step that is planned but has not ended emits this member's last token, or one has already.

        The one thing about true lengths that a scheduler may ask, and only of a member it is about to preempt.
        """
        return request.joined_step >= 0 and request._finish_step <= self.steps

    def advance(self, steps: int) -> None:
        """All members have done `steps` more steps; at most `steps_to_crossing()` of them."""
        self.steps += steps
        self.context_tokens += steps * self.count
        if self.spans:
            self._advance_spans(steps)

    def context_of(self, request: Request) -> int:
        """Tokens in the cache of a member, now."""
        return request.computed_tokens + self.steps - request.joined_step

    def steps_to_crossing(self, limit: int) -> int:
        """The largest number of steps, up to `limit`, over which every local sum grows linearly."""
        for queue, crossings in zip(self._next, self._crossings, strict=True):
            while queue and not crossings.get(queue[0]):
                crossings.pop(heapq.heappop(queue), None)
            if queue and queue[0] - self.steps < limit:
                limit = queue[0] - self.steps
        return limit

    # Spans. A member of context c sees `visible(c)` tokens of a span; this grows by one per step until the span is
    # full (sliding window) or the next chunk begins (chunked attention), a step that is known when it joins.
    def _join_spans(self, request: Request) -> None:
        for i, span in enumerate(self.spans):
            seen = span.visible(request.computed_tokens)
            self.local_tokens[i] += seen
            if span.chunked or seen < span.full:
                self.local_growth[i] += 1
                self._expect(i, self.steps + span.full - seen)

    def _leave_spans(self, request: Request) -> None:
        context = self.context_of(request)
        for i, span in enumerate(self.spans):
            seen = span.visible(context)
            self.local_tokens[i] -= seen
            if span.chunked or seen < span.full:
                self.local_growth[i] -= 1
                self._crossings[i][self.steps + span.full - seen] -= 1

    def _advance_spans(self, steps: int) -> None:
        for i, span in enumerate(self.spans):
            self.local_tokens[i] += steps * self.local_growth[i]
            crossing = self._crossings[i].pop(self.steps, 0)
            if not crossing:
                continue
            if span.chunked:
                self.local_tokens[i] -= crossing * span.tokens
                self._expect(i, self.steps + span.tokens, crossing)
            else:
                self.local_growth[i] -= crossing

    def _expect(self, i: int, step: int, members: int = 1) -> None:
        crossings = self._crossings[i]
        if step in crossings:
            crossings[step] += members
        else:
            crossings[step] = members
            heapq.heappush(self._next[i], step)
