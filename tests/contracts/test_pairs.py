"""Every scheduler over every allocator and prefix cache: refused with a reason, or keeping everybody's promises."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from scenarios import (
    MEMORIES,
    POLICIES,
    Run,
    Scenario,
    amount,
    play,
    random_scenario,
    rows_of,
    with_memory,
    with_policy,
)
from sim.audit import audit
from sim.build import build
from sim.engine.replica import ReplicaParts
from sim.errors import ConfigError
from sim.policies import ALLOCATORS, PREFIX_CACHES, SCHEDULERS
from sim.request import State
from sim.scenario import load_scenario
from sim.schedulers.base import Scheduler
from sim.step import Idle, StepPlan

BASE: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B",
    "hardware": "h100-sxm",
    "workload": {
        "num_requests": 5, "arrival": {"kind": "constant", "rate": 50}, "input_tokens": 200, "output_tokens": 20
    },
    "engine": {"max_model_len": 1024, "max_num_batched_tokens": 2048},
}  # fmt: skip


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
@pytest.mark.parametrize("allocator", sorted(ALLOCATORS))
@pytest.mark.parametrize("match", [None, *sorted(PREFIX_CACHES)])
def test_a_pair_is_built_or_refused_with_a_reason(scheduler: str, allocator: str, match: str | None) -> None:
    """What cannot go together is one line that names the key and says why; all else is built."""
    changes: dict[str, Any] = {"engine.scheduler": scheduler, "engine.kv_cache.allocator": allocator}
    if match is not None:
        changes |= {"engine.kv_cache.enable_prefix_caching": True, "engine.kv_cache.prefix_cache.match": match}
    possible = match is None or (allocator == "paged" and scheduler not in ("static", "dynamic"))
    if possible:
        assert build(load_scenario(BASE, changes)).parts().scheduler.num_running == 0
        return
    with pytest.raises(ConfigError, match=r"enable_prefix_caching.*(needs|shares)") as refused:
        build(load_scenario(BASE, changes))
    assert "\n" not in str(refused.value)


class Watched:
    """A scheduler that looks at the memory before and after every plan, and at who was left waiting."""

    drains_together = False

    def __init__(self, scheduler: Scheduler, parts: ReplicaParts, scenario: Scenario) -> None:
        self._inner, self._parts, self._scenario = scheduler, parts, scenario
        self.drains_together = scheduler.drains_together
        self.refused_for_a_reason = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def plan(self, now_ps: int) -> StepPlan | Idle:
        self._look()
        plan = self._inner.plan(now_ps)
        self._look()
        if isinstance(plan, Idle):
            assert self._inner.num_running == 0
            assert not self._inner.num_waiting or plan.until_ps < now_ps + 10**9, "waits for nothing"
        elif self._admits_what_fits() and not plan.preempted:
            self._check_nobody_was_forgotten(plan)
        return plan

    def _look(self) -> None:
        kv, batch = self._parts.kv, self._parts.batch
        running = self._inner.running()
        kv.check([(r, batch.context_of(r) if r.joined_step >= 0 else r.computed_tokens) for r in running])
        usage = kv.usage()
        assert 0 <= kv.free_blocks == usage.total_blocks - usage.used_blocks <= kv.total_blocks
        assert 0 <= usage.stored_tokens <= usage.used_blocks * kv.block_tokens
        assert all(r.reserved_tokens == 0 for r in self._inner.waiting())

    def _admits_what_fits(self) -> bool:
        """Of the policies that admit whenever there is room, those that ask for nothing else."""
        policy = dict(self._scenario.policy)
        chunked = self._scenario.scheduler == "chunked" and "max_num_partial_prefills" not in policy
        return chunked or policy.get("priority") == "prefill"

    def _check_nobody_was_forgotten(self, plan: StepPlan) -> None:
        scenario, waiting = self._scenario, self._inner.waiting()
        left = scenario.max_num_batched_tokens - sum(n for _, n in plan.chunks)
        left -= self._parts.batch.count if scenario.scheduler == "chunked" else 0
        if not waiting or self._inner.num_running >= scenario.max_num_seqs or left <= 0:
            return
        head = waiting[0]
        tokens = min(head.target_tokens, left, scenario.threshold or left)
        if scenario.scheduler == "chunked" or head.target_tokens <= left:
            assert not self._parts.kv.can_reserve(head, tokens), "there was room for the next request"
            self.refused_for_a_reason += 1


def served(scenario: Scenario) -> tuple[Run, int]:
    """A run in both modes under a watcher; how often somebody waited for want of memory."""
    watchers: list[Watched] = []

    def watch(inner: Scheduler, parts: ReplicaParts) -> Scheduler:
        watchers.append(Watched(inner, parts, scenario))
        return watchers[-1]  # type: ignore[return-value]

    leaping, single = play(scenario, wrap=watch), play(scenario, max_run=1, wrap=watch)
    assert leaping.outcomes() == single.outcomes()
    assert leaping.boundaries() == single.boundaries()
    assert leaping.token_times() == single.token_times()
    return leaping, sum(watcher.refused_for_a_reason for watcher in watchers)


def paired(seed: int, policy: int, memory: int) -> Scenario:
    """A scenario in which everybody can be served in the end, however tight it is."""
    rng = random.Random(seed)
    drawn = replace(random_scenario(seed, most_requests=40), timeout_ps=None, max_model_len=10**9)
    scenario = with_memory(with_policy(drawn, rng, policy), rng, memory)
    longest, options = max(p + most for _, _, p, _, most in scenario.rows), dict(scenario.memory)
    room = 2 * longest if "reserve" in options else min(longest, options.get("bound_tokens", longest))
    blocks = -(-room // scenario.block_size) + options.get("growth_blocks", 1) - 1 + scenario.fixed_blocks
    if options.get("placement") == "buddy":
        blocks = 1 << blocks.bit_length()
    budget = scenario.max_num_batched_tokens
    return replace(
        scenario,
        order="fcfs",
        weights=(),
        victim="newest",
        num_blocks=max(blocks, scenario.num_blocks),
        max_num_batched_tokens=max(budget, longest) if scenario.scheduler == "continuous" else budget,
    )


@pytest.mark.parametrize("memory", range(len(MEMORIES)), ids=[" ".join(map(str, m)) for m in MEMORIES])
def test_pairs_serve_everybody_in_order(memory: int) -> None:
    """Requests, tokens and blocks add up; nobody starves or is overtaken; nobody waits who could be admitted."""
    waited = preempted = 0
    for policy, (scheduler, _) in enumerate(POLICIES):
        for seed in range(amount(3)):
            run, refused = served(paired(100 * memory + 10 * policy + seed, policy, memory))
            waited, preempted = waited + refused, preempted + int(run.requests["preemptions"].sum())
            audit(run.result(), run.cluster.submitted)
            assert set(run.requests["state"].tolist()) == {State.COMPLETED}, scheduler
            for replica in range(len(run.cluster.replicas)):
                mine = [row for row in rows_of(run.requests) if row["replica"] == replica]
                mine.sort(key=lambda row: (row["arrival_ps"], row["request_id"]))
                admitted = [row["scheduled_ps"] for row in mine]
                assert admitted == sorted(admitted), scheduler
    assert waited > 0
    assert (preempted > 0) == (MEMORIES[memory][0] != "max-length")
