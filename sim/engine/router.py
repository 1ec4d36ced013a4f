"""Which replica serves an arriving request: plain callables of (request, replicas)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

from sim.engine.replica import Replica
from sim.request import Request
from sim.rng import stream

Router = Callable[[Request, Sequence[Replica]], Replica]


class RoundRobin:
    """Each replica in turn."""

    def __init__(self) -> None:
        self._next = -1

    def __call__(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        self._next = (self._next + 1) % len(replicas)
        return replicas[self._next]


class Random:
    """A uniform draw keyed by the request, so that it does not depend on the order of events."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, request: Request, replicas: Sequence[Replica]) -> Replica:
        return replicas[int(stream(self._seed, "router", request.id).integers(len(replicas)))]


_outstanding = attrgetter("outstanding")


def least_outstanding_requests(request: Request, replicas: Sequence[Replica]) -> Replica:
    """The replica with the fewest requests that have not ended; the first of equals."""
    return min(replicas, key=_outstanding)


def least_kv_usage(request: Request, replicas: Sequence[Replica]) -> Replica:
    """The replica that uses the fewest KV blocks at this moment; it looks at each of them for every arrival."""
    return min(replicas, key=Replica.used_blocks)


def prefix_affinity(request: Request, replicas: Sequence[Replica]) -> Replica:
    """The replica that has most of the prompt in its prefix cache; among equals the one with the fewest outstanding.

    It looks into every cache for every arrival. What all prompts share, such as a system prompt, draws all of them to
    one replica: `kv_aware` weighs the hit against the load.
    """
    return min(replicas, key=lambda replica: (-replica.find_cached(request), replica.outstanding))


def kv_aware(request: Request, replicas: Sequence[Replica]) -> Replica:
    """The replica with the fewest tokens to compute for this prompt and blocks in use, both in tokens; the first of
    equals.

    The cost function of NVIDIA Dynamo's KV router with a weight of 1 (from memory): blocks to prefill + active blocks.
    """
    prompt = request.prompt_tokens
    return min(replicas, key=lambda replica: prompt - replica.find_cached(request) + replica.used_tokens())
