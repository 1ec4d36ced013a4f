"""Requests with several continuations: parallel sampling (`n`) and beam search (PagedAttention, section 4.4).

A request is what a client sent, a sequence is one continuation of it. Until the prompt is computed a request is its
first sequence; then it forks into all of them, which share the keys and values of the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sim.request import NUMBER_SHIFT, RUNNING, Request, State
from sim.rng import stream

Lengths = tuple[int, ...]
Switch = tuple[int, int]
"""(emitted tokens at which it happens, number of the beam that is continued instead)."""


class SharedBlocks:
    """Full KV blocks that several sequences hold, behind those of `parent`: a path to the root is what one shares.

    `blocks` counts from the root to the end of these; `refs` counts the sequences whose last shared blocks these are
    and the `SharedBlocks` that follow them.
    """

    __slots__ = ("blocks", "parent", "refs")

    def __init__(self, parent: SharedBlocks | None, blocks: int) -> None:
        self.parent, self.blocks, self.refs = parent, blocks, 1


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """How the beams of a search replace each other.

    After every step but the last each beam is dropped with `switch_probability`, and another beam, each as likely as
    the others, is continued twice in its stead. All draws follow from `seed` and the request.
    """

    width: int
    switch_probability: float
    seed: int = 0

    def switches(self, request_id: int, output_tokens: int) -> list[list[Switch]]:
        """For each beam what happens to it, the first event last, for outputs of so many tokens.

        The first tokens of all beams come from one prompt, so nothing is dropped before the second.
        """
        rng = stream(self.seed, "beam_switches", request_id)
        dropped = rng.random((max(0, output_tokens - 2), self.width)) < self.switch_probability
        steps, beams = np.nonzero(dropped)
        sources = (beams + rng.integers(1, max(2, self.width), size=len(beams))) % self.width
        events: list[list[Switch]] = [[] for _ in range(self.width)]
        for step, beam, source in zip(steps.tolist()[::-1], beams.tolist()[::-1], sources.tolist()[::-1], strict=True):
            events[beam].append((step + 2, source))
        return events


def neutral_switch_probability(width: int) -> float:
    """The chance (1 - 1/w)^w that a beam has no successor when each of w beams descends from any of w, all alike.

    The neutral model of population genetics (Wright-Fisher): scores that say nothing about which beam is better.
    """
    return (1 - 1 / width) ** width


class SequenceGroup:
    """The sequences of one request (vLLM V0's word), and what its client sees of them."""

    __slots__ = ("beams", "lengths", "members", "open")

    def __init__(self, first: Sequence, lengths: Lengths, beams: BeamSearch | None) -> None:
        self.lengths, self.beams = lengths, beams
        self.members = [first]
        """The sequences that have begun, by number."""
        self.open = 1
        """Those of them that have not ended."""

    def fork(self) -> list[Sequence]:
        """The other sequences begin where the first one is now: at the end of the prompt."""
        first = self.members[0]
        children = [first.child(number) for number in range(1, len(self.lengths))]
        self.members += children
        self.open += len(children)
        if self.beams is not None:
            events = self.beams.switches(first.id, self.lengths[0])
            for sequence, own in zip(self.members, events, strict=True):
                sequence.switches = own
        return children

    def close(self, state: State, now_ps: int) -> Sequence:
        """All sequences have ended: the first one becomes what the client saw of the request.

        Output tokens are those of all sequences, as in the API's `usage`; the first token is that of the sequence that
        got one first; preemptions add up. The client of a beam search sees nothing before the end.
        """
        first, members = self.members[0], self.members
        tokens = [sequence.emitted_tokens for sequence in members]
        spoken = [sequence.first_token_ps for sequence in members if sequence.first_token_ps >= 0]
        first.emitted_tokens, first.sibling_tokens = sum(tokens), sum(tokens) - max(tokens)
        first.first_token_ps = min(spoken, default=-1)
        if spoken and self.beams is not None:
            first.first_token_ps = now_ps
        first.preemptions = sum(sequence.preemptions for sequence in members)
        first.unused_tokens = sum(sequence.unused_tokens for sequence in members)
        first.preempted_ps = max(sequence.preempted_ps for sequence in members)
        first.state = state
        return first


class Sequence(Request):
    """One continuation of a request that has several; number 0 is the request itself until its prompt is complete."""

    __slots__ = ("forks", "group", "shared", "sibling_tokens", "switches")

    def __init__(self, like: Request, id: int, output_tokens: int, max_output_tokens: int) -> None:  # noqa: A002
        super().__init__(id, like.arrival_ps, like.prompt_tokens, output_tokens, max_output_tokens, like.traits)
        self.forks = self.sibling_tokens = 0
        self.shared: SharedBlocks | None = None
        """Owned by the KV allocator: the last of the blocks it has shared since a fork."""
        self.switches: list[Switch] = []
        """Of a beam: when it is replaced, and by which one; the next event is the last."""
        self.group: SequenceGroup

    def child(self, number: int) -> Sequence:
        """Another sequence of the same request, which has its prompt computed as this one has."""
        group = self.group
        child = Sequence(self, (number << NUMBER_SHIFT) + self.id, group.lengths[number], self.max_output_tokens)
        child.group, child.computed_tokens, child.scheduled_ps = group, self.computed_tokens, self.scheduled_ps
        child.state, child.predicted_output_tokens = RUNNING, self.predicted_output_tokens
        return child


def with_sequences(request: Request, lengths: Lengths, beams: BeamSearch | None = None) -> Sequence:
    """The request with a sequence for each of these output lengths. Those of beams are equal."""
    if request.traits.hashes_output:  # of one answer; which of several goes on in a session is not known
        request.traits = replace(request.traits, hashes_output=False)
    longest = max(request.max_output_tokens, *lengths)
    first = Sequence(request, request.id, lengths[0], longest)
    first.group, first.forks = SequenceGroup(first, lengths, beams), len(lengths) - 1
    return first


def sequences_of(request: Request) -> list[Request]:
    """The sequences of a client's request that have begun: by themselves or in a group."""
    return list(request.group.members) if isinstance(request, Sequence) else [request]
