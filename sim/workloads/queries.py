"""Applications that make several requests of one question: each is a script that is played as its requests end."""

from __future__ import annotations

import heapq
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, count, islice, repeat
from typing import Any, NamedTuple, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from sim.request import Request, State, Traits
from sim.rng import stream
from sim.units import PS_PER_S, ceil_div, to_ps
from sim.workloads.arrivals import Arrivals, ClosedLoop
from sim.workloads.sessions import ThinkTime
from sim.workloads.sizes import HASH_BLOCK_TOKENS, Sizes


class Call(NamedTuple):
    """One request of a script, sent `delay_ps` after what it waits for."""

    delay_ps: int
    prompt_tokens: int
    output_tokens: int
    hashes: tuple[int, ...] = ()
    """Identity of the prompt's beginning, one per 16 tokens."""
    hashes_output: bool = False


class Query(Protocol):
    """One question to an application, and the requests it takes to answer it."""

    def begin(self) -> list[Call]:
        """The first requests; all are sent after the same delay."""
        ...

    def after(self, number: int, completed: bool) -> list[Call] | None:
        """What follows when request `number` of the query has ended; None: the query has failed."""
        ...


@dataclass(frozen=True)
class Question:
    """What a script is written from; all of it a function of (seed, number of the question) alone."""

    tokens: int
    answer_tokens: int
    system: tuple[int, ...]
    """Identity of the application's system prompt, in whole blocks of 16 tokens."""
    own: int
    """The first of 2^40 hashes that nothing else has."""
    shared: int
    """The first hash of what all questions may share."""
    rng: np.random.Generator
    max_model_len: int | None

    @property
    def system_tokens(self) -> int:
        """Of the system prompt, which counts in whole blocks."""
        return len(self.system) * HASH_BLOCK_TOKENS


class ApplicationLaw(BaseModel):
    """How an application turns a question into requests."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @property
    @abstractmethod
    def most_calls(self) -> int:
        """No query makes more requests than this."""

    @property
    @abstractmethod
    def mean_calls(self) -> float:
        """Requests per query."""

    @abstractmethod
    def query(self, question: Question) -> Query:
        """The script of a question."""


def pause_ps(law: ThinkTime, rng: np.random.Generator) -> int:
    """One draw of a pause."""
    return to_ps(law) if isinstance(law, float) else to_ps(float(law.draw(rng, 1)[0]))


def whole_blocks(tokens: int) -> int:
    """Tokens rounded up to blocks of 16, so that what several prompts share has an identity to its end."""
    return ceil_div(tokens, HASH_BLOCK_TOKENS) * HASH_BLOCK_TOKENS


@dataclass
class _Open:
    """A query that is being answered."""

    query: Query
    first_id: int
    asked_ps: int
    sent: int = 0
    waiting: int = 0
    failed: bool = False


@dataclass
class _Outcome:
    answered_ps: list[int] = field(default_factory=list)
    failed: int = 0
    begun: int = 0

    def as_dict(self) -> dict[str, Any]:
        """From the question to its last answer, retrieval and tools included."""
        seconds = np.array(self.answered_ps, dtype=np.float64) / PS_PER_S
        known = len(seconds) > 0
        return {
            "begun": self.begun,
            "answered": len(seconds),
            "failed": self.failed,
            "mean_latency_s": float(seconds.mean()) if known else None,
            **{f"p{p}_latency_s": float(np.percentile(seconds, p)) if known else None for p in (50, 90, 99)},
        }


class Queries:
    """Questions that come by an arrival process, or one after the other from each client of a closed loop.

    Request k of the n-th query whose first request was sent has id n x `law.most_calls` + k. All calls of a query carry
    its name as `session`. A query fails when its script gives up; what else it has under way then still ends.

    `num_requests`: no query begins once so many requests are promised by those begun (`law.mean_calls` each);
    `duration_s`: nothing is sent at or after that time.
    """

    has_prefixes = True
    notes: tuple[str, ...] = ()
    num_requests: int | None = None  # queries differ in length

    def __init__(
        self,
        arrivals: Arrivals | ClosedLoop,
        sizes: Sizes,
        law: ApplicationLaw,
        *,
        seed: int = 0,
        ends: tuple[int | None, float | None] = (None, None),
        max_model_len: int | None = None,
    ) -> None:
        self._limit, self.duration_s = ends
        self.arrivals, self.sizes, self.law, self.seed = arrivals, sizes, law, seed
        self._longest = max_model_len
        self._until_ps = None if self.duration_s is None else to_ps(self.duration_s)
        self._restart()

    def _restart(self) -> None:
        self._open: dict[int, _Open] = {}  # by query number
        self._numbers, self._questions, self._outcome = count(), self._all_questions(), _Outcome()

    def __iter__(self) -> Iterator[Request]:
        self._restart()
        if isinstance(self.arrivals, ClosedLoop):
            asked = [(0, question) for question in islice(self._questions, self.arrivals.concurrency)]
            return self._first_calls(iter(asked))
        chunks = self.arrivals.times_ps(self.seed, self._until_ps)
        times = chain.from_iterable(chunk.tolist() for chunk in chunks)
        return self._first_calls(zip(times, self._questions, strict=False))

    def on_finish(self, request: Request, now_ps: int) -> Iterable[Request]:
        """What the application sends next; when a query is over, what its client does in a closed loop."""
        number = request.id // self.law.most_calls
        this = self._open.get(number)
        if this is None:
            return ()
        this.waiting -= 1
        calls = None if this.failed else this.query.after(request.id - this.first_id, request.state is State.COMPLETED)
        this.failed |= calls is None
        sent = self._send(number, this, calls or (), now_ps)
        if this.waiting:
            return sent
        del self._open[number]
        if this.failed:
            self._outcome.failed += 1
        else:
            self._outcome.answered_ps.append(now_ps - this.asked_ps)
        return self._ask_again(now_ps)

    def describe(self) -> dict[str, Any]:
        """The process by which questions come, requests per query, and mean lengths of question and answer.

        Once queries have begun also what became of them: `queries`, with latencies from the question to its answer.
        """
        sizes, calls = self.sizes.describe(), self.law.mean_calls
        rate = None if isinstance(self.arrivals, ClosedLoop) else self.arrivals.mean_rate
        return {
            **sizes,
            **self.law.model_dump(mode="json"),
            "arrival": self.arrivals.model_dump(mode="json"),
            "mean_requests_per_query": calls,
            "mean_input_tokens": None,
            "mean_rate": rate and rate * calls,
            "num_requests": self._limit,
            "duration_s": self.duration_s,
            **({"queries": self._outcome.as_dict()} if self._outcome.begun else {}),
        }

    def _ask_again(self, now_ps: int) -> Iterable[Request]:
        if not isinstance(self.arrivals, ClosedLoop):
            return ()
        at_ps = now_ps + to_ps(self.arrivals.think_time_s)
        return () if self._over(at_ps) else list(self._first_calls(zip((at_ps,), self._questions, strict=False)))

    def _over(self, at_ps: int) -> bool:
        return self._until_ps is not None and at_ps >= self._until_ps

    def _all_questions(self) -> Iterator[Question]:
        """Question 0, 1, 2, ... until the requests they lead to are as many as there may be."""
        prefix, blocks = self.sizes.shared_prefix, 0
        kinds: Iterator[Traits] = repeat(Traits())
        if prefix is not None:
            blocks = whole_blocks(prefix.tokens) // HASH_BLOCK_TOKENS
            kinds = prefix.model_copy(update={"tokens": blocks * HASH_BLOCK_TOKENS}).traits(self.seed)
        shared = blocks * (prefix.groups if prefix is not None else 0)
        rows = zip(kinds, self.sizes.turns(self.seed), strict=False)
        for number, (kind, (tokens, answer)) in enumerate(rows):
            if self._limit is not None and number * self.law.mean_calls >= self._limit:
                return
            rng = stream(self.seed, "application", number)
            own = (number + 1) << 40
            yield Question(tokens, answer, kind.prefix_hashes, own, shared, rng, self._longest)

    def _first_calls(self, asked: Iterator[tuple[int, Question]]) -> Iterator[Request]:
        """In order of sending, which is not that of asking where the first requests wait for something."""
        begun: list[tuple[int, int, int, Query, list[Call]]] = []
        for number, (asked_ps, question) in enumerate(asked):
            while begun and begun[0][0] <= asked_ps:
                yield from self._begin(*heapq.heappop(begun))
            query = self.law.query(question)
            calls = query.begin()
            heapq.heappush(begun, (asked_ps + calls[0].delay_ps, number, asked_ps, query, calls))
        while begun:
            yield from self._begin(*heapq.heappop(begun))

    def _begin(self, at_ps: int, _: int, asked_ps: int, query: Query, calls: list[Call]) -> list[Request]:
        if self._over(at_ps):
            return []
        number = next(self._numbers)
        this = _Open(query, number * self.law.most_calls, asked_ps)
        self._open[number] = this
        self._outcome.begun += 1
        return self._send(number, this, calls, asked_ps)

    def _send(self, number: int, this: _Open, calls: Iterable[Call], now_ps: int) -> list[Request]:
        requests = []
        most = self.sizes.max_output_tokens
        for call in calls:
            if self._over(now_ps + call.delay_ps):
                this.failed = True
                continue
            traits = Traits(
                session=str(number), turn=this.sent, prefix_hashes=call.hashes, hashes_output=call.hashes_output,
                prefix_block_tokens=HASH_BLOCK_TOKENS if call.hashes else 0,
            )  # fmt: skip
            output = call.output_tokens if most is None else min(call.output_tokens, most)
            id_, at_ps = this.first_id + this.sent, now_ps + call.delay_ps
            requests.append(Request(id_, at_ps, call.prompt_tokens, output, most, traits))
            this.sent += 1
            this.waiting += 1
        return requests
