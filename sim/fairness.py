"""Who was served how: the longest wait of anybody, and what each tenant received."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sim.request import State
from sim.results import Column, Table
from sim.units import PS_PER_S

_MS_PER_PS = 1e3 / PS_PER_S
_COLUMNS = (
    "tenant", "state", "arrival_ps", "scheduled_ps", "first_token_ps", "finish_ps", "prompt_tokens", "output_tokens",
)  # fmt: skip


def fairness(requests: Table, facts: Mapping[str, Any]) -> dict[str, Any]:
    """`longest_wait_ms`, and where the workload has several tenants `tenants` and `jain_fairness_index`.

    A wait lasts from arrival to first admission, or to the end of a request that was never admitted; refused requests
    do not wait. Service is input + 2 x output tokens of admitted requests, the weights of the virtual token counter
    (Sheng et al., OSDI 2024; from memory). Jain's index of the tenants' services is 1 if all received the same, and
    1 / n if one received everything (Jain, Chiu, Hawe 1984).
    """
    table = {name: requests[name] for name in _COLUMNS}
    waits = _waits_ms(table)
    found: dict[str, Any] = {"longest_wait_ms": float(np.max(waits, initial=0.0)), "tenants": []}
    tenants = (facts.get("workload") or {}).get("tenants") or []
    if len(tenants) > 1:
        members = [table["tenant"] == number for number in range(len(tenants))]
        found["tenants"] = [
            {"tenant": tenant["name"], "priority": tenant["priority"], **_of_tenant(table, waits, own)}
            for tenant, own in zip(tenants, members, strict=True)
        ]
        found["jain_fairness_index"] = jain_index([line["service_tokens"] for line in found["tenants"]])
    return found


def jain_index(amounts: list[int]) -> float:
    """(sum x)^2 / (n sum x^2); NaN if nobody received anything."""
    squares = sum(x * x for x in amounts)
    return sum(amounts) ** 2 / (len(amounts) * squares) if squares else math.nan


def _waits_ms(table: Mapping[str, Column]) -> Column:
    admitted = table["scheduled_ps"] >= 0
    until = np.where(admitted, table["scheduled_ps"], table["finish_ps"])
    waits: Column = (until - table["arrival_ps"]) * _MS_PER_PS
    waits[table["state"] == State.REJECTED] = 0.0
    return waits


def _of_tenant(table: Mapping[str, Column], waits_ms: Column, own: Column) -> dict[str, Any]:
    done = own & (table["state"] == State.COMPLETED)
    admitted = own & (table["scheduled_ps"] >= 0)
    ttft_ms = (table["first_token_ps"][done] - table["arrival_ps"][done]) * _MS_PER_PS
    prompt, output = (int(table[name][admitted].sum()) for name in ("prompt_tokens", "output_tokens"))
    return {
        "requests": int(own.sum()),
        "completed": int(done.sum()),
        "service_tokens": prompt + 2 * output,
        "output_tokens": output,
        "mean_ttft_ms": float(ttft_ms.mean()) if len(ttft_ms) else math.nan,
        "p99_ttft_ms": float(np.percentile(ttft_ms, 99)) if len(ttft_ms) else math.nan,
        "longest_wait_ms": float(np.max(waits_ms[own], initial=0.0)),
    }
