"""One scenario, simulated: the function behind `roofserve run`, sweeps and plans."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sim.audit import audit
from sim.breakdown import breakdown
from sim.build import build
from sim.documents import canonical_json
from sim.engine.cluster import Cluster
from sim.kv.host_pool import HostPool, swap_totals
from sim.kv.tiered import tier_totals
from sim.presets import load_preset
from sim.resolved import resolved
from sim.results import RunResult
from sim.scenario import LoadedScenario
from sim.setup import Setup
from sim.step import NO_LIMIT
from sim.techniques import SpeculativeSpec
from sim.trust import LABELS, Cell, cell_of
from sim.units import to_ps, to_s

_VERSIONED = ("roofserve", "simpy", "numpy", "scipy")


Progress = Callable[[int, int | None], None]
"""Hears how many requests have ended, and how many there will be if that is known."""


def simulate(
    loaded: LoadedScenario,
    *,
    step_by_step: bool = False,
    on_progress: Progress | None = None,
    directory: Path | None = None,
    by_operator: bool = False,
) -> RunResult:
    """Run a scenario and return its tables and manifest.

    `step_by_step` executes one step per plan, which is slower and gives the same results. `on_progress` hears how
    many requests have ended, and how many there will be if that is known. `directory` is where the result will be
    saved: tables that outgrow memory are written there during the run. `by_operator` adds the time by operator to the
    facts, which takes a tenth of a second. After Ctrl-C the result holds what has happened, with the open requests as
    unfinished and `manifest["interrupted"]` true. Raises ConfigError for a scenario that cannot run and InvariantError
    if the books do not balance.
    """
    setup = build(loaded)
    result = run_setup(setup, step_by_step=step_by_step, on_progress=on_progress, directory=directory)
    if by_operator:
        result.manifest["facts"]["breakdown"] = breakdown(
            setup.timer, result.steps, setup.engine.kv_cache["block_size"]
        )
    return result


def run_setup(
    setup: Setup, *, step_by_step: bool = False, on_progress: Progress | None = None, directory: Path | None = None
) -> RunResult:
    """The same for a scenario that is already built. A setup is good for one run."""
    timeout = setup.spec.client_timeout_s
    total = setup.workload.num_requests
    max_run = 1 if step_by_step else NO_LIMIT
    parts = [pool.parts(max_run=max_run) for pool in setup.pools for _ in range(pool.scenario.replicas.count)]
    cluster = Cluster(
        setup.workload,
        parts,
        setup.router(),
        max_model_len=min(pool.engine.max_model_len for pool in setup.pools),
        client_timeout_ps=None if timeout is None else to_ps(timeout),
        front_ends=setup.front_ends(),
        handoff=setup.handoff(),
        on_progress=None if on_progress is None else lambda ended: on_progress(ended, total),
        directory=directory,
    )
    with setup.written.blamed():
        cluster.run()
    recorder = cluster.recorder
    tables = recorder.requests.table(), recorder.steps.table(), recorder.segments.table()
    result = RunResult(*tables, manifest=manifest(setup, cluster.interrupted))
    result.manifest["facts"].update(_transfers(cluster, [part.host for part in parts if part.host is not None]))
    caches = [part.tiers.kv for part in parts if part.tiers is not None]
    if caches:
        result.manifest["facts"]["tiers"] = tier_totals(caches, setup.engine.kv_cache["tiers"])
    audit(result, cluster.submitted, cluster.replicas)
    return result


def _transfers(cluster: Cluster, hosts: list[HostPool]) -> dict[str, Any]:
    """What was copied, where anything could be."""
    facts: dict[str, Any] = {}
    stalled_s = to_s(sum(replica.stalled_ps for replica in cluster.replicas))
    if hosts:
        facts["swap"] = {**swap_totals(hosts), "stalled_s": stalled_s}
    if cluster.handoff is not None:
        facts["handoff"] = {**asdict(cluster.handoff.totals), "stalled_s": stalled_s}
    return facts


def manifest(setup: Setup, interrupted: bool = False) -> dict[str, Any]:
    """How a run came about, without any clock time, so that equal runs are equal bytes."""
    scenario, workload = resolved(setup), setup.workload.describe()
    return {
        "scenario": scenario,
        "seed": setup.scenario.seed,
        "versions": {name: _version(name) for name in _VERSIONED},
        "hashes": {
            "scenario": _digest(scenario),
            "hardware": _joined(_digest(p.gpu.model_dump(mode="json", exclude={"calibration"})) for p in setup.pools),
            "calibration": _joined(_calibration_digest(pool.gpu.calibration) for pool in setup.pools),
        },
        "interrupted": interrupted,
        "facts": {
            "model": setup.architecture.name,
            "hardware": _joined(pool.gpu.name for pool in setup.pools),
            "replicas": sum(pool.scenario.replicas.count for pool in setup.pools),
            "gpus": sum(_gpus(pool) for pool in setup.pools),
            "num_gpu_blocks": setup.num_blocks,
            "block_size": setup.engine.kv_cache["block_size"],
            "kv_block_bytes": setup.memory.block_bytes,
            "kv_fixed_blocks": setup.fixed_blocks,
            "kv_bound_tokens": setup.bound_tokens,
            "memory": setup.memory.as_dict(),
            "model_parameters": setup.architecture.num_parameters,
            "price_per_gpu_hour_usd": _price(setup.pools),
            **_trust(setup, workload),
            "notes": list(dict.fromkeys(note for pool in setup.pools for note in pool.notes)),
            "workload": workload,
            **_pools(setup),
            **_guesses(setup),
        },
    }


def _trust(setup: Setup, workload: Mapping[str, Any]) -> dict[str, Any]:
    """What the kernels rest on; better where servers like this one were measured, then with the errors found there."""
    found = runs_like(setup, workload)
    if found is not None:
        return {"trust": LABELS[0], "envelope": found.model_dump(mode="json")}
    return {"trust": max((pool.kernels.trust for pool in setup.pools), key=LABELS.index)}


def runs_like(setup: Setup, workload: Mapping[str, Any]) -> Cell | None:
    """What is known of the errors of runs like this one: same engine with its own scheduler, class, GPU and traffic."""
    engine = setup.engine
    found = cell_of(setup.architecture, setup.gpu.name, engine.preset, workload)
    if found is None or len(setup.pools) > 1:
        return None
    return found if engine.scheduler["kind"] == load_preset(engine.preset).scheduler.kind else None


def _pools(setup: Setup) -> dict[str, Any]:
    """What the replicas of each pool are, in the order of their numbers; nothing where all are alike."""
    if setup.decode is None:
        return {}
    names = ("prefill", "decode")
    return {"pools": [
        {
            "name": name,
            "hardware": pool.gpu.name,
            "replicas": pool.scenario.replicas.count,
            "gpus": _gpus(pool),
            "num_gpu_blocks": pool.num_blocks,
        }
        for name, pool in zip(names, setup.pools, strict=True)
    ]}  # fmt: skip


def _guesses(setup: Setup) -> dict[str, Any]:
    """How many tokens of a sequence are guessed in a step; nothing without speculative decoding."""
    if setup.engine.speculative is None:
        return {}
    spec = SpeculativeSpec(**setup.engine.speculative)
    return {"guesses_per_step": spec.query_tokens - 1, "guess_depth": spec.num_speculative_tokens}


def _gpus(pool: Setup) -> int:
    return pool.scenario.replicas.count * pool.engine.layout.gpus


def _price(pools: Sequence[Setup]) -> float | None:
    """Of one GPU for an hour, averaged over all of them."""
    prices = [pool.scenario.cost.price_of(pool.gpu) for pool in pools]
    known = [price.mid for price in prices if price is not None]
    if len(known) < len(pools):
        return None
    gpus = [_gpus(pool) for pool in pools]
    return known[0] if len(set(known)) == 1 else sum(p * n for p, n in zip(known, gpus, strict=True)) / sum(gpus)


def _joined(facts: Iterable[str | None]) -> str | None:
    """What is said of each pool, once if it is the same."""
    return " + ".join(dict.fromkeys(fact for fact in facts if fact is not None)) or None


def _calibration_digest(calibration: str | dict[str, Any] | None) -> str | None:
    """Of the constants themselves: where their file lies says nothing."""
    if isinstance(calibration, str):
        return hashlib.sha256(Path(calibration).read_bytes()).hexdigest()[:16]
    return None if calibration is None else _digest(calibration)


def _digest(data: Any) -> str:
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()[:16]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
