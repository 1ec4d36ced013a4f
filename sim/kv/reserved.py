"""Room taken at admission by a rule, and blocks beyond it on demand: the base of what reserves or bounds KV memory."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from sim.errors import InvariantError
from sim.kv.base import GRANTED, Grant
from sim.kv.paged import GROWING, PagedKV
from sim.request import Request
from sim.step import NO_LIMIT
from sim.units import ceil_div


class Holding:
    """What a request holds: blocks taken at admission and by its chunks, and where its growth stands."""

    __slots__ = ("address", "blocks", "event_step", "most_tokens", "on_demand", "phase", "stop_step")

    def __init__(self, blocks: int, address: int = 0) -> None:
        self.blocks, self.address = blocks, address
        self.most_tokens = NO_LIMIT
        """What the request stores at the most."""
        self.event_step = self.stop_step = self.phase = -1
        self.on_demand = False


class ReservedKV(PagedKV):
    """A request is admitted with the room that `room_tokens` says; when that is full it grows block by block.

    A growing request passes at most two events, both known when it starts: its room is full and it enters the
    histogram of `PagedKV`, and it holds all that it may ever store and leaves it. `growth_limit` never reaches beyond
    the next event, so between two of them growth follows the histogram in closed form.
    `bound_tokens`: a sequence stores no more than this (a window with its sinks). `growth_blocks`: taken at a time.
    """

    __slots__ = ("_bound", "_copied", "_events", "_filling", "_holdings", "_quantum", "_serial", "_steps")

    def __init__(
        self,
        total_blocks: int,
        block_tokens: int,
        fixed_blocks: int = 0,
        *,
        bound_tokens: int | None = None,
        growth_blocks: int = 1,
        watermark: float = 0.0,
    ) -> None:
        super().__init__(total_blocks, block_tokens, fixed_blocks, watermark=watermark)
        self._bound = NO_LIMIT if bound_tokens is None else bound_tokens
        self._quantum, self._period = growth_blocks, growth_blocks * block_tokens
        self._due = [0] * (2 * self._period)  # blocks, not requests
        self._holdings: dict[Request, Holding] = {}
        self._copied: dict[Request, Holding] = {}  # of the parked
        self._events: list[tuple[int, int, Holding]] = []  # (step, serial, whose); stale when it has another event
        self._steps = self._serial = 0
        self._filling = 0  # requests that store one more token per step

    def room_tokens(self, request: Request, tokens: int) -> int:
        """Room that a request is admitted with whose first chunk has so many tokens; at least that much is taken."""
        return tokens

    def blocks_for(self, request: Request) -> int:
        """Blocks of the prompt and the longest output, and what growth in larger units may overshoot."""
        tokens = min(request.prompt_tokens + request.max_output_tokens, self._bound)
        return ceil_div(tokens, self.block_tokens) + self._quantum - 1 + self._fixed

    def can_reserve(self, request: Request, tokens: int) -> bool:
        """Whether there is room now for a new request; exact."""
        return self._fits(self._blocks(self._room(request, tokens)))

    def reserve(self, request: Request, tokens: int) -> Grant | None:
        """At admission the whole room; after that blocks only for what exceeds it."""
        total = request.computed_tokens + tokens
        holding = self._holdings.get(request)
        if holding is None:
            return self._admit(request, total)
        need = self._blocks(min(total, holding.most_tokens)) - holding.blocks
        if need > 0:
            if need > self.free_blocks - self._due[self._phase]:
                return None
            self.free_blocks -= need
            holding.blocks += need
        self.stored_tokens += min(total, holding.most_tokens) - min(request.reserved_tokens, holding.most_tokens)
        request.reserved_tokens = total
        return GRANTED

    def grow(self, request: Request) -> None:
        """From the next step on this request adds a token per step, until it stores all it may."""
        request.reserved_tokens = GROWING
        holding = self._holdings[request]
        ahead, left = self._room_of(holding) - request.computed_tokens, holding.most_tokens - request.computed_tokens
        if left <= 0:
            return
        self._filling += 1
        holding.stop_step = self._steps + left if holding.most_tokens < NO_LIMIT else NO_LIMIT
        if ahead <= 0:
            self._enter(holding)
        elif ahead < left:
            self._expect(holding, self._steps + ahead)
        else:
            self._expect(holding, holding.stop_step)

    def growth_limit(self, steps: int) -> int:
        """As far as the histogram allows, but not beyond the next event."""
        events = self._events
        while events and events[0][2].event_step != events[0][0]:
            heapq.heappop(events)
        if events and events[0][0] - self._steps < steps:
            steps = events[0][0] - self._steps
        return super().growth_limit(steps)

    def stored_after(self, steps: int) -> int:
        """Requests that have not stored all they may store a token per step."""
        return self.stored_tokens + steps * self._filling

    def advance(self, steps: int) -> None:
        """Commit the growth of a run, and the events at its end."""
        self.free_blocks -= self._grown(steps)
        self.stored_tokens += steps * self._filling
        self._steps += steps
        self._phase = self._steps % self._period
        events = self._events
        while events and events[0][0] <= self._steps:
            step, _, holding = heapq.heappop(events)
            if holding.event_step == step:
                self._pass_event(holding)

    def release(self, request: Request) -> None:
        """All of it, at once."""
        if request in self._parked:
            self._free_parked(request)
        elif request in self._holdings:
            holding, stored = self._leave(request)
            self._give_back(holding, stored)
            request.unused_tokens = (self._held(holding, stored) - self._fixed) * self.block_tokens - stored

    def park(self, request: Request) -> None:
        """All of its room stays in use under the allocator's own account."""
        self._copied[request], self._parked[request] = holding, stored = self._leave(request)
        self.parked_blocks += self._held(holding, stored)

    def restore(self, request: Request) -> Grant | None:
        """Admitted again, with its next token in mind."""
        tokens = request.computed_tokens
        room = self._room(request, tokens)
        blocks = self._blocks(room)
        full = (blocks - self._fixed) * self.block_tokens <= tokens < self._most(room)
        if request in self._parked or not self._fits(blocks + self._quantum * full):
            return None
        return self._admit(request, tokens)

    def check(self, holders: Iterable[tuple[Request, int]]) -> None:
        """What the holders hold and what is free make up all blocks, and the histogram counts those on demand."""
        holders = list(holders)
        if len({request for request, _ in holders} & set(self._holdings)) != max(len(holders), len(self._holdings)):
            raise InvariantError("the holders of KV blocks are not those who were given some")
        held, due = self.parked_blocks, [0] * (2 * self._period)
        for request, tokens in holders:
            holding = self._holdings[request]
            held += self._held(holding, self._stored(request, holding, tokens))
            if holding.on_demand:
                for p in (holding.phase, holding.phase + self._period):
                    due[p] += self._quantum
        if held + self.free_blocks != self.total_blocks or due != self._due or 2 * self._growing != sum(due):
            raise InvariantError(f"KV blocks do not add up: {held} held by requests + {self.free_blocks} free != "
                                 f"{self.total_blocks} in all")  # fmt: skip

    # ---- what placement changes
    def _fits(self, blocks: int) -> bool:
        """Whether a new request can be given so many blocks."""
        return blocks <= self._admissible()

    def _take(self, blocks: int) -> Holding | None:
        """These blocks for a new request, or None."""
        if not self._fits(blocks):
            return None
        self.free_blocks -= blocks
        return Holding(blocks)

    def _give_back(self, holding: Holding, stored: int) -> None:
        self.free_blocks += self._held(holding, stored)
        self.stored_tokens -= stored

    # ---- arithmetic
    def _room(self, request: Request, tokens: int) -> int:
        return min(max(self.room_tokens(request, tokens), tokens), self._bound)

    def _blocks(self, tokens: int) -> int:
        return (tokens + self.block_tokens - 1) // self.block_tokens + self._fixed

    def _room_of(self, holding: Holding) -> int:
        return (holding.blocks - self._fixed) * self.block_tokens

    def _stored(self, request: Request, holding: Holding, computed: int) -> int:
        return min(max(computed, request.reserved_tokens), holding.most_tokens)

    def _held(self, holding: Holding, stored: int) -> int:
        """Blocks of a request that stores so many tokens."""
        beyond = stored - self._room_of(holding)
        return holding.blocks + (ceil_div(beyond, self._period) * self._quantum if beyond > 0 else 0)

    def _most(self, room: int) -> int:
        """What a request stores at the most that is admitted with this room."""
        return self._bound

    # ---- growth
    def _admit(self, request: Request, total: int) -> Grant | None:
        room = self._room(request, total)
        holding = self._take(self._blocks(room))
        if holding is None:
            return None
        holding.most_tokens = self._most(room)
        self._holdings[request] = holding
        self.stored_tokens += min(total, holding.most_tokens)
        request.reserved_tokens = total
        return GRANTED

    def _leave(self, request: Request) -> tuple[Holding, int]:
        """The request stores no more and holds nothing in its own name: what it held, and how much it stored."""
        holding = self._holdings.pop(request)
        stored = self._stored(request, holding, request.computed_tokens)
        if holding.stop_step >= 0:
            self._stop(holding)
        request.reserved_tokens = 0
        return holding, stored

    def _free_parked(self, request: Request) -> None:
        holding, stored = self._copied.pop(request), self._parked.pop(request)
        self.parked_blocks -= self._held(holding, stored)
        self._give_back(holding, stored)

    def _expect(self, holding: Holding, step: int) -> None:
        holding.event_step = step
        if step < NO_LIMIT:
            self._serial += 1
            heapq.heappush(self._events, (step, self._serial, holding))

    def _pass_event(self, holding: Holding) -> None:
        if holding.event_step == holding.stop_step:
            self._stop(holding)
        else:
            self._enter(holding)

    def _enter(self, holding: Holding) -> None:
        """The room is full: blocks on demand from the next step on."""
        holding.on_demand, holding.phase = True, self._phase
        self._count_blocks(holding.phase, self._quantum)
        self._expect(holding, holding.stop_step)

    def _stop(self, holding: Holding) -> None:
        """It stores no more."""
        self._filling -= 1
        if holding.on_demand:
            self._count_blocks(holding.phase, -self._quantum)
        holding.on_demand, holding.event_step, holding.stop_step = False, -1, -1

    def _count_blocks(self, phase: int, blocks: int) -> None:
        self._due[phase] += blocks
        self._due[phase + self._period] += blocks
        self._growing += blocks
