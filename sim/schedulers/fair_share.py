"""Fairness between tenants: the virtual token counter of Sheng et al. (Fairness in Serving LLMs, OSDI 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from sim.errors import InvariantError
from sim.request import Request
from sim.schedulers.queue_order import SortedQueue

Weight = Annotated[int, Field(ge=0, le=10**6)]


class _Tenant:
    """One client's account. `service`: weighted tokens it has been given; `decoding`: its decoding sequences."""

    __slots__ = ("decoding", "queue", "service")

    def __init__(self) -> None:
        self.service = self.decoding = 0
        self.queue = SortedQueue(lambda request: 0)

    @property
    def order(self) -> tuple[int, int, int]:
        """Least service first; ties: who waits longer."""
        first = self.queue.head()
        return self.service, first.arrival_ps, first.id


class FairShareQueue:
    """The tenant that has been served least is next (`Traits.tenant`); a tenant's requests come in order of arrival.

    Service is `input_weight` per prompt token, charged at admission, and `output_weight` per token emitted (1 and 2 in
    the paper; from memory). A tenant that comes back after a pause is lifted to the others, so that absence earns no
    credit. The paper charges every token in its step; here the tokens of running sequences are charged by `settle`, in
    the first plan after an admission, a preemption or an end. In between the order stands still, so that steps can be
    leapt over.

    `settle` and `head` take time in proportion to the tenants, everything else O(log n).
    """

    __slots__ = (
        "_bases", "_due", "_input", "_left", "_next", "_offsets", "_output", "_recent", "_settled", "_tenants", "size",
    )  # fmt: skip

    def __init__(self, *, input_weight: Weight = 1, output_weight: Weight = 2) -> None:
        self._input, self._output = input_weight, output_weight
        self._tenants: dict[str, _Tenant] = {}
        self._recent: _Tenant | None = None  # whose request was the last to leave the queue
        self._next: _Tenant | None = None  # whose request is the head
        self._bases: dict[Request, int] = {}  # admitted, not known to decode: tokens emitted before
        self._offsets: dict[Request, tuple[int, int]] = {}  # decoding: (steps - new tokens, tokens emitted before)
        self._left: list[Request] = []  # ended or preempted since the last settlement
        self._due = False
        self._settled = 0  # decode steps of the batch at the last settlement
        self.size = 0

    def __iter__(self) -> Iterator[Request]:
        """In the order of the present counters, each admission charged."""
        queues = {name: list(tenant.queue)[::-1] for name, tenant in self._tenants.items()}
        service = {name: tenant.service for name, tenant in self._tenants.items()}
        while queues := {name: queue for name, queue in queues.items() if queue}:
            name = min(queues, key=lambda n: (service[n], queues[n][-1].arrival_ps, queues[n][-1].id))
            request = queues[name].pop()
            service[name] += self._price(request)
            yield request

    def push(self, request: Request) -> bool:
        """A tenant of whom nobody waited is lifted to the least counter of those who wait, or to the last served."""
        tenant = self._tenants.setdefault(request.traits.tenant, _Tenant())
        if not tenant.queue.size:
            waiting = [other.service for other in self._tenants.values() if other.queue.size]
            recent = self._recent.service if self._recent is not None else 0
            tenant.service = max(tenant.service, min(waiting, default=recent))
        tenant.queue.push(request)
        self.size += 1
        return self.head() is request

    def push_front(self, request: Request) -> None:
        """A preempted request goes back to its place among its tenant's; it is not charged for its prompt again."""
        self.ended(request)
        self._tenants[request.traits.tenant].queue.push_front(request)
        self.size += 1

    def head(self) -> Request:
        """The first request of the tenant with the least counter."""
        waiting = [tenant for tenant in self._tenants.values() if tenant.queue.size]
        self._next = tenant = min(waiting, key=lambda t: t.order) if len(waiting) > 1 else waiting[0]
        return tenant.queue.head()

    def pop(self) -> None:
        """The head is admitted and charged for its prompt."""
        if self._next is None:
            raise InvariantError("a request was taken from the queue before anybody looked which")
        tenant, self._recent = self._next, self._next
        request = tenant.queue.head()
        tenant.queue.pop()
        tenant.service += self._price(request)
        self._bases[request] = request.emitted_tokens
        self._due = True
        self.size -= 1

    def discard(self, request: Request) -> None:
        """Its client has gone."""
        self._recent = tenant = self._tenants[request.traits.tenant]
        tenant.queue.discard(request)
        self.size -= 1

    def forked(self, child: Request) -> None:
        """A sequence begins beside one that was charged for the prompt of both."""
        self._bases[child] = 0
        self._due = True

    def ended(self, request: Request) -> None:
        """An admitted request runs no more; its token counts are current."""
        self._left.append(request)
        self._due = True

    def settle(self, steps: int) -> None:
        """Begins every plan: charge what was emitted in decode steps up to `steps`, if that is due."""
        if not self._due:
            return
        self._due = False
        for request in self._left:
            self._settle_left(request)
        self._left.clear()
        for tenant in self._tenants.values():
            tenant.service += self._output * tenant.decoding * (steps - self._settled)
        for request in [r for r in self._bases if r.joined_step >= 0]:
            self._settle_joined(request, steps)
        self._settled = steps

    def _settle_left(self, request: Request) -> None:
        tenant = self._tenants[request.traits.tenant]
        if request in self._offsets:
            offset, base = self._offsets.pop(request)
            tenant.decoding -= 1
            charged = self._settled - offset
        else:
            charged, base = 0, self._bases.pop(request)
        tenant.service += self._output * (request.emitted_tokens - base - charged)

    def _settle_joined(self, request: Request, steps: int) -> None:
        tenant, base = self._tenants[request.traits.tenant], self._bases.pop(request)
        offset = request.joined_step - (request.emitted_tokens - base)
        self._offsets[request] = offset, base
        tenant.decoding += 1
        tenant.service += self._output * (steps - offset)

    def _price(self, request: Request) -> int:
        return 0 if request.preemptions else self._input * request.prompt_tokens
