"""Continuous batching with chunked prompts under one token budget, over a pool of KV blocks (vLLM V1's rules)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(eq=False)
class Live:
    """A request in the engine: `tokens` are its prompt and what it has emitted, `computed` of them are in the cache."""

    number: int
    tokens: list[int]
    prompt_tokens: int
    output_tokens: int
    computed: int = 0
    blocks: list[int] = field(default_factory=list)

    @property
    def emitted(self) -> int:
        """Output tokens so far."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def finished(self) -> bool:
        """Whether it has all of its answer."""
        return self.emitted >= self.output_tokens


@dataclass(frozen=True)
class Part:
    """A request's share of a step: its next `new` tokens. It emits when these are the last it has."""

    live: Live
    new: int

    @property
    def emits(self) -> bool:
        """Whether the step samples its next token."""
        return self.live.computed + self.new == len(self.live.tokens)

    @property
    def is_decode(self) -> bool:
        """Whether it only feeds back the token it emitted last."""
        return self.new == 1 and self.live.emitted > 0 and self.emits


class Scheduler:
    """Running requests first, in order of admission, then waiting ones; the newest gives way when blocks run out."""

    def __init__(self, *, num_blocks: int, block_tokens: int, token_budget: int, max_running: int) -> None:
        self.block_tokens, self._budget, self._max_running = block_tokens, token_budget, max_running
        self._num_blocks, self._free = num_blocks, list(range(num_blocks - 1, -1, -1))
        self._waiting: deque[Live] = deque()
        self._running: list[Live] = []
        self.preemptions = 0

    @property
    def free_blocks(self) -> int:
        """Blocks nobody holds."""
        return len(self._free)

    @property
    def busy(self) -> bool:
        """Whether anyone waits or runs."""
        return bool(self._waiting or self._running)

    def submit(self, live: Live) -> None:
        """Queue a request. Raises ValueError for one that the whole pool could not hold."""
        longest = live.prompt_tokens + live.output_tokens
        if self._blocks_for(longest) > self._num_blocks:
            raise ValueError(f"a request of {longest} tokens does not fit the cache")
        self._waiting.append(live)

    def plan(self) -> list[Part]:
        """The next step: decodes first, then chunks, in order of admission. Blocks are held when this returns."""
        parts, budget, position, before = [], self._budget, 0, self.preemptions
        while position < len(self._running) and budget > 0:
            live = self._running[position]
            new = min(len(live.tokens) - live.computed, budget)
            if not self._hold(live, new):
                continue  # the newest gave way, maybe this one: look again
            parts.append(Part(live, new))
            budget -= new
            position += 1
        while self._waiting and budget > 0 and len(self._running) < self._max_running and self.preemptions == before:
            live = self._waiting[0]
            new = min(len(live.tokens), budget)
            if not self._grow(live, new):
                break
            self._running.append(self._waiting.popleft())
            parts.append(Part(live, new))
            budget -= new
        return sorted(parts, key=lambda part: not part.is_decode)

    def finish_step(self, parts: list[Part], sampled: dict[int, int]) -> list[Live]:
        """Book a step: `sampled` holds the next token of every request that emits. Those now finished are released."""
        for part in parts:
            emits, live = part.emits, part.live
            live.computed += part.new
            if emits:
                live.tokens.append(sampled[live.number])
        done = [live for live in self._running if live.finished]
        for live in done:
            self._release(live)
        self._running = [live for live in self._running if not live.finished]
        return done

    def _hold(self, live: Live, new: int) -> bool:
        """Blocks for the request's next tokens; False after the newest running request gave way."""
        if self._grow(live, new):
            return True
        newest = self._running.pop()
        self._release(newest)
        newest.computed = 0
        self._waiting.appendleft(newest)
        self.preemptions += 1
        return False

    def _grow(self, live: Live, new: int) -> bool:
        missing = self._blocks_for(live.computed + new) - len(live.blocks)
        if missing > len(self._free):
            return False
        live.blocks += [self._free.pop() for _ in range(missing)]
        return True

    def _release(self, live: Live) -> None:
        self._free += reversed(live.blocks)
        live.blocks.clear()

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)
