"""Queueing theory: where closed forms exist, the simulator gives them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from toy import ToyTimer

from scenarios import Run, Scenario, make_cluster, play, rows_of
from sim.cost.shape import RunShape
from sim.cost.step_times import StepTimes, one_step

PS_PER_TOKEN = 1000
REQUESTS = 60_000


@dataclass
class PerToken:
    """A server whose step lasts as long as its new tokens: the service time is the length of the prompt."""

    def run(self, shape: RunShape, max_steps: int) -> StepTimes:
        """One step at a time: with a single token of output there is nothing to repeat."""
        return one_step(PS_PER_TOKEN * shape.new_tokens)


@dataclass
class Constant:
    """Every step lasts the same."""

    step_ps: int

    def run(self, shape: RunShape, max_steps: int) -> StepTimes:
        """As many steps as asked for."""
        steps = 1 if shape.chunks else max_steps
        return StepTimes(steps, steps * self.step_ps, [(0, 0, self.step_ps, 0, steps)])


def single_server(arrivals: list[int], prompts: list[int]) -> Run:
    """One seat, prompts of one chunk and one token of output: a queue with one server.

    Synchronous, because a step planned ahead would hold a wasted decode of the request that is about to end.
    """
    rows = tuple((i, t, p, 1, 1) for i, (t, p) in enumerate(zip(arrivals, prompts, strict=True)))
    scenario = Scenario(rows, max_num_seqs=1, max_num_batched_tokens=10**9, num_blocks=10**9)
    return play(scenario, timer=PerToken())


def lindley(arrivals: list[int], services: list[int]) -> list[int]:
    """When each customer leaves a queue with one server (Lindley 1952)."""
    ends, free = [], 0
    for arrival, service in zip(arrivals, services, strict=True):
        free = max(arrival, free) + service
        ends.append(free)
    return ends


def _mean_time_in_system(load: float, prompts: list[int], seed: int) -> float:
    """In units of the mean service time; every single end must be that of Lindley's recursion."""
    rng = np.random.default_rng(seed)
    service = PS_PER_TOKEN * float(np.mean(prompts))
    arrivals = np.cumsum(rng.exponential(service / load, len(prompts))).astype(np.int64).tolist()
    table = single_server(arrivals, prompts).requests
    ends = lindley(arrivals, [PS_PER_TOKEN * p for p in prompts])
    order = np.argsort(table["request_id"])
    assert table["finish_ps"][order].tolist() == ends
    return float(np.mean(np.array(ends) - np.array(arrivals))) / service


def test_mm1() -> None:
    """Poisson arrivals, exponential service: mean time in system = 1 / (mu - lambda)."""
    load = 0.5
    lengths = np.random.default_rng(1).exponential(100_000, REQUESTS)
    prompts = np.maximum(1, np.round(lengths)).astype(int).tolist()
    mean = _mean_time_in_system(load, prompts, seed=2)
    assert mean == pytest.approx(1 / (1 - load), rel=0.04)  # three standard errors of the mean at this load


def test_md1() -> None:
    """Poisson arrivals, constant service: mean wait = load / (2 mu (1 - load)), half of M/M/1 (Pollaczek-Khinchine)."""
    load = 0.7
    mean = _mean_time_in_system(load, [1000] * REQUESTS, seed=3)
    assert mean == pytest.approx(1 + load / (2 * (1 - load)), rel=0.04)


def test_idle_server_serves_at_once() -> None:
    """A request that meets an empty server takes exactly its prefill and its decodes."""
    timer = ToyTimer()
    rows = tuple((i, i * 10**6, 10 + i, 5, 5) for i in range(20))
    run = play(Scenario(rows))
    for row in rows_of(run.requests):
        p = row["prompt_tokens"]
        service = timer.duration(0, 0, [(0, p)]) + sum(timer.duration(1, p + k, []) for k in range(4))
        assert row["finish_ps"] - row["arrival_ps"] == service


@pytest.mark.parametrize("lead", [0, 1])
def test_constant_steps_make_every_generation_last_its_tokens(lead: int) -> None:
    """When all steps last the same, admission to end is one step per token, whoever shares the batch."""
    rng = np.random.default_rng(4)
    arrivals = np.cumsum(rng.exponential(300, 3000)).astype(int).tolist()
    rows = tuple((i, t, 1 + i % 50, 1 + i * 7 % 40, 40) for i, t in enumerate(arrivals))
    scenario = Scenario(rows, lead=lead, max_num_seqs=1000, max_num_batched_tokens=10**6)
    run = play(scenario, timer=Constant(100))
    for row in rows_of(run.requests):
        assert row["finish_ps"] - row["scheduled_ps"] == 100 * row["output_tokens"]
        assert row["scheduled_ps"] - row["arrival_ps"] <= 200  # the step under way and, when planned ahead, the next


@pytest.mark.parametrize("clients", [1, 7, 32])
def test_closed_loop_throughput(clients: int) -> None:
    """Clients without think time and with equal lengths move in lockstep: rounds last one prefill and their decodes."""
    prompt, output, rounds = 12, 20, 30
    rows = tuple((i, 0, prompt, output, output) for i in range(clients))
    scenario = Scenario(rows, max_num_seqs=64, max_num_batched_tokens=10**6)
    cluster, workload = make_cluster(scenario)
    ids, left = itertools.count(clients), [clients * (rounds - 1)]

    def again(request: object, now: int) -> object:
        left[0] -= 1
        return type(request)(next(ids), now, prompt, output) if left[0] >= 0 else None  # type: ignore[call-arg]

    workload.follow_up = again  # type: ignore[assignment]
    cluster.run()
    timer = ToyTimer()
    cycle = timer.duration(0, 0, [(0, prompt)] * clients)
    cycle += sum(timer.duration(clients, clients * (prompt + k), []) for k in range(output - 1))
    table = cluster.recorder.requests.table()
    assert len(table) == clients * rounds
    assert int(table["finish_ps"].max()) == rounds * cycle


def test_littles_law_for_the_batch() -> None:
    """Time-weighted decodes per step are the times from first token to end: L = lambda W between two tables."""
    rng = np.random.default_rng(5)
    arrivals = np.cumsum(rng.exponential(400, 2000)).astype(int).tolist()
    rows = tuple((i, t, 20, 2 + i % 30, 40) for i, t in enumerate(arrivals))
    scenario = Scenario(rows, scheduler="chunked", max_num_seqs=500, max_num_batched_tokens=10**6)
    run = play(scenario)
    in_steps = 0
    for row in rows_of(run.steps):
        n = row["steps"]
        length = n * row["first_step_ps"] + row["slope_ps"] * (n * (n - 1) // 2)
        in_steps += row["decodes"] * length
    in_requests = int((run.requests["finish_ps"] - run.requests["first_token_ps"]).sum())
    assert in_steps == in_requests
