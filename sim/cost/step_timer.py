"""From the shape of a batch to the time of its steps: the face of the cost model that the engine sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sim.cost.ops import ForwardPass, OpCost
from sim.cost.roofline import Cost
from sim.cost.shape import Chunk, RunShape, Span
from sim.cost.step_times import Piece, StepTimes, one_step
from sim.units import PS_PER_S

_CELL_BITS = 5
"""16 cells per octave of context: linear interpolation of a smooth cost is then within 0.02 %."""
_SMALLEST_CELL_EXPONENT = 8
_MOST_CHUNKS = 1 << 16
"""Prices of the chunks of a step that are remembered. New tokens count in tiles of 16, so that most of them recur."""


@dataclass(frozen=True)
class HostWork:
    """Work of the serving engine around the GPU that is not hidden behind it, per step."""

    step_s: float = 0.0
    sequence_s: float = 0.0
    """Per sequence whose next token is sampled."""
    token_s: float = 0.0
    """Per new token of the step."""

    def seconds(self, tokens: int, sampled: int) -> float:
        """Exposed host time of one step."""
        return self.step_s + self.sequence_s * sampled + self.token_s * tokens


class StepPricer(Protocol):
    """A `StepTimer` that can also say where the time goes."""

    @property
    def forward(self) -> ForwardPass:
        """The forward pass that is priced."""
        ...

    @property
    def spans(self) -> tuple[Span, ...]:
        """The attention spans whose sums a shape must carry, in this order."""
        ...

    def run(self, shape: RunShape, max_steps: int) -> StepTimes:
        """As `StepTimer.run`."""
        ...

    def explain(self, shape: RunShape) -> list[OpCost]:
        """The operators of the first step of a shape, priced by the full formula."""
        ...

    def host_seconds(self, tokens: int, sampled: int) -> float:
        """Exposed host time of a step."""
        ...


class _Knots:
    """Attention time of the decodes over one span, affine in the tokens seen between integer knots.

    Knots lie at m x 2^e with 16 <= m < 32, so that each octave has 16 cells. They are priced with the full formula
    once; slopes are integers, so that any number of steps adds up exactly.
    """

    __slots__ = ("_forward", "_priced", "_span", "_tick", "table")

    def __init__(self, forward: ForwardPass, span: int, tick_ps: int) -> None:
        self._forward, self._span, self._tick = forward, span, tick_ps
        self.table: dict[int, tuple[int, int]] = {}
        self._priced: dict[tuple[int, int], int] = {}  # a knot ends one cell and begins the next

    def at(self, sequences: int, tokens: int) -> tuple[int, int, int]:
        """(time in ps, its slope per token, tokens until the next knot)."""
        e = tokens.bit_length() - _CELL_BITS
        if e < _SMALLEST_CELL_EXPONENT:
            e = _SMALLEST_CELL_EXPONENT
        cell = tokens >> e
        first, slope = self.table.get(sequences << 12 | e << 5 | cell) or self.price(sequences, e, cell)
        into = tokens - (cell << e)
        return first + slope * into, slope, (1 << e) - into

    def price(self, sequences: int, e: int, cell: int) -> tuple[int, int]:
        """Time at the knot `cell << e` and slope up to the next one, remembered."""
        left, right = self._knot_ps(sequences, cell << e), self._knot_ps(sequences, (cell + 1) << e)
        slope = (right - left >> e) // self._tick * self._tick
        self.table[sequences << 12 | e << 5 | cell] = left, slope
        return left, slope

    def _knot_ps(self, sequences: int, tokens: int) -> int:
        time = self._priced.get((sequences, tokens))
        if time is None:
            seconds = sum(op.seconds for op in self._forward.decode(sequences, tokens, self._span))
            self._priced[sequences, tokens] = time = round(seconds * PS_PER_S / self._tick) * self._tick
        return time


def padded_rows(tokens: int) -> int:
    """The rows that a step of so many tokens really computes.

    Engines replay a CUDA graph captured for the next size up: 1, 2, 4, every 8 to 256, every 16 to 512 (vLLM's
    default capture sizes; from memory). Longer steps run as they are; 16 rows are then the finest grain
    of a tensor-core tile.
    """
    if tokens <= 2:
        return tokens
    if tokens <= 4:
        return 4
    grain = 8 if tokens <= 256 else 16
    return -(-tokens // grain) * grain


class RooflineStepTimer:
    """Adds up the operators of a forward pass, and what the engine around it costs.

    A step of decodes is a constant for their number, plus per attention span a function of the tokens seen: a run of
    steps is an arithmetic series between knots. `tick_ps` above 1 makes all times multiples of it, so that tests can
    provoke ties.
    """

    def __init__(self, forward: ForwardPass, host: HostWork | None = None, *, tick_ps: int = 1) -> None:
        self._forward, self._host, self._tick = forward, host or HostWork(), tick_ps
        self._lanes, self._queries = forward.layout.lanes, forward.choices.query_tokens
        self._rows_ps: dict[int, int] = {}
        self._head_ps: dict[int, int] = {}
        self._constant_ps: dict[int, int] = {}
        self._chunks_ps: dict[tuple[Chunk, ...], int] = {}
        self._whole = _Knots(forward, -1, tick_ps)
        self._local = [_Knots(forward, i, tick_ps) for i in range(len(forward.spans))]

    @property
    def forward(self) -> ForwardPass:
        """The forward pass that is priced."""
        return self._forward

    @property
    def spans(self) -> tuple[Span, ...]:
        """The attention spans whose sums a shape must carry, in this order."""
        return self._forward.spans

    def run(self, shape: RunShape, max_steps: int) -> StepTimes:
        """Times of up to `max_steps` steps (of one, when there are chunks)."""
        count = shape.decodes
        if shape.chunks:
            return one_step(self._mixed(shape))
        base = self._constant_ps.get(count) or self._constant(count)
        if self._local:
            return self._run_with_spans(shape, base, max_steps)
        context, done, total = shape.context_tokens, 0, 0
        knots, table = self._whole, self._whole.table
        pieces: list[Piece] = []
        while True:
            # As `_Knots.at`, written out: this is the hottest code of the program.
            e = context.bit_length() - _CELL_BITS
            if e < _SMALLEST_CELL_EXPONENT:
                e = _SMALLEST_CELL_EXPONENT
            cell = context >> e
            key = count << 12 | e << 5 | cell
            left, slope = table[key] if key in table else knots.price(count, e, cell)
            first, growth = base + left + slope * (context - (cell << e)), slope * count
            steps = ((cell + 1 << e) - context + count - 1) // count
            if steps > max_steps - done:
                steps = max_steps - done
            pieces.append((done, total, first, growth, steps))
            total += steps * first + growth * (steps * (steps - 1) >> 1)
            done += steps
            if done == max_steps:
                return StepTimes(done, total, pieces)
            context += steps * count

    def explain(self, shape: RunShape) -> list[OpCost]:
        """The operators of the first step of a shape, priced by the full formula."""
        guesses, forward = shape.decodes * (self._queries - 1), self._forward
        tokens, sampled = shape.new_tokens + guesses, shape.decodes + len(shape.chunks)
        lane = forward.layout.fullest
        ops = forward.rows(padded_rows(lane(tokens, shape.longest_chunk))) + forward.head(lane(sampled + guesses))
        if shape.chunks:
            ops += forward.prefill([(cached, new + 15 & -16) for cached, new in shape.chunks])
        if shape.decodes:
            ops += forward.decode(shape.decodes, shape.context_tokens)
            for i, seen in enumerate(shape.local_tokens):
                ops += forward.decode(shape.decodes, seen, i)
        host = self.host_seconds(tokens, sampled)
        if host:
            ops.append(OpCost("host", 1, Cost(host, 0.0, 0.0, "host")))
        return ops

    def _run_with_spans(self, shape: RunShape, base: int, max_steps: int) -> StepTimes:
        """As `run`, with one more term per span; a piece ends where the first of the terms reaches a knot."""
        count, done, total = shape.decodes, 0, 0
        seen = [shape.context_tokens, *shape.local_tokens]
        growth = [count, *shape.local_growth]
        terms = [self._whole, *self._local]
        pieces: list[Piece] = []
        while True:
            first, slope, steps = base, 0, max_steps - done
            for knots, tokens, grows in zip(terms, seen, growth, strict=True):
                time, per_token, room = knots.at(count, tokens)
                first += time
                slope += per_token * grows
                if grows and (room + grows - 1) // grows < steps:
                    steps = (room + grows - 1) // grows
            pieces.append((done, total, first, slope, steps))
            total, done = total + steps * first + slope * (steps * (steps - 1) >> 1), done + steps
            if done == max_steps:
                return StepTimes(done, total, pieces)
            seen = [tokens + steps * grows for tokens, grows in zip(seen, growth, strict=True)]

    def _mixed(self, shape: RunShape) -> int:
        """A step with prompt chunks, and perhaps decodes beside them."""
        count, tiles = shape.decodes, []
        tokens = count * self._queries
        sampled = tokens + len(shape.chunks)
        for cached, new in shape.chunks:
            tokens += new
            tiles.append((cached, new + 15 & -16))
        key = tuple(tiles)
        host = self.host_seconds(tokens, count + len(shape.chunks))
        if self._lanes > 1:
            lane = self._forward.layout.fullest
            tokens, sampled = lane(tokens, shape.longest_chunk), lane(sampled)
        time = (self._rows_ps.get(tokens) or self._rows(tokens)) + (self._head_ps.get(sampled) or self._head(sampled))
        time += self._chunks_ps.get(key) or self._prefill(key)
        if count:
            time += self._whole.at(count, shape.context_tokens)[0]
            for knots, seen in zip(self._local, shape.local_tokens, strict=True):
                time += knots.at(count, seen)[0]
        return time + self._ps(host)

    def _prefill(self, tiles: tuple[Chunk, ...]) -> int:
        if len(self._chunks_ps) >= _MOST_CHUNKS:
            self._chunks_ps.clear()
        self._chunks_ps[tiles] = time = self._ps(self._forward.prefill_seconds(tiles))
        return time

    def _constant(self, count: int) -> int:
        rows = count * self._queries
        lane, host = self._forward.layout.fullest(rows), self._ps(self.host_seconds(rows, count))
        self._constant_ps[count] = time = self._rows(lane) + self._head(lane) + host
        return time

    def host_seconds(self, tokens: int, sampled: int) -> float:
        """Exposed host time of a step: each micro-batch of a pipeline is scheduled on its own."""
        return self._host.seconds(tokens, sampled) + (self._forward.layout.pp - 1) * self._host.step_s

    def _rows(self, tokens: int) -> int:
        time = self._rows_ps.get(tokens)
        if time is None:
            rows = padded_rows(tokens)
            time = self._rows_ps.get(rows)
            if time is None:
                time = self._rows_ps[rows] = self._ps(sum(op.seconds for op in self._forward.rows(rows)))
            self._rows_ps[tokens] = time
        return time

    def _head(self, sampled: int) -> int:
        time = self._head_ps.get(sampled)
        if time is None:
            time = self._head_ps[sampled] = self._ps(sum(op.seconds for op in self._forward.head(sampled)))
        return time

    def _ps(self, seconds: float) -> int:
        return round(seconds * PS_PER_S / self._tick) * self._tick
