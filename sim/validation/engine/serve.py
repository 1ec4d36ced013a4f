"""The engine's loop in real time: take what has arrived, plan, run, book; and the log that is left of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from sim.validation.engine.scheduler import Live, Part, Scheduler
from sim.validation.engine.traffic import Asked


class Runner(Protocol):
    """What computes a step."""

    def run(self, parts: Sequence[Part]) -> dict[int, int]:
        """The next token of every request that emits, by request number; on the host when this returns."""


@dataclass(frozen=True)
class StepLog:
    """One step: when it began, how long it took on the wall, and its shape."""

    start_s: float
    seconds: float
    decodes: int
    context_tokens: int
    """Cached tokens of the decodes, together, before the step."""
    chunks: tuple[tuple[int, int], ...]
    """(cached, new) tokens of each chunk."""
    sampled: int


@dataclass
class ServedLog:
    """A run: what was asked, when tokens came (seconds from the start), the steps, and how often KV ran out."""

    asked: list[Asked]
    first_token_s: list[float] = field(default_factory=list)
    finish_s: list[float] = field(default_factory=list)
    steps: list[StepLog] = field(default_factory=list)
    preemptions: int = 0

    def as_json(self) -> dict[str, Any]:
        """Plain lists."""
        return asdict(self)

    @classmethod
    def from_json(cls, written: dict[str, Any]) -> ServedLog:
        """What `as_json` made."""
        steps = [StepLog(**{**one, "chunks": tuple(tuple(c) for c in one["chunks"])}) for one in written["steps"]]
        asked = [Asked(**one) for one in written["asked"]]
        return cls(asked, written["first_token_s"], written["finish_s"], steps, written["preemptions"])


def serve(
    asked: Sequence[Asked], scheduler: Scheduler, runner: Runner, vocabulary: int,
    now: Callable[[], float], sleep: Callable[[float], None],
) -> ServedLog:  # fmt: skip
    """Serve requests as they arrive on the given clock, until all are answered."""
    log = ServedLog(list(asked), [0.0] * len(asked), [0.0] * len(asked))
    draw, arrived, start = random.Random(0), 0, now()
    prompts = [[draw.randrange(vocabulary) for _ in range(one.prompt_tokens)] for one in asked]
    start = now()
    while arrived < len(asked) or scheduler.busy:
        while arrived < len(asked) and asked[arrived].arrival_s <= now() - start:
            one = asked[arrived]
            scheduler.submit(Live(arrived, prompts[arrived], one.prompt_tokens, one.output_tokens))
            arrived += 1
        if not scheduler.busy:
            sleep(max(asked[arrived].arrival_s - (now() - start), 0.0))
            continue
        _step(scheduler, runner, log, start, now)
    log.preemptions = scheduler.preemptions
    return log


def _step(scheduler: Scheduler, runner: Runner, log: ServedLog, start: float, now: Callable[[], float]) -> None:
    begun = now() - start
    parts = scheduler.plan()
    decodes = [part for part in parts if part.is_decode]
    context = sum(part.live.computed for part in decodes)
    chunks = tuple((part.live.computed, part.new) for part in parts if not part.is_decode)
    emitting = [part.live for part in parts if part.emits]
    sampled = runner.run(parts)
    done = scheduler.finish_step(parts, sampled)
    ended = now() - start
    for live in emitting:
        if live.emitted == 1:
            log.first_token_s[live.number] = ended
    for live in done:
        log.finish_s[live.number] = ended
    log.steps.append(StepLog(begun, ended - begun, len(decodes), context, chunks, len(emitting)))
