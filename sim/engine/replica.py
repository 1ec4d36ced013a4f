"""One copy of the model: the loop that asks for a plan, waits for its time, applies and records it."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sim.batch import DecodeBatch
from sim.cost.step_times import StepTimer, StepTimes
from sim.engine.events import BOUNDARY, PLAN, Alarm, Clock
from sim.engine.lifecycle import EndHandler
from sim.engine.link import LinkRate
from sim.engine.recorder import Recorder
from sim.engine.tiers import TierLinks, TierTraffic
from sim.engine.transfers import Transfers
from sim.errors import InvariantError
from sim.kv.base import KVAllocator
from sim.kv.host_pool import HostPool
from sim.predictors import LengthPredictor
from sim.request import NO_REASON, RUNNING, Reason, Request, images_begun
from sim.schedulers.base import Scheduler
from sim.sequences import sequences_of
from sim.step import DECODE, NO_LIMIT, Idle, StepPlan, Transfer


@dataclass(frozen=True, slots=True)
class ReplicaParts:
    """What a replica is made of. `lead`: plans made ahead of the step in progress (1 with asynchronous scheduling)."""

    scheduler: Scheduler
    kv: KVAllocator
    batch: DecodeBatch
    timer: StepTimer
    lead: int = 0
    max_run: int = NO_LIMIT
    """Most steps executed per plan; 1 is single-stepping."""
    predictor: LengthPredictor | None = None
    """Guesses the output lengths that policies see."""
    max_queued_requests: int | None = None
    """Arrivals are refused while so many wait (SGLang's `--max-queued-requests`)."""
    links: Mapping[str, LinkRate] = field(default_factory=dict)
    """What carries the transfers of the scheduler's plans, by their kind."""
    overlap: bool = False
    """Whether steps go on while copies are under way; else the step that follows waits for them."""
    host: HostPool | None = None
    """Where preempted requests are swapped to."""
    tiers: TierLinks | None = None
    """Memory below the prefix cache."""


HandOver = Callable[[Request, "Replica"], None]
Push = Callable[[Request, int, int], None]


class Replica(Transfers):
    """Runs of steps on one model copy.

    A plan is executed for as many steps as nothing can change (`max_run` = 1 makes it single-step; the results are
    the same). Times inside a run come from its closed form. With `lead` = 1 (asynchronous scheduling) the plan of a
    step is made when the step before it starts, so everything a scheduler sees, batch and blocks, is one step ahead
    of the clock; requests still end when their last step really ends.
    """

    __slots__ = (
        "_add_step", "_alarm", "_blocked_ps", "_boundary_ps", "_env", "_lead", "_max_queued", "_max_run", "_pack_step",
        "_plan", "_plan_alarm", "_planning", "_push", "_running", "_shape", "_steps", "_timer", "_times",
        "_waiting", "_wake_ps",
    )  # fmt: skip

    def __init__(
        self,
        env: Clock,
        index: int,
        parts: ReplicaParts,
        recorder: Recorder,
        ended: EndHandler,
    ) -> None:
        super().__init__(index, parts.scheduler, parts.kv, parts.batch, recorder, ended)
        self.connect(env, parts.links, parts.overlap)
        if parts.tiers is not None:
            self._tiers = TierTraffic(env, parts.scheduler, parts.tiers, self._interrupt)
        self._predictor, self._max_queued = parts.predictor, parts.max_queued_requests
        self._env, self._timer, self._lead, self._max_run = env, parts.timer, parts.lead, parts.max_run
        self._add_step, self._pack_step = recorder.steps.add, recorder.steps.pack
        self._shape = parts.batch.shape()
        self._plan: StepPlan | None = None  # in force; None: nothing is planned
        self._times: StepTimes | None = None
        self._alarm = Alarm(env, BOUNDARY + index, None, self._ring)
        self._wake_ps = -1  # when it counts; at other times an interruption has superseded it
        self._plan_alarm = Alarm(env, PLAN + index, None, self._begin)
        self._planning = False
        self._steps = 0  # of the run in force
        self._waiting = self._running = 0  # requests when it was planned
        self._boundary_ps = -1  # the last boundary
        self._push: Push | None = None
        self._blocked_ps = -1  # since when nothing can be planned before a copy has ended

    # ---- what others may ask
    def submit(self, request: Request) -> None:
        """A request arrives."""
        self.outstanding += 1
        self._sequences += 1
        if self._predictor is not None:
            request.predicted_output_tokens = self._predictor.predict(request)
        withheld = self._tiers is not None and self._tiers.withhold(request)
        if withheld or self._scheduler.submit(request) or self._plan is None:
            self._interrupt()

    def prefill_for(self, hand_over: HandOver, push: Push) -> None:
        """From now on the replica computes prompts only, and passes their requests on with their first token.

        `push` hears of every chunk: the tokens that will be computed with it, and when its step begins.
        """
        self._hand_over, self._push = lambda request: hand_over(request, self), push

    def take_over(self, request: Request) -> None:
        """A request arrives whose prompt another replica has computed; its keys and values are still there."""
        self.outstanding += 1
        self._sequences += 1
        self._scheduler.submit(request)
        self._interrupt()

    def forget(self, transfer: Transfer) -> None:
        """What was passed on has been copied, or nobody wants it any more."""
        self._copied(transfer)

    def refusal(self, request: Request) -> Reason:
        """Why this replica does not take the request, or NONE."""
        if self._kv.blocks_for(request) > self._kv.total_blocks:
            return Reason.NEVER_FITS
        if self._max_queued is not None and self._scheduler.num_waiting >= self._max_queued:
            return Reason.QUEUE_FULL
        return NO_REASON

    def time_out(self, request: Request) -> None:
        """The client gives up: the request ends now if it only waits, else at the first boundary at or after now."""
        now = self._now
        left = [sequence for sequence in sequences_of(request) if sequence.state <= RUNNING]
        if any(sequence.state is RUNNING or sequence.segment_start_ps > now for sequence in left):
            self._gone.append(request)
            if self._plan is None and (self._boundary_ps == now or self._free_ps <= now):
                self._end_gone(now)
                if self._drains:
                    self._drain(now)
        elif left:
            self._abort(left, now)
        else:
            return
        self._interrupt()

    def used_blocks(self) -> int:
        """KV blocks in use now, read from the run in force without committing any of it."""
        return self._kv.used_after(self._begun())

    def used_tokens(self) -> int:
        """The same in tokens of room."""
        return self.used_blocks() * self._kv.block_tokens

    def find_cached(self, request: Request) -> int:
        """Prompt tokens that a request which arrives now would find here."""
        return self._kv.find_cached(request, self._begun())

    def _begun(self) -> int:
        """Decode steps of the run in force that single-stepping would have committed by now."""
        if self._plan is None or self._times is None or not self._plan.decodes:
            return 0
        elapsed = self._now - self._start
        return min(self._times.ended_by(elapsed) + self._lead, self._steps) if elapsed >= 0 else 0

    def check(self) -> None:
        """Raise InvariantError unless the blocks agree with the requests that hold them, as of the last commit."""
        context = self._batch.context_of
        self._kv.check(
            [(r, context(r) if r.joined_step >= 0 else r.computed_tokens) for r in self._scheduler.running()]
        )

    @property
    def _now(self) -> int:
        return self._env._now  # type: ignore[return-value]

    # ---- the loop: plan, wait, apply, record
    def _begin(self, _: object = None) -> None:
        """Plan runs and execute them, one after the other, as long as nothing else happens before they end."""
        self._planning = False
        self._wake_ps = -1
        reach = self._env.reach
        wake = self._plan_run()
        if self._gone and wake > self._start:  # they end with the step in flight, beside which nothing was planned yet
            self._steps, wake = 1, self._start
        while wake >= 0:
            if not reach(wake):
                self._wake_at(wake)
                return
            wake = self._plan_run() if self._commit() else -1

    def _wake_at(self, time_ps: int) -> None:
        self._wake_ps = time_ps
        self._alarm.set(time_ps)

    def _ring(self, _: object) -> None:
        """The boundary the run was waiting for, or the end of a wait."""
        if self._wake_ps != self._env._now:
            return
        self._wake_ps = -1
        if self._plan is None:
            self._resume()
        elif self._commit():
            self._begin()

    def _plan_run(self) -> int:
        """Plan the next run; the time of its last boundary (lead = 1: when its last step starts), -1 without a plan."""
        env = self._env
        now: int = env._now  # type: ignore[assignment]
        plan = self._scheduler.plan(now) if self._tiers is None else self._tiers.plan(now)
        if plan is not DECODE:
            if isinstance(plan, Idle):
                self._wait(plan.until_ps, now)
                return -1
            if plan.preempted is not None:
                self._note_preempted(plan.preempted, now)
            if self._drains and self._drain(now):
                self._plan_soon()
                return -1
            if plan.transfers:
                self._copy(plan.transfers, max(now, self._free_ps), now)
            if not plan.chunks and not plan.decodes:
                self._wait(NO_LIMIT, now)
                return -1
        limit = self._fill_shape(plan)
        self._plan = plan
        self._running = running = self._scheduler.num_running
        self._waiting = self._sequences - running
        self._start = start = planned = now if now > self._free_ps else self._free_ps
        if self._stall_ps:
            limit, self._start, self._stall_ps = 1, start + self._stall_ps, 0
            start = self._start
        self._times = times = self._timer.run(self._shape, limit)
        self._steps = steps = times.steps
        if self._push is not None:
            for request, tokens in plan.chunks:
                self._push(request, request.computed_tokens + tokens, start)
        if self._rejoined and plan.decodes:
            self._note_rejoined(times.end_of(1))
        if plan.valid_until_ps < start + times.total_ps:
            self._steps = steps = self._steps_until(plan.valid_until_ps)
        return planned if steps == self._lead else start + times.end_of(steps - self._lead)

    def _commit(self) -> bool:
        """The run is over: record and commit it, end requests. True if the next one can be planned at once."""
        plan, times, k = self._plan, self._times, self._steps
        if plan is None or times is None:
            raise InvariantError(f"replica {self.index} woke up without a plan")
        env, batch, chunks = self._env, self._batch, plan.chunks
        now: int = env._now  # type: ignore[assignment]
        self._record(times, k)
        self._delivered = delivered = batch.steps
        if plan.decodes:
            self._delivered = delivered = delivered + k - self._lead
            batch.advance(k)
            self._kv.advance(k)
        self._plan = self._times = None
        self._boundary_ps = now
        self._free_ps = self._start + (times.total_ps if k == times.steps else times.end_of(k))
        if chunks and not self._lead:
            self._apply_chunks(chunks)
        finishes = self._finishes
        if self._gone or (finishes and finishes[0][0] <= delivered):
            self._end_requests(now)
        if chunks and self._lead:  # they are in flight: what they emit is not due yet
            self._apply_chunks(chunks)
        switches = self._switches
        if switches and switches[0][0] <= batch.steps:
            self._switch_beams()
        if self._arrived:
            self._deliver()
        queue = env._queue
        if queue and queue[0][0] == now:
            self._plan_soon()  # something else happens at this very instant
            return False
        return True

    def _fill_shape(self, plan: StepPlan) -> int:
        """Set the shape to the plan's first step; return for how many steps nothing can change."""
        shape, batch, limit = self._shape, self._batch, plan.max_steps
        shape.chunks = [(request.computed_tokens, tokens) for request, tokens in plan.chunks] if plan.chunks else ()
        if batch.encodes:
            shape.images = images_begun(plan.chunks)
        if not plan.decodes:
            shape.decodes = shape.context_tokens = 0
            return 1
        shape.decodes, shape.context_tokens = batch.count, batch.context_tokens
        if limit > self._max_run:
            limit = self._max_run
        if limit > 1:
            finishes = self._finishes
            while finishes[0][2] != finishes[0][3].preemptions:
                heapq.heappop(finishes)  # left behind by a preemption
            last = self._last_finish() if self._drains else finishes[0][0]
            to_finish = last + self._lead - batch.steps
            if to_finish < limit:
                limit = to_finish
            if self._switches and self._switches[0][0] - batch.steps < limit:
                limit = self._switches[0][0] - batch.steps
            if batch.spans:
                limit = batch.steps_to_crossing(limit)
            limit = self._kv.growth_limit(limit)
        return limit

    def _wait(self, until_ps: int, now: int) -> None:
        """Nothing to plan: until something arrives, the scheduler's deadline, or the end of the step in flight."""
        self._plan = self._times = None
        if self._scheduler.num_running:
            if self._free_ps > now:
                until_ps = min(until_ps, self._free_ps)
            elif self._copying:
                self._blocked_ps = now
            else:
                raise InvariantError(f"replica {self.index} plans no step for {self._scheduler.running()[0]}")
        elif self._scheduler.num_waiting and until_ps >= NO_LIMIT and not self._copying and not self._loading:
            raise InvariantError(f"replica {self.index} is idle and never begins {self._scheduler.waiting()[0]}")
        if until_ps < NO_LIMIT:
            self._wake_at(max(now, until_ps))

    def _resume(self) -> None:
        now = self._now
        self._boundary_ps = now
        if self._free_ps <= now:
            self._delivered = self._batch.steps
        self._end_requests(now)
        self._plan_soon()

    def _plan_soon(self) -> None:
        if self._blocked_ps >= 0:
            self.stalled_ps += self._now - self._blocked_ps
            self._blocked_ps = -1
        if not self._planning:
            self._planning = True
            self._plan_alarm.set(self._now)

    def _copied(self, transfer: Transfer) -> None:
        """A copy has ended: it takes effect at the first boundary from now on, or at once if nothing is planned."""
        self._arrived.append(transfer)
        if self._plan is None:
            self._deliver()
        self._interrupt()

    def _interrupt(self) -> None:
        """Make the run in force end at the first boundary at or after now."""
        if self._plan is None:
            self._plan_soon()
        elif self._steps > 1 and self._times is not None:
            now = self._now
            steps = self._steps_until(now)
            if steps < self._steps:
                self._steps = steps
                self._wake_at(self._start + self._times.end_of(steps - self._lead))

    def _steps_until(self, time_ps: int) -> int:
        """How many steps the run has if it is to be followed by a plan at the first boundary at or after a time."""
        times = self._times
        if times is None or time_ps > self._start + times.total_ps:
            return self._steps
        if time_ps <= self._start:
            return 1
        return min(self._steps, times.first_boundary(time_ps - self._start)[0] + self._lead)

    def _record(self, times: StepTimes, k: int) -> None:
        """The rows of a run, before it is committed."""
        shape, kv, start, chunks = self._shape, self._kv, self._start, self._shape.chunks
        count, context, pairs, prefill = shape.decodes, shape.context_tokens, 0, 0
        for cached, new in chunks:
            prefill += new
            pairs += new * cached + (new * (new + 1) >> 1)
        blocks, tokens = kv.total_blocks - kv.free_blocks, kv.stored_tokens
        for first, offset, a, b, n in times.pieces:
            if first >= k:
                break
            if first:
                blocks, tokens = kv.used_after(first), kv.stored_after(first)
            self._add_step(self._pack_step(
                self.index, start + offset, n if n <= k - first else k - first, a, b, count, context + first * count,
                prefill, len(chunks), pairs, blocks, tokens, self._waiting, self._running, kv.stranded_blocks,
                kv.shared_blocks,
            ))  # fmt: skip

    def stop(self) -> None:
        """The simulation ends here: commit the steps that have ended and close every request as unfinished."""
        now = self._now
        plan, times = self._plan, self._times
        if plan is not None and times is not None and plan.decodes and not plan.chunks:
            ended = times.ended_by(now - self._start)
            if ended:
                self._record(times, ended)
                self._batch.advance(ended)
                self._kv.advance(ended)
                self._delivered = self._batch.steps
        self._close_all(now)
