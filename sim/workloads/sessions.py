"""Conversations: each turn begins with all that was said before, and waits for the answer to the turn before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count, islice, repeat
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from sim.errors import ConfigError
from sim.request import Request, State, Traits
from sim.rng import stream
from sim.units import ceil_div, to_ps
from sim.workloads.arrivals import CHUNK, AllAtOnce, Arrivals, ClosedLoop, Stages
from sim.workloads.lengths import Lengths, law
from sim.workloads.sizes import HASH_BLOCK_TOKENS, Sizes

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ExponentialTime(BaseModel):
    """A pause with a memoryless law of this mean, seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Literal["exponential"] = "exponential"
    mean: Seconds

    def draw(self, rng: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
        """Seconds."""
        return rng.exponential(self.mean, size)


class LognormalTime(BaseModel):
    """A pause with a long tail; `mean` and `std` are those of the seconds, not of their logarithm."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Literal["lognormal"] = "lognormal"
    mean: Seconds
    std: Seconds

    def draw(self, rng: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
        """Seconds."""
        variance = np.log1p((self.std / self.mean) ** 2)
        return rng.lognormal(np.log(self.mean) - variance / 2, np.sqrt(variance), size)


def _which(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", "seconds")
    return str(kind)


ThinkTime = Annotated[
    Annotated[Annotated[float, Field(ge=0, allow_inf_nan=False, strict=False)], Tag("seconds")]
    | Annotated[ExponentialTime, Tag("exponential")]
    | Annotated[LognormalTime, Tag("lognormal")],
    Discriminator(_which),
]


class SessionLaw(BaseModel):
    """What makes single requests conversations."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    turns: Lengths = Field(description="questions per session: an integer, or a law as for input_tokens")
    think_time_s: ThinkTime = Field(
        default=0.0,
        description="from an answer to the next question: seconds, or {kind: exponential | lognormal, mean}",
    )

    def pauses_ps(self, seed: int) -> Iterator[int]:
        """Think times without end."""
        if isinstance(self.think_time_s, float):
            return repeat(to_ps(self.think_time_s))
        draw = self.think_time_s.draw
        chunks = (draw(stream(seed, "think_time", chunk), CHUNK) for chunk in count())
        return (to_ps(seconds) for chunk in chunks for seconds in chunk.tolist())


@dataclass
class _Session:
    """One conversation. `turns`: prompt with all that was said before, answer, pause after it (picoseconds)."""

    name: int
    first_id: int
    turns: list[tuple[int, int, int]]
    beginning: tuple[int, ...]
    """Identity of the application's system prompt, in whole blocks."""
    first_hash: int
    """Of the blocks behind it, which are this session's alone."""
    max_output_tokens: int | None
    at: int = -1

    def next_turn(self, now_ps: int) -> Request:
        """The next question, sent at `now_ps`."""
        self.at += 1
        prompt, output, _ = self.turns[self.at]
        longest = prompt + (self.max_output_tokens or output)
        own = ceil_div(longest, HASH_BLOCK_TOKENS) - len(self.beginning)
        traits = Traits(
            session=str(self.name),
            turn=self.at,
            prefix_hashes=(*self.beginning, *range(self.first_hash, self.first_hash + own)),
            prefix_block_tokens=HASH_BLOCK_TOKENS,
            hashes_output=True,
        )
        return Request(self.first_id + self.at, now_ps, prompt, output, self.max_output_tokens, traits)


class Sessions:
    """Conversations that start by an arrival process, or one after the other in each of `concurrency` clients.

    The prompt of a turn is the prompt and the answer of the turn before, and what the user adds (`sizes.input_tokens`);
    with a shared prefix the first one begins with the system prompt of its application. A session ends after its last
    turn, before the turn that would not fit `max_model_len`, and when a turn fails. The turns of a session have
    consecutive ids. All lengths are functions of (seed, session number, turn).

    `num_requests`: no session starts, and the last one is cut, once that many turns are promised; `duration_s`: nothing
    is sent at or after that time.
    """

    has_prefixes = True
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        arrivals: Arrivals | ClosedLoop,
        sizes: Sizes,
        sessions: SessionLaw,
        *,
        seed: int = 0,
        ends: tuple[int | None, float | None] = (None, None),
        max_model_len: int | None = None,
    ) -> None:
        self.num_requests, self.duration_s = ends
        if self.num_requests is None and self.duration_s is None and not isinstance(arrivals, Stages):
            raise ConfigError("say after how many requests this traffic ends", key="num_requests")
        if self.num_requests is None and isinstance(arrivals, AllAtOnce):
            raise ConfigError("say after how many requests this traffic ends", key="num_requests")
        self.arrivals, self.sizes, self.law, self.seed = arrivals, sizes, sessions, seed
        self._limit, self._longest = self.num_requests, max_model_len
        self._until_ps = None if self.duration_s is None else to_ps(self.duration_s)
        self._open: dict[int, _Session] = {}  # by the id of the turn that is being answered
        self._new = self._sessions()

    def __iter__(self) -> Iterator[Request]:
        self._open, self._new = {}, self._sessions()
        if isinstance(self.arrivals, ClosedLoop):
            return (self._send(session, 0) for session in islice(self._new, self.arrivals.concurrency))
        chunks = self.arrivals.times_ps(self.seed, self._until_ps)
        times = chain.from_iterable(chunk.tolist() for chunk in chunks)
        return (self._send(session, time) for session, time in zip(self._new, times, strict=False))

    def on_finish(self, request: Request, now_ps: int) -> Iterable[Request]:
        """The next turn after the user's pause, or what the client of a closed loop does when a session is over."""
        session = self._open.pop(request.id, None)
        if session is None:
            return ()
        at_ps = now_ps + session.turns[session.at][2]
        if request.state is not State.COMPLETED or session.at + 1 == len(session.turns):
            if not isinstance(self.arrivals, ClosedLoop):
                return ()
            at_ps = now_ps + to_ps(self.arrivals.think_time_s)
            session = next(self._new, None)
        if session is None or (self._until_ps is not None and at_ps >= self._until_ps):
            return ()
        return (self._send(session, at_ps),)

    def describe(self) -> dict[str, Any]:
        """The process by which sessions start, turns per session, and mean lengths of what a turn adds, in tokens."""
        rate = None if isinstance(self.arrivals, ClosedLoop) else self.arrivals.mean_rate
        sizes = self.sizes.describe()
        return {
            **sizes,
            "kind": "sessions",
            "arrival": self.arrivals.model_dump(mode="json"),
            "sessions": self.law.model_dump(mode="json"),
            "mean_turns": law(self.law.turns).mean_tokens,
            "mean_input_tokens": None,
            "mean_tokens_per_turn": law(self.sizes.input_tokens).mean_tokens,
            "mean_rate": rate and rate * law(self.law.turns).mean_tokens,
            "num_requests": self.num_requests,
            "duration_s": self.duration_s,
        }

    def _send(self, session: _Session, at_ps: int) -> Request:
        request = session.next_turn(at_ps)
        self._open[request.id] = session
        return request

    def _sessions(self) -> Iterator[_Session]:
        """Session 0, 1, 2, ... until their turns are as many as there may be requests."""
        sizes, seed = self.sizes, self.seed
        rows = zip(sizes.turns(seed), self.law.pauses_ps(seed), strict=False)
        lengths = law(self.law.turns)
        counts = chain.from_iterable(lengths.draw(stream(seed, "turns", i), CHUNK).tolist() for i in count())
        prefix = sizes.shared_prefix
        kinds = repeat(Traits()) if prefix is None else prefix.traits(seed)
        system, fresh = (0, 0) if prefix is None else (prefix.tokens, prefix.groups * prefix.blocks)
        first_id = 0
        for number, kind, wanted in zip(count(), kinds, counts, strict=False):
            turns = self._turns(system, list(islice(rows, wanted)))
            if self._limit is not None:
                turns = turns[: self._limit - first_id]
            if not turns:
                return
            yield _Session(number, first_id, turns, kind.prefix_hashes, fresh, sizes.max_output_tokens)
            first_id += len(turns)
            prompt, output, _ = turns[-1]
            fresh += ceil_div(prompt + (sizes.max_output_tokens or output), HASH_BLOCK_TOKENS)

    def _turns(self, said: int, rows: list[tuple[tuple[int, int], int]]) -> list[tuple[int, int, int]]:
        """Whole prompts from what each turn adds, as far as they fit; the first turn is the server's to refuse."""
        turns: list[tuple[int, int, int]] = []
        for (added, output), pause in rows:
            prompt = said + added
            asked = self.sizes.max_output_tokens or output
            if turns and self._longest is not None and prompt + asked > self._longest:
                break
            turns.append((prompt, output, pause))
            said = prompt + output
        return turns
