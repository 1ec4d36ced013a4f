"""Requests that belong to tenants, and what a scheduler makes of that."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sim.metrics import summarise
from sim.run import simulate
from sim.scenario import load_scenario
from sim.workloads.builder import build_workload
from sim.workloads.spec import WorkloadSpec

LAWS = {"arrival": {"kind": "poisson", "rate": 5}, "input_tokens": 50, "output_tokens": 5}
BOTH = [{"name": "a", "share": 3.0}, {"name": "b", "priority": 2}]


def workload(**changes: Any) -> Any:
    """Traffic of two tenants."""
    return build_workload(WorkloadSpec.model_validate(LAWS | {"tenants": BOTH, "num_requests": 4000} | changes))


def test_shares_are_kept_and_traits_set() -> None:
    """Three requests in four are the first tenant's; name, number and priority go together."""
    seen = Counter((r.traits.tenant, r.traits.tenant_number, r.traits.priority) for r in workload())
    assert set(seen) == {("a", 0, 0), ("b", 1, 2)}
    assert abs(seen["a", 0, 0] / 4000 - 0.75) < 0.02


def test_a_request_keeps_its_tenant_whatever_else_changes() -> None:
    """It depends on seed and id: neither rates nor lengths nor the number of requests move it."""
    first = [r.traits.tenant for r in workload()]
    assert [r.traits.tenant for r in workload(num_requests=100, input_tokens=7)] == first[:100]


def test_the_turns_of_a_session_belong_together() -> None:
    """A conversation has one tenant."""
    traffic = workload(sessions={"turns": 3}, num_requests=300)
    tenants: dict[str, set[str]] = {}
    for request in traffic:
        tenants.setdefault(request.traits.session, set()).add(request.traits.tenant)
        request.state = type(request.state).COMPLETED
        for follow_up in traffic.on_finish(request, request.arrival_ps):
            tenants[follow_up.traits.session].add(follow_up.traits.tenant)
    assert {len(names) for names in tenants.values()} == {1}
    assert set.union(*tenants.values()) == {"a", "b"}


def served(policy: str) -> dict[str, Any]:
    """Two tenants flood a small server, one of them with nine requests in ten."""
    tenants = [{"name": "many", "share": 9.0, "priority": 1}, {"name": "few"}]
    traffic = {"arrival": {"kind": "poisson", "rate": 60}, "input_tokens": 200, "output_tokens": 100}
    traffic |= {"num_requests": 400, "tenants": tenants}
    scenario = {"model": "meta-llama/Llama-3.1-8B", "hardware": "h100-sxm", "workload": traffic}
    engine = {"scheduling_policy": policy, "max_num_seqs": 8}
    return summarise(simulate(load_scenario(scenario | {"engine": engine})))


def test_fair_share_and_priority_protect_the_few() -> None:
    """First come, first served makes all wait alike; a fair share or a better priority spares the small tenant."""
    waits = {}
    for policy in ("fcfs", "fair_share", "priority"):
        summary = served(policy)
        many, few = summary["tenants"]
        waits[policy] = few["longest_wait_ms"] / many["longest_wait_ms"]
        assert many["completed"] + few["completed"] == 400
    assert waits["fcfs"] > 0.8
    assert waits["fair_share"] < 0.3
    assert waits["priority"] < 0.3
