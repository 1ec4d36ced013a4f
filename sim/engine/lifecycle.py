"""What happens to requests on a replica: prompts complete, sequences are preempted, and in the end they leave."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from sim.batch import DecodeBatch
from sim.engine.recorder import Recorder, Rows
from sim.kv.base import KVAllocator
from sim.predictors import LengthPredictor
from sim.request import COMPLETED, NO_REASON, RUNNING, WAITING, Reason, Request, State
from sim.schedulers.base import Scheduler
from sim.step import NO_LIMIT, Transfer

EndHandler = Callable[[Request, int], None]
"""Called with a request that has ended and the present time."""


class Lifecycle:
    """The books of one replica's requests: first tokens, stretches of decoding, ends. The step loop is `Replica`."""

    # CPython 3.11 reads up to 30 attributes of an object without slots quickly, and no more.
    __slots__ = (
        "_batch", "_copying", "_delivered", "_drains", "_ended", "_finishes", "_free_ps", "_gone", "_kv", "_predictor",
        "_requests", "_scheduler", "_segments", "_start", "index", "outstanding",
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
        # (decode step that emits the last token, id, preemptions when it was entered, request): the first that is due.
        # Where batches drain together the steps are negative, so that the last one is on top.
        self._finishes: list[tuple[int, int, int, Request]] = []
        self._predictor: LengthPredictor | None = None
        self._drains = scheduler.drains_together
        self._copying: dict[int, Transfer] = {}  # copies under way, by request
        self._gone: list[Request] = []  # their clients have given up; they end at the next boundary
        self._start = 0  # of the run in force
        self._free_ps = 0  # when the last committed step ends; later than now while it is in flight (lead = 1)
        self._delivered = 0  # decode steps that had ended by the last boundary

    def _apply_chunks(self, chunks: Sequence[tuple[Request, int]]) -> None:
        """Prompt pieces are computed; a prompt that is complete emits a token and its request decodes from now on."""
        batch, end = self._batch, self._free_ps
        for request, tokens in chunks:
            if request.state is not RUNNING:
                continue  # its client gave up while the step was in flight
            self._note_scheduled(request)
            request.computed_tokens = computed = request.computed_tokens + tokens
            if computed < request.target_tokens:
                continue
            request.emitted_tokens += 1
            if request.first_token_ps < 0:
                request.first_token_ps = end
            request.segment_start_ps, request.segment_step = end, batch.steps
            batch.join(request)
            self._kv.grow(request)
            last = batch.steps + request._output_tokens - request.emitted_tokens
            request._finish_step = last
            due = -last if self._drains else last
            heapq.heappush(self._finishes, (due, request.id, request.preemptions, request))

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
                request.state = COMPLETED
                self._leave(request, step, now)
                self._close(request, NO_REASON, now)

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
            if request.state is WAITING:  # it was preempted while its last token was in flight
                request.state = State.ABORTED
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
            first = request.segment_step
            if request.segment_start_ps > now:  # the first token of this stretch is in flight and will not arrive
                delivered = first - 1
                if request.first_token_ps > now:
                    request.first_token_ps = -1
            else:
                segment = (request.id, self.index, request.segment_start_ps, first, delivered)
                self._segments.add(self._segments.pack(*segment))
            self._batch.leave(request, delivered)
        if self._copying and request.id in self._copying:
            self._kv.park(request)  # until the copy has ended
        else:
            self._kv.release(request)
        self._scheduler.finish(request)

    def _close(self, request: Request, reason: Reason, now: int) -> None:
        self.outstanding -= 1
        if self._predictor is not None and reason is NO_REASON:
            self._predictor.observe(request)
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
            first, request.segment_step = request.segment_step, -1
            if first < 0:
                continue  # it was still prefilling
            if first > steps:  # it was swapped in and has not decoded since
                request.segment_start_ps = now
                continue
            self._segments.add(self._segments.pack(request.id, self.index, request.segment_start_ps, first, steps))
            if self._delivered < steps:
                request.segment_start_ps = self._free_ps

    def _close_all(self, now: int) -> None:
        """The simulation ends here: every request that is left ends as unfinished."""
        for request in [*self._scheduler.running(), *self._scheduler.waiting()]:
            running, request.state = request.state is RUNNING, State.UNFINISHED
            if running:
                self._leave(request, min(self._delivered, request._finish_step), now)
            self._close(request, Reason.INTERRUPTED, now)


def add_request(rows: Rows, request: Request, replica: int, reason: Reason, now: int) -> None:
    """A row of the request table, at the end of its life."""
    rows.add(rows.pack(
        request.id, replica, request.state, reason, request.arrival_ps, request.scheduled_ps, request.first_token_ps,
        now, request.prompt_tokens, request.emitted_tokens, request.cached_tokens, request.preemptions,
        request.preempted_ps, request.unused_tokens,
    ))  # fmt: skip
