"""One scenario, simulated: the function behind `roofserve run`, sweeps and plans."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sim.audit import audit
from sim.breakdown import breakdown
from sim.build import Setup, build
from sim.documents import canonical_json
from sim.engine.cluster import Cluster
from sim.kv.host_pool import swap_totals
from sim.kv.tiered import tier_totals
from sim.resolved import resolved
from sim.results import RunResult
from sim.scenario import LoadedScenario
from sim.step import NO_LIMIT
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
        result.manifest["facts"]["breakdown"] = breakdown(setup.timer, result.steps)
    return result


def run_setup(
    setup: Setup, *, step_by_step: bool = False, on_progress: Progress | None = None, directory: Path | None = None
) -> RunResult:
    """The same for a scenario that is already built. A setup is good for one run."""
    timeout = setup.spec.client_timeout_s
    total = setup.workload.num_requests
    parts = [setup.parts(max_run=1 if step_by_step else NO_LIMIT) for _ in range(setup.scenario.replicas.count)]
    cluster = Cluster(
        setup.workload,
        parts,
        setup.router(),
        max_model_len=setup.engine.max_model_len,
        client_timeout_ps=None if timeout is None else to_ps(timeout),
        front_end=setup.front_end(),
        on_progress=None if on_progress is None else lambda ended: on_progress(ended, total),
        directory=directory,
    )
    with setup.written.blamed():
        cluster.run()
    recorder = cluster.recorder
    tables = recorder.requests.table(), recorder.steps.table(), recorder.segments.table()
    result = RunResult(*tables, manifest=manifest(setup, cluster.interrupted))
    pools = [part.host for part in parts if part.host is not None]
    if pools:
        stalled_ps = sum(replica.stalled_ps for replica in cluster.replicas)
        result.manifest["facts"]["swap"] = {**swap_totals(pools), "stalled_s": to_s(stalled_ps)}
    caches = [part.tiers.kv for part in parts if part.tiers is not None]
    if caches:
        result.manifest["facts"]["tiers"] = tier_totals(caches, setup.engine.kv_cache["tiers"])
    audit(result, cluster.submitted)
    return result


def manifest(setup: Setup, interrupted: bool = False) -> dict[str, Any]:
    """How a run came about, without any clock time, so that equal runs are equal bytes."""
    scenario = resolved(setup)
    price = setup.gpu.price_per_hour_usd
    replicas = setup.scenario.replicas.count
    return {
        "scenario": scenario,
        "seed": setup.scenario.seed,
        "versions": {name: _version(name) for name in _VERSIONED},
        "hashes": {
            "scenario": _digest(scenario),
            "hardware": _digest(setup.gpu.model_dump(mode="json", exclude={"calibration"})),
            "calibration": _calibration_digest(setup.gpu.calibration),
        },
        "interrupted": interrupted,
        "facts": {
            "model": setup.architecture.name,
            "hardware": setup.gpu.name,
            "replicas": replicas,
            "gpus": replicas * setup.engine.layout.gpus,
            "num_gpu_blocks": setup.num_blocks,
            "block_size": setup.engine.kv_cache["block_size"],
            "kv_block_bytes": setup.memory.block_bytes,
            "kv_fixed_blocks": setup.fixed_blocks,
            "kv_bound_tokens": setup.bound_tokens,
            "memory": setup.memory.as_dict(),
            "model_parameters": setup.architecture.num_parameters,
            "price_per_gpu_hour_usd": None if price is None else price.mid,
            "trust": setup.kernels.trust,
            "notes": list(setup.notes),
            "workload": setup.workload.describe(),
        },
    }


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
