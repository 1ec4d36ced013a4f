"""Traffic whose requests ask for several answers: samples of their own lengths, or the beams of a search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sim.request import Request
from sim.rng import stream
from sim.sequences import BeamSearch, Lengths, with_sequences
from sim.workloads.base import Workload
from sim.workloads.lengths import LengthLaw


class SeveralSequences:
    """Other traffic, every request of which has `n` sequences.

    The first sequence of a request is as long as its answer was. The others are drawn from `lengths`, each request for
    itself, so that neither their number nor the order of events shifts another request; without a law (a trace, which
    knows one answer only), and in a beam search, they are as long as the first.
    """

    def __init__(
        self,
        inner: Workload,
        n: int,
        *,
        lengths: LengthLaw | None = None,
        max_output_tokens: int | None = None,
        beams: BeamSearch | None = None,
        seed: int = 0,
    ) -> None:
        self._inner, self._n, self._beams, self._seed = inner, n, beams, seed
        self._lengths = lengths if beams is None else None
        self._most = max_output_tokens
        self.num_requests, self.has_prefixes, self.notes = inner.num_requests, inner.has_prefixes, inner.notes

    def __iter__(self) -> Iterator[Request]:
        return map(self._widened, self._inner)

    def on_finish(self, request: Request, now_ps: int) -> Iterable[Request]:
        """What the client sends next, with as many sequences."""
        return map(self._widened, self._inner.on_finish(request, now_ps))

    def describe(self) -> dict[str, Any]:
        """The traffic as it is without, and what every request asks for."""
        if self._beams is None:
            return {**self._inner.describe(), "n": self._n}
        beams = {"beam_width": self._n, "beam_switch_probability": self._beams.switch_probability}
        return {**self._inner.describe(), **beams}

    def _widened(self, request: Request) -> Request:
        return with_sequences(request, self._lengths_of(request), self._beams)

    def _lengths_of(self, request: Request) -> Lengths:
        first, law = request._output_tokens, self._lengths
        if law is None:
            return (first,) * self._n
        others = law.draw(stream(self._seed, "sample_tokens", request.id), self._n - 1).tolist()
        return (first, *(others if self._most is None else (min(tokens, self._most) for tokens in others)))
