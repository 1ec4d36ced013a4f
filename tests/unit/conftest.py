"""A toy server that fills the three tables of a run, for tests of what is computed from them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sim.request import Reason, State
from sim.results import REQUEST_COLUMNS, SEGMENT_COLUMNS, STEP_COLUMNS, RunResult, Table

TYPES = {"b": np.int8, "h": np.int16, "i": np.int32, "q": np.int64}
MS = 10**9  # picoseconds


def table_of(kinds: dict[str, str], rows: list[tuple[int, ...]]) -> Table:
    """Rows to the typed columns a recorder would leave."""
    columns = zip(*rows, strict=True) if rows else [[] for _ in kinds]
    return Table({name: np.array(c, dtype=TYPES[kinds[name]]) for name, c in zip(kinds, columns, strict=True)})


class ToyReplica:
    """First come, first served; a whole prompt per prefill step; preempts the youngest when its blocks run out."""

    def __init__(self, number: int, arrivals: deque[list[int]], seqs: int, blocks: int, block_size: int) -> None:
        self.number, self.arrivals, self.seqs, self.blocks, self.size = number, arrivals, seqs, blocks, block_size
        self.waiting: deque[dict[str, Any]] = deque()
        self.running: list[dict[str, Any]] = []
        self.now = self.decode_step = 0
        self.requests: list[tuple[int, ...]] = []
        self.steps: list[tuple[int, ...]] = []
        self.segments: list[tuple[int, ...]] = []

    def run(self) -> None:
        while self.arrivals or self.waiting or self.running:
            if not self.waiting and not self.running:
                self.now = max(self.now, self.arrivals[0][1])
            self._arrive()
            if self.waiting and len(self.running) < self.seqs and self._used(self.waiting[0]) <= self.blocks:
                self._prefill(self.waiting.popleft())
            else:
                self._decode()

    def _arrive(self) -> None:
        while self.arrivals and self.arrivals[0][1] <= self.now:
            number, at, prompt, output, patience = self.arrivals.popleft()
            fresh = {"id": number, "at": at, "prompt": prompt, "output": output, "patience": patience}
            self.waiting.append(fresh | {"out": 0, "first": -1, "sched": -1, "times": 0, "lost": 0, "since": 0})
        for r in [r for r in self.waiting if 0 <= r["patience"] < self.now - r["at"]]:
            self.waiting.remove(r)
            self._end(r, State.ABORTED, Reason.CLIENT_TIMEOUT)

    def _prefill(self, r: dict[str, Any]) -> None:
        if r["sched"] < 0:
            r["sched"] = self.now
        elif r["since"]:
            r["lost"] += self.now - r["since"]
        self.running.append(r)
        tokens = r["prompt"] + r["out"]
        self._row(1, 4 * MS + tokens * 40_000_000, 0, 0, tokens)
        r["out"] += 1
        r["first"] = self.now if r["first"] < 0 else r["first"]
        r["seg"], r["step"] = self.now, self.decode_step
        self._retire()

    def _decode(self) -> None:
        while self._used() + len(self.running) > self.blocks and len(self.running) > 1:
            r = self.running.pop()
            self._close(r)
            r["times"], r["since"] = r["times"] + 1, self.now
            self.waiting.appendleft(r)
        b, context = len(self.running), sum(r["prompt"] + r["out"] for r in self.running)
        first, slope = 6 * MS + b * 20_000_000 + context * 20_000, b * 20_000
        n = min(min(r["output"] - r["out"] for r in self.running), max(1, self.size // 2))
        if self.waiting and len(self.running) < self.seqs:
            n = 1
        self._row(n, first, slope, b, 0)
        self.decode_step += n
        for r in self.running:
            r["out"] += n
        self._retire()

    def _row(self, n: int, first: int, slope: int, decodes: int, prefill: int) -> None:
        context = sum(r["prompt"] + r["out"] for r in self.running)
        shape = (decodes, context if decodes else 0, prefill, int(prefill > 0), prefill * (prefill + 1) // 2)
        held = (self._used(), context, len(self.waiting), len(self.running), 0, 0)
        self.steps.append((self.number, self.now, n, first, slope, *shape, *held))
        self.now += n * first + slope * (n * (n - 1) // 2)

    def _used(self, also: dict[str, Any] | None = None) -> int:
        everyone = [*self.running, also] if also else self.running
        return sum(-(-(r["prompt"] + r["out"] + 1) // self.size) for r in everyone)

    def _retire(self) -> None:
        for r in [r for r in self.running if r["out"] >= r["output"]]:
            self.running.remove(r)
            self._close(r)
            self._end(r, State.COMPLETED, Reason.NONE)

    def _close(self, r: dict[str, Any]) -> None:
        self.segments.append((r["id"], self.number, r["seg"], r["step"], self.decode_step, 0,
                              self.decode_step - r["step"] + 1))  # fmt: skip

    def _end(self, r: dict[str, Any], state: State, reason: Reason) -> None:
        times = (r["at"], r["sched"], r["first"], self.now)
        unused = -(r["prompt"] + r["out"]) % self.size if r["sched"] >= 0 else 0
        rest = (r["prompt"], r["out"], 0, r["times"], r["lost"], unused, 0, 0)
        self.requests.append((r["id"], self.number, state, reason, *times, *rest))


def toy_facts(replicas: int, blocks: int, size: int) -> dict[str, Any]:
    """Facts as a run of Llama-3.1-8B on one H100 per replica would leave them; the numbers are made up."""
    gib = 2**30
    memory = {"total_bytes": 80 * gib, "budget_bytes": 72 * gib, "weight_bytes": 15 * gib, "activation_bytes": 2 * gib}
    memory |= {"cuda_graph_bytes": gib // 2, "framework_bytes": gib, "kv_bytes": 53 * gib, "unused_bytes": 8 * gib}
    breakdown = [("qkv_proj", 9.0, "memory"), ("attention_decode", 14.0, "memory"), ("mlp", 22.5, "compute")]
    breakdown += [("all_reduce", 3.0, "link"), ("rms_norm", 1.5, "launch"), ("host", 6.0, "host")]
    return {
        "replicas": replicas,
        "gpus": replicas,
        "num_gpu_blocks": blocks,
        "block_size": size,
        "kv_block_bytes": 131072 * size,
        "memory": memory,
        "model_parameters": 8_030_261_248,
        "price_per_gpu_hour_usd": 2.5,
        "trust": "extrapolated",
        "notes": ["Efficiencies of h100-sxm are taken from another software stack."],
        "breakdown": [{"operator": o, "seconds": s, "bound": b} for o, s, b in breakdown],
    }


def run_toy(
    n: int = 400,
    rate: float = 6.0,
    replicas: int = 1,
    seqs: int = 64,
    blocks: int = 2500,
    **options: Any,
) -> RunResult:
    """Poisson arrivals at `rate` per second, dealt out in turn. Options: seed, slo, patience_s, arrival, at_once."""
    rng = np.random.default_rng(options.get("seed", 0))
    at = np.zeros(n) if options.get("at_once") else np.cumsum(rng.exponential(1 / rate, n))
    prompts, outputs = rng.integers(20, 1200, n), rng.integers(1, 260, n)
    patience = round(options["patience_s"] * 1000) * MS if "patience_s" in options else -1
    rows = [[i, round(at[i] * 1000) * MS, int(prompts[i]), int(outputs[i]), patience] for i in range(n)]
    toys = [ToyReplica(k, deque(rows[k::replicas]), seqs, blocks, 16) for k in range(replicas)]
    for toy in toys:
        toy.run()
    ended = sorted((row for toy in toys for row in toy.requests), key=lambda row: (row[7], row[0]))
    engine = {"scheduler": "continuous", "max_num_seqs": seqs, "tensor_parallel_size": 1}
    scenario = {
        "name": "toy",
        "model": "meta-llama/Llama-3.1-8B",
        "hardware": "h100-sxm",
        "workload": {"num_requests": n, "arrival": options.get("arrival", {"kind": "poisson", "rate": rate})},
        "engine": engine,
        "replicas": {"count": replicas, "router": "round_robin"},
        "slo": options.get("slo"),
        "seed": options.get("seed", 0),
    }
    return RunResult(
        table_of(REQUEST_COLUMNS, ended),
        table_of(STEP_COLUMNS, [row for toy in toys for row in toy.steps]),
        table_of(SEGMENT_COLUMNS, [row for toy in toys for row in toy.segments]),
        {"scenario": scenario, "versions": {"roofserve": "0.1.0"}, "facts": toy_facts(replicas, blocks, 16)},
    )


@pytest.fixture(scope="session")
def toy_run() -> Callable[..., RunResult]:
    """`toy_run(n, rate, ...)` simulates a toy server; see `run_toy`."""
    return run_toy
