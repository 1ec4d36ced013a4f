"""What `sim.schedulers.base` promises, for every scheduler of `sim.policies`.

Schedulers are driven twice: by a `for` loop without a clock, and inside the engine with a watcher around them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios import Scenario, examples, play, random_scenario, with_prefixes
from sim.batch import DecodeBatch
from sim.engine.replica import ReplicaParts
from sim.engine_settings import CHUNKING
from sim.policies import ALLOCATORS, SCHEDULERS
from sim.request import Request, State
from sim.schedulers.base import Scheduler
from sim.step import Idle, StepPlan

pytestmark = pytest.mark.parametrize("kind", sorted(SCHEDULERS))

BATCHES = ("dynamic", "static")
"""Nobody joins a batch under way, and its prompts may exceed the token budget."""
LATE_PS = 1 << 50
"""A time at which every deadline has passed."""


class Sealed(Request):
    """A request whose true length nobody may read."""

    __slots__ = ()

    @property  # type: ignore[override]
    def _output_tokens(self) -> int:
        raise AssertionError("a policy read the true output length")

    @_output_tokens.setter
    def _output_tokens(self, tokens: int) -> None:
        pass


class ForLoop:
    """Drives a scheduler without engine, clock or timer; it alone knows how many tokens each request will emit."""

    def __init__(self, kind: str, seed: int) -> None:
        rng = self.rng = random.Random(seed)
        size, self.seats = rng.choice([1, 3, 16]), rng.choice([1, 3, 8])
        self.kind = kind
        self.budget = self.seats + rng.choice([0, 1, 20]) if kind in CHUNKING else 60 + self.seats
        self.outputs = {i: rng.randint(1, 25) for i in range(rng.choice([3, 12, 25]))}
        prompts = {i: rng.randint(1, 30) for i in self.outputs}
        most = max(-(-(prompts[i] + o) // size) for i, o in self.outputs.items())
        self.batch = DecodeBatch()
        self.kv = ALLOCATORS["paged"](most * rng.choice([10, 11, 13, 20, 500]) // 10, size)
        limits = {"max_num_seqs": self.seats, "max_num_batched_tokens": self.budget}
        self.scheduler: Scheduler = SCHEDULERS[kind](self.kv, self.batch, **limits)
        self.to_come = [Sealed(i, 0, prompts[i], 0, o) for i, o in self.outputs.items()]
        self.admitted: list[int] = []
        self.done: set[int] = set()
        self.preempted = 0

    def arrive(self) -> None:
        """Some requests arrive; one may change its mind at once."""
        while self.to_come and self.rng.random() < 0.5:
            request = self.to_come.pop(0)
            assert isinstance(self.scheduler.submit(request), bool)
            if self.rng.random() < 0.1:
                request.state = State.ABORTED
                self.scheduler.abort(request)
                self.done.add(request.id)

    def step(self) -> StepPlan | Idle:
        """Ask for a plan, check it, and do it."""
        running, waiting = self.scheduler.running(), self.scheduler.waiting()
        plan = self.scheduler.plan(LATE_PS)
        if isinstance(plan, Idle):
            assert not running, "idle beside running requests"
            assert self.scheduler.num_waiting == 0, "idle beside requests that wait, with all memory free"
            return plan
        self._check(plan, running, waiting)
        self._apply(plan)
        return plan

    def _check(self, plan: StepPlan, running: list[Request], waiting: list[Request]) -> None:
        now_running, now_waiting = self.scheduler.running(), self.scheduler.waiting()
        chunked = [request for request, _ in plan.chunks]
        assert len(set(chunked)) == len(chunked), "two chunks of one request"
        assert set(chunked) <= set(now_running)
        assert all(1 <= n <= r.target_tokens - r.computed_tokens for r, n in plan.chunks)
        decodes = self.batch.count if plan.decodes else 0
        if self.kind not in BATCHES:
            assert sum(n for _, n in plan.chunks) + decodes <= self.budget, "over the token budget"
        elif running:
            assert not plan.chunks, "somebody joined a batch under way"
        assert len(now_running) == self.scheduler.num_running <= self.seats, "more sequences than seats"
        assert len(now_waiting) == self.scheduler.num_waiting
        assert not set(now_running) & set(now_waiting)
        assert set(running + waiting) == set(now_running + now_waiting), "somebody was lost"
        assert plan.chunks or plan.decodes or plan.preempted, "a plan without work"
        if plan.decodes:
            assert self.batch.count > 0
            assert self.kv.shortage() == 0, "the decodes have no room"
        self._check_preempted(plan, now_waiting)
        assert plan.max_steps == 1 or not (plan.chunks or plan.preempted)
        new = [r for r in now_running if r not in running]
        assert new == [r for r in waiting if r in new], "admitted out of order"
        assert now_running == [r for r in running if r in now_running] + new, "running is not in order of admission"
        self.admitted += [r.id for r in new if r.id not in self.admitted]

    def _check_preempted(self, plan: StepPlan, now_waiting: list[Request]) -> None:
        preempted = list(plan.preempted or ())
        self.preempted += len(preempted)
        if self.kind == "sglang":
            assert now_waiting[len(now_waiting) - len(preempted) :] == preempted, "they go to the end"
        else:
            assert now_waiting[: len(preempted)] == preempted[::-1], "they go to the front, newest last"
        for request in preempted:
            assert request.state is State.WAITING
            assert (request.computed_tokens, request.reserved_tokens, request.joined_step) == (0, 0, -1)
            assert request.target_tokens == request.prompt_tokens + request.emitted_tokens
            assert request.preemptions > 0

    def _apply(self, plan: StepPlan) -> None:
        """What a replica does at the end of the step."""
        if plan.decodes:
            self.batch.advance(1)
            self.kv.advance(1)
        for request, tokens in plan.chunks:
            request.computed_tokens += tokens
            if request.computed_tokens == request.target_tokens:
                request.emitted_tokens += 1
                request._finish_step = self.batch.steps + self.outputs[request.id] - request.emitted_tokens
                self.batch.join(request)
                self.kv.grow(request)
        finished = [r for r in self.scheduler.running() if r.joined_step >= 0 and r._finish_step <= self.batch.steps]
        if not self.scheduler.drains_together or len(finished) == self.scheduler.num_running:
            for request in finished:
                self._finish(request)
        context = self.batch.context_of
        running = self.scheduler.running()
        self.kv.check([(r, context(r) if r.joined_step >= 0 else r.computed_tokens) for r in running])

    def _finish(self, request: Request) -> None:
        request.state = State.COMPLETED
        self.batch.leave(request, request._finish_step)
        assert request.emitted_tokens == self.outputs[request.id]
        self.kv.release(request)
        self.scheduler.finish(request)
        self.done.add(request.id)


@given(seed=st.integers(0, 10**6))
@examples(150)
def test_plans_keep_their_promises_and_everybody_is_served(kind: str, seed: int) -> None:
    """Plan after plan: budget, seats, room, order, preemption; true lengths stay unread; and it ends."""
    loop = ForLoop(kind, seed)
    for _ in range(5000):
        loop.arrive()
        plan = loop.step()
        if isinstance(plan, Idle) and not loop.to_come:
            break
    assert loop.done == set(loop.outputs)
    assert loop.scheduler.num_running == loop.scheduler.num_waiting == 0
    assert loop.admitted == sorted(loop.admitted)


def test_the_loops_do_preempt(kind: str) -> None:
    """The loops above are tight enough to preempt."""
    preempted = 0
    for seed in range(60):
        loop = ForLoop(kind, seed)
        while not (isinstance(loop.step(), Idle) and not loop.to_come):
            loop.arrive()
        preempted += loop.preempted
    assert preempted > (2 if kind == "sglang" else 100)  # which admits nobody before there is room for most of it


class Forwarding:
    """A scheduler that passes everything on to another."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._inner = scheduler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Distrustful(Forwarding):
    """Plans anew at every boundary, and notices when `submit` had promised that this is not needed.

    A plan that may repeat was right to do so if, with nothing since but arrivals that were answered False, the next
    plan admits nobody.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler)
        self._repeatable = False
        self._promised: set[Request] = set()
        self.lies = self.promises = 0

    def submit(self, request: Request) -> bool:
        answer = self._inner.submit(request)
        if answer:
            self._repeatable = False
        elif self._repeatable:
            self._promised.add(request)
        return True

    def plan(self, now_ps: int) -> StepPlan | Idle:
        plan = self._inner.plan(now_ps)
        chunks = () if isinstance(plan, Idle) else plan.chunks
        if self._repeatable:
            self.lies += len(chunks)
            self.promises += len(self._promised)
        self._promised.clear()
        self._repeatable = not isinstance(plan, Idle) and plan.max_steps > 1
        return plan

    def finish(self, request: Request) -> None:
        self._repeatable = False
        self._inner.finish(request)

    def abort(self, request: Request) -> None:
        self._repeatable = False
        self._inner.abort(request)


@pytest.mark.parametrize("lead", [0, 1])
def test_submit_never_says_false_wrongly(kind: str, lead: int) -> None:
    """A plan that lasts is never one that, made anew at the next boundary, would have admitted somebody."""
    watchers: list[Distrustful] = []

    def watch(inner: Scheduler, parts: ReplicaParts) -> Scheduler:
        watchers.append(Distrustful(inner))
        return watchers[-1]  # type: ignore[return-value]

    for seed in range(100):
        scenario = fitted(random_scenario(seed), kind, lead)
        play(scenario, max_run=1, wrap=watch)
        if kind not in BATCHES:
            play(with_prefixes(scenario, random.Random(seed)), max_run=1, wrap=watch)
    assert sum(w.lies for w in watchers) == 0
    assert sum(w.promises for w in watchers) > 500


@pytest.mark.parametrize("lead", [0, 1])
def test_submit_says_false_often_enough_to_leap(kind: str, lead: int) -> None:
    """Under overload most arrivals leave the plan in force alone, or leaping would be pointless."""
    rows = tuple((i, 50 * i, 20, 30, 30) for i in range(200))
    answers: list[bool] = []

    class Listening(Forwarding):
        def submit(self, request: Request) -> bool:
            answers.append(self._inner.submit(request))
            return answers[-1]

    play(
        Scenario(rows, kind, lead, max_num_seqs=4, max_num_batched_tokens=64),
        wrap=lambda s, p: Listening(s),  # type: ignore[arg-type, return-value]
    )
    assert answers.count(False) > 0.9 * len(answers)


def test_no_scheduler_reads_true_lengths_in_the_engine(kind: str) -> None:
    """Within `submit` and `plan`, the true length of every request can be hidden without any change."""
    sealed = 1 << 50

    class Hiding(Forwarding):
        def _hidden(self, call: Callable[[], Any], *more: Request) -> Any:
            requests = {*self._inner.running(), *self._inner.waiting(), *more}
            known = [(request, request._output_tokens) for request in requests]
            for request in requests:
                request._output_tokens = sealed
            answer = call()
            for request, tokens in known:
                request._output_tokens = tokens
            return answer

        def submit(self, request: Request) -> Any:
            return self._hidden(lambda: self._inner.submit(request), request)

        def plan(self, now_ps: int) -> Any:
            return self._hidden(lambda: self._inner.plan(now_ps))

    for seed in range(20):
        scenario = fitted(random_scenario(seed, most_requests=40), kind, seed % 2)
        open_run = play(scenario)
        hidden = play(scenario, wrap=lambda s, p: Hiding(s))  # type: ignore[arg-type, return-value]
        assert hidden.outcomes() == open_run.outcomes()


def fitted(scenario: Scenario, kind: str, lead: int) -> Scenario:
    """The scenario for this scheduler."""
    longest = max(p + most for _, _, p, _, most in scenario.rows)
    budget = scenario.max_num_batched_tokens if kind in CHUNKING else max(scenario.max_num_batched_tokens, longest)
    threshold = scenario.threshold if kind == "chunked" else 0
    return replace(scenario, scheduler=kind, lead=lead, max_num_batched_tokens=budget, threshold=threshold)
