"""What happens to requests on a replica: prompts complete, sequences fork, are preempted, and in the end they leave."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import cast

from sim.batch import DecodeBatch
from sim.engine.recorder import Recorder, Rows
from sim.engine.tiers import TierTraffic
from sim.kv.base import ForkingKVAllocator, KVAllocator
from sim.predictors import LengthPredictor
from sim.request import (
    COMPLETED,
    NO_REASON,
    NUMBER_SHIFT,
    REQUEST_MASK,
    RUNNING,
    WAITING,
    Reason,
    Request,
    State,
)
from sim.schedulers.base import Scheduler
from sim.sequences import Sequence, sequences_of
from sim.step import NO_LIMIT, OUT, Transfer

EndHandler = Callable[[Request, int], None]
"""Called with a request that has ended and the present time."""


class Lifecycle:
    """The books of one replica's requests: first tokens, stretches of decoding, ends. The step loop is `Replica`."""

    # CPython 3.11 reads up to 30 attributes of an object without slots quickly, and no more.
    __slots__ = (
        "_batch", "_copying", "_delivered", "_drains", "_ended", "_finishes", "_free_ps", "_gone", "_hand_over", "_kv",
        "_predictor", "_requests", "_scheduler", "_segments", "_sequences", "_start", "_switches", "_tiers", "index",
        "outstanding",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        scheduler: Scheduler,
        kv: KVAllocator,
        batch: DecodeBatch,
        recorder: Recorder,
        ended: EndHandler,
    ) -> None:
        self.index, self._ended = index, ended
        self._scheduler, self._kv, self._batch = scheduler, kv, batch
        self._requests, self._segments = recorder.requests, recorder.segments
        self.outstanding = 0
        """Requests submitted and not ended: the counter that routers of large fleets read."""
        self._sequences = 0  # that they are now
        # (decode step that emits the last token, id, preemptions when it was entered, request): the first that is due.
        # Where batches drain together the steps are negative, so that the last one is on top.
        self._finishes: list[tuple[int, int, int, Request]] = []
        self._predictor: LengthPredictor | None = None
        self._hand_over: Callable[[Request], None] | None = None  # where another replica decodes
        self._drains = scheduler.drains_together
        self._copying: dict[int, Transfer] = {}  # copies under way, by request
        # The same for the decode step after which a beam is replaced by another one.
        self._switches: list[tuple[int, int, int, Sequence]] = []
        self._tiers: TierTraffic | None = None  # memory below the prefix cache
        self._gone: list[Request] = []  # their clients have given up; they end at the next boundary
        self._start = 0  # of the run in force
        self._free_ps = 0  # when the last committed step ends; later than now while it is in flight (lead = 1)
        self._delivered = 0  # decode steps that had ended by the last boundary

    def _apply_chunks(self, chunks: Iterable[tuple[Request, int]]) -> None:
        """Prompt pieces are computed; a prompt that is complete emits a token and its request decodes from now on."""
        for request, tokens in chunks:
            if request.state is not RUNNING:
                continue  # its client gave up while the step was in flight
            self._note_scheduled(request)
            request.computed_tokens = computed = request.computed_tokens + tokens
            if computed < request.target_tokens:
                continue
            self._begin_decoding(request)
            if isinstance(request, Sequence):
                self._fork(request)

    def _begin_decoding(self, request: Request) -> None:
        """The step that is done at `_free_ps` emits a token of the request, and it joins the batch."""
        batch, end = self._batch, self._free_ps
        request.emitted_tokens += 1
        if request.first_token_ps < 0:
            request.first_token_ps = end
        request.segment_start_ps, request.segment_step = end, batch.steps
        batch.join(request)
        self._kv.grow(request)
        last = batch.steps
        if self._hand_over is None:
            last += batch.steps_to_end(request)
        request._finish_step = last
        due = -last if self._drains else last
        heapq.heappush(self._finishes, (due, request.id, request.preemptions, request))

    def _fork(self, first: Sequence) -> None:
        """Once the prompt is computed, all sequences of the request decode; the same step emits a token of each."""
        begun = [first]
        if first.forks:
            kv = cast(ForkingKVAllocator, self._kv)
            for child in first.group.fork():
                kv.fork(first, child)
                first.forks -= 1
                self._scheduler.fork(child)
                self._sequences += 1
                self._begin_decoding(child)
                begun.append(child)
        for sequence in begun:
            self._expect_switch(sequence)

    def _expect_switch(self, beam: Sequence) -> None:
        """When a beam that decodes will be replaced next: not before it has emitted another token."""
        steps, switches = self._batch.steps, beam.switches
        emitted = beam.emitted_tokens + steps - beam.joined_step
        while switches and switches[-1][0] <= emitted:
            switches.pop()
        if switches:
            due = steps + switches[-1][0] - emitted
            heapq.heappush(self._switches, (due, beam.id, beam.preemptions, beam))

    def _switch_beams(self) -> None:
        """Beams that are dropped after the steps so far take over what another one holds, if both are as long.

        A beam that was preempted and lags behind its siblings, or waits, is neither replaced nor continued by others.
        """
        batch, kv, due = self._batch, cast(ForkingKVAllocator, self._kv), self._switches
        while due and due[0][0] <= batch.steps:
            _, _, preemptions, beam = heapq.heappop(due)
            if preemptions != beam.preemptions or beam.state is not RUNNING:
                continue
            other = beam.group.members[beam.switches[-1][1]]
            if other.joined_step >= 0 and batch.context_of(other) == batch.context_of(beam):
                batch.settle(beam)
                batch.settle(other)
                kv.release(beam)
                kv.fork(other, beam)
                kv.grow(beam)
            self._expect_switch(beam)

    def _end_requests(self, now: int) -> None:
        """End those whose clients have gone, then what the delivered steps have finished."""
        if self._gone:
            self._end_gone(now)
        if self._drains:
            self._drain(now)
            return
        finishes, delivered = self._finishes, self._delivered
        while finishes and finishes[0][0] <= delivered:
            step, _, preemptions, request = heapq.heappop(finishes)
            if preemptions == request.preemptions and request.state is RUNNING:
                if self._hand_over is not None and request.emitted_tokens < request._output_tokens:
                    self._pass_on(request, step, now)
                    continue
                request.state = COMPLETED
                self._leave(request, step, now)
                self._close(request, NO_REASON, now)

    def _pass_on(self, request: Request, step: int, now: int) -> None:
        """Another replica decodes; what the prompt holds here stays until it has been copied."""
        request.state = WAITING
        self._copying[request.id] = Transfer(request, 0, OUT)
        self._leave(request, step, now)
        request.computed_tokens, request.segment_step = request.target_tokens, -1
        self.outstanding -= 1
        self._sequences -= 1
        if self._hand_over is not None:
            self._hand_over(request)

    def _drain(self, now: int) -> bool:
        """A batch that drains together leaves if each of its members has received its last token."""
        if not self._batch.count or self._batch.count < self._scheduler.num_running:
            return False
        if self._last_finish() > self._delivered:
            return False
        members = sorted(self._scheduler.running(), key=lambda request: request.id)
        if any(request.segment_start_ps > now for request in members):
            return False  # a prompt whose only token is in flight
        self._finishes.clear()
        for request in members:
            request.state = COMPLETED
            self._leave(request, request._finish_step, now)
            self._close(request, NO_REASON, now)
        return True

    def _last_finish(self) -> int:
        """The decode step that emits the last token of a batch that drains together."""
        finishes = self._finishes
        while finishes[0][2] != finishes[0][3].preemptions or finishes[0][3].state is not RUNNING:
            heapq.heappop(finishes)  # left behind by a preemption or a client who gave up
        return -finishes[0][0]

    def _end_gone(self, now: int) -> None:
        gone, self._gone = sorted(self._gone, key=lambda request: request.id), []
        for request in gone:
            self._abort(sequences_of(request), now)

    def _abort(self, sequences: Iterable[Request], now: int) -> None:
        """The client of these sequences has given up: those that have not ended do now."""
        for request in sequences:
            if request.state is WAITING:  # it was preempted while its last token was in flight
                request.state = State.ABORTED
                if self._tiers is None or not self._tiers.withdraw(request):
                    self._scheduler.abort(request)
            elif request.state is RUNNING:
                request.state = State.ABORTED
                if request.id not in self._copying and request.segment_start_ps < NO_LIMIT:
                    self._note_scheduled(request)
                self._leave(request, min(self._delivered, request._finish_step), now)
            else:
                continue
            self._close(request, Reason.CLIENT_TIMEOUT, now)

    def _leave(self, request: Request, delivered: int, now: int) -> None:
        """A running request gives back its seat and its memory; it has the tokens of steps up to `delivered`."""
        if request.joined_step >= 0:
            arrived = request.segment_start_ps <= now
            if not arrived:  # the first token of this stretch is in flight and will not arrive
                delivered = request.segment_step - 1
                if request.first_token_ps > now:
                    request.first_token_ps = -1
            self._batch.leave(request, delivered)
            if arrived:
                self._add_segment(request, delivered)
        if self._copying and request.id in self._copying:
            self._kv.park(request)  # until the copy has ended
        else:
            self._kv.release(request)
        self._scheduler.finish(request)

    def _add_segment(self, request: Request, last_step: int) -> None:
        """A stretch of decoding is over, and the request has left the batch."""
        id_, number, first = request.id & REQUEST_MASK, request.id >> NUMBER_SHIFT, request.segment_step
        tokens = self._batch.stretch_tokens(request, last_step - first)
        self._segments.add(
            self._segments.pack(id_, self.index, request.segment_start_ps, first, last_step, number, tokens)
        )

    def _close(self, request: Request, reason: Reason, now: int) -> None:
        self._sequences -= 1
        if self._predictor is not None and reason is NO_REASON:
            self._predictor.observe(request)
        if isinstance(request, Sequence):
            request.group.open -= 1
            if request.group.open:
                return
            request = request.group.close(request.state, now)
        self.outstanding -= 1
        add_request(self._requests, request, self.index, reason, now)
        self._ended(request, now)

    def _note_scheduled(self, request: Request) -> None:
        """A chunk of the request is in the run that starts at `_start`."""
        if request.scheduled_ps < 0:
            request.scheduled_ps = self._start
        elif request.preempted_at_ps >= 0:
            request.preempted_ps += self._start - request.preempted_at_ps
            request.preempted_at_ps = -1

    def _note_preempted(self, preempted: list[Request], now: int) -> None:
        """The stretch of decoding that a preemption ends; a token in flight still arrives."""
        steps = self._batch.steps
        for request in preempted:
            if request.preempted_at_ps < 0:
                request.preempted_at_ps = now
            first = request.segment_step
            if first < 0:
                continue  # it was still prefilling
            if first > steps:  # it was swapped in and has not decoded since
                request.segment_step, request.segment_start_ps = -1, now
                continue
            self._add_segment(request, steps)
            request.segment_step = -1
            if self._delivered < steps:
                request.segment_start_ps = self._free_ps

    def _close_all(self, now: int) -> None:
        """The simulation ends here: every request that is left ends as unfinished."""
        withheld = [] if self._tiers is None else self._tiers.withheld.values()
        for request in [*self._scheduler.running(), *self._scheduler.waiting(), *withheld]:
            running, request.state = request.state is RUNNING, State.UNFINISHED
            if running:
                self._leave(request, min(self._delivered, request._finish_step), now)
            self._close(request, Reason.INTERRUPTED, now)


def add_request(rows: Rows, request: Request, replica: int, reason: Reason, now: int) -> None:
    """A row of the request table, at the end of its life."""
    rows.add(rows.pack(
        request.id, replica, request.state, reason, request.arrival_ps, request.scheduled_ps, request.first_token_ps,
        now, request.prompt_tokens, request.emitted_tokens, request.cached_tokens, request.preemptions,
        request.preempted_ps, request.unused_tokens, request.traits.tenant_number, request.sibling_tokens,
    ))  # fmt: skip
