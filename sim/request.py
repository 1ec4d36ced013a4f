"""A request and its progress: tokens computed and emitted are counted here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

NUMBER_SHIFT = 40
"""The id of a sequence is that of its request plus its number << 40; ids of requests are smaller than that."""
REQUEST_MASK = (1 << NUMBER_SHIFT) - 1


class State(IntEnum):
    """Where a request ended up. Only the last four appear in a saved run."""

    WAITING = 0
    RUNNING = 1
    COMPLETED = 2
    ABORTED = 3  # the client gave up (time-out); its blocks were freed
    REJECTED = 4  # refused at the door, with a reason; it never ran
    UNFINISHED = 5  # the run was interrupted or reached its time limit first


class Reason(IntEnum):
    """Why a request did not complete."""

    NONE = 0
    TOO_LONG = 1  # prompt + requested output exceed max_model_len
    NEVER_FITS = 2  # needs more KV blocks than the replica has
    CLIENT_TIMEOUT = 3
    INTERRUPTED = 4
    QUEUE_FULL = 5  # max_queued_requests were waiting


# What every request goes through. By these names, because CPython 3.11 takes ten times as long to find `State.RUNNING`.
WAITING, RUNNING, COMPLETED = State.WAITING, State.RUNNING, State.COMPLETED
NO_REASON = Reason.NONE


@dataclass(frozen=True, slots=True)
class Traits:
    """What only some workloads know about a request. Policies may read all of it; nothing here reveals the output."""

    tenant: str = ""
    tenant_number: int = 0
    """Its place among the tenants of the workload."""
    priority: int = 0
    """Lower values first, as in vLLM."""
    session: str = ""
    turn: int = 0
    prefix_hashes: tuple[int, ...] = ()
    """Identity of the prompt's content, one hash per `prefix_block_tokens` tokens (Mooncake: 512)."""
    prefix_block_tokens: int = 0
    hashes_output: bool = False
    """Whether `prefix_hashes` go on beyond the prompt, as far as the longest output: in a session the next prompt
    begins with what is generated now, and a cache that knows its identity can be asked for it."""
    slo_class: str = ""
    images: int = 0
    """Images in the prompt, one behind the other."""
    image_tokens: int = 0
    """Prompt tokens of each."""
    images_start: int = 0
    """Prompt tokens before the first."""

    def images_begun(self, begin: int, end: int) -> int:
        """Images whose first token is one of the prompt's tokens `begin` to `end` - 1."""
        first = max(0, -((self.images_start - begin) // self.image_tokens)) if self.image_tokens else 0
        last = max(0, -((self.images_start - end) // self.image_tokens)) if self.image_tokens else 0
        return min(last, self.images) - min(first, self.images)


NO_TRAITS = Traits()


class Request:
    """One prompt and its generation. Times are picoseconds of the engine's clock, -1 while they have not happened.

    `computed_tokens` counts tokens whose keys and values are in the cache, `emitted_tokens` those the client has
    received. While the request decodes, both are current only in its replica's `DecodeBatch`, which writes them back
    when the request leaves it. `_output_tokens`, the true length, is for the replica's eyes only: policies see
    `max_output_tokens` or a prediction.
    """

    __slots__ = (
        "_finish_step",
        "_output_tokens",
        "arrival_ps",
        "cached_tokens",
        "computed_tokens",
        "emitted_tokens",
        "first_token_ps",
        "id",
        "joined_step",
        "max_output_tokens",
        "predicted_output_tokens",
        "preempted_at_ps",
        "preempted_ps",
        "preemptions",
        "prompt_tokens",
        "reserved_tokens",
        "scheduled_ps",
        "segment_start_ps",
        "segment_step",
        "state",
        "target_tokens",
        "traits",
        "unused_tokens",
    )

    forks: int = 0
    """Further sequences that begin when the prompt is complete (`sim.sequences`); most requests are one sequence."""
    sibling_tokens: int = 0
    """Emitted by all sequences but the longest one, when the request has ended."""

    def __init__(
        self,
        id: int,  # noqa: A002
        arrival_ps: int,
        prompt_tokens: int,
        output_tokens: int,
        max_output_tokens: int | None = None,
        traits: Traits = NO_TRAITS,
    ) -> None:
        self.id, self.arrival_ps, self.prompt_tokens, self.traits = id, arrival_ps, prompt_tokens, traits
        self._output_tokens = output_tokens
        self.max_output_tokens = output_tokens if max_output_tokens is None else max_output_tokens
        self.predicted_output_tokens = self.max_output_tokens
        """What a `LengthPredictor` guessed when the request arrived; without one, the longest output allowed."""
        self.state = WAITING
        self.computed_tokens = self.emitted_tokens = self.cached_tokens = self.preemptions = self.preempted_ps = 0
        self.target_tokens = prompt_tokens
        """Tokens to prefill before the next one can be emitted: the prompt, and after a preemption also what was
        already emitted."""
        self.reserved_tokens = 0
        """Owned by the KV allocator: tokens that have room in the cache."""
        self.unused_tokens = 0
        """Written by the KV allocator at a release: room that the request held and never filled."""
        self.scheduled_ps = self.first_token_ps = self.preempted_at_ps = -1
        self.joined_step = -1
        """Owned by `DecodeBatch`: its step count when this request joined; -1 while it does not decode."""
        self._finish_step = self.segment_step = self.segment_start_ps = -1

    def __repr__(self) -> str:
        return (
            f"<Request {self.id} {self.state.name.lower()} prompt={self.prompt_tokens} "
            f"computed={self.computed_tokens} emitted={self.emitted_tokens}>"
        )


def images_begun(chunks: Iterable[tuple[Request, int]]) -> int:
    """Images whose first token is computed by some chunks, `(request, new tokens)`: those that are encoded for them."""
    return sum(
        request.traits.images_begun(request.computed_tokens, request.computed_tokens + tokens)
        for request, tokens in chunks
        if request.traits.images
    )
