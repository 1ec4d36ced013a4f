"""Traffic of several tenants: who sent which request, and how urgent it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from zlib import crc32

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sim.request import Request
from sim.rng import stream
from sim.workloads.base import Workload

_BLOCK = 1024  # requests whose tenants are drawn together


class Tenant(BaseModel):
    """One client organisation, application or class of service."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(min_length=1, description="name in results; fair_share keeps an account for each")
    share: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="its part of the requests, as a weight")
    priority: int = Field(default=0, ge=-(2**31), lt=2**31, description="scheduling_policy: priority; lower goes first")


class SharedByTenants:
    """Other traffic, each request of which belongs to one of several tenants, drawn by their shares.

    The draw depends on the seed and the request's id alone; the turns of a session belong to one tenant.
    """

    def __init__(self, inner: Workload, tenants: Sequence[Tenant], *, seed: int = 0) -> None:
        self._inner, self._tenants, self._seed = inner, tenants, seed
        self._bounds = np.cumsum([tenant.share for tenant in tenants])
        self._block, self._drawn = -1, np.empty(0, np.int64)
        self.num_requests, self.has_prefixes, self.notes = inner.num_requests, inner.has_prefixes, inner.notes

    def __iter__(self) -> Iterator[Request]:
        return map(self._signed, self._inner)

    def on_finish(self, request: Request, now_ps: int) -> Iterable[Request]:
        """What the client sends next, signed as well."""
        return map(self._signed, self._inner.on_finish(request, now_ps))

    def describe(self) -> dict[str, Any]:
        """The traffic as it is without, and the tenants in the order of their numbers in the request table."""
        return {**self._inner.describe(), "tenants": [tenant.model_dump() for tenant in self._tenants]}

    def _signed(self, request: Request) -> Request:
        traits = request.traits
        number = self._number(crc32(traits.session.encode()) if traits.session else request.id)
        tenant = self._tenants[number]
        request.traits = replace(traits, tenant=tenant.name, tenant_number=number, priority=tenant.priority)
        return request

    def _number(self, key: int) -> int:
        block, place = divmod(key, _BLOCK)
        if block != self._block:
            points = stream(self._seed, "tenant", block).random(_BLOCK) * self._bounds[-1]
            self._block, self._drawn = block, np.searchsorted(self._bounds, points, side="right")
        return min(int(self._drawn[place]), len(self._tenants) - 1)
