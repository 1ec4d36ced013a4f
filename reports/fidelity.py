"""Predicted against measured servers: `python reports/fidelity.py MEASUREMENTS` writes fidelity.md, figures, envelope.

MEASUREMENTS are tables of serving runs as `roofserve validate serving` reads them. Every run is simulated twice: with
the shipped presets, and with presets that were fitted again without its model: seven CPU minutes on two processes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fidelity_page import write
from joblib.externals.loky import get_reusable_executor

from sim.build import build
from sim.scenario import load_scenario
from sim.validation.serving.case import Case
from sim.validation.serving.left_out import LeftOut, leave_models_out, overrides_of
from sim.validation.serving.predict import Predicted
from sim.validation.serving.read import read_cases
from sim.validation.serving.replay import replay

JOBS = 2

Pairs = list[tuple[Case, Predicted]]


@dataclass(frozen=True)
class Study:
    """Every run with the shipped presets and with presets that do not know its model; and the block counts."""

    in_sample: Pairs
    left_out: Pairs
    folds: Sequence[LeftOut]
    blocks: Sequence[Mapping[str, Any]]
    cpu_s: float
    """Of all processes, for all of this."""


def study(cases: Sequence[Case]) -> Study:
    """Simulate all cases, fit every preset without each model, and simulate again."""
    in_sample = replay(cases, jobs=JOBS, with_shares=True)
    pairs = list(zip(cases, in_sample, strict=True))
    folds = leave_models_out(pairs)
    fold_of = {i: fold for fold in folds for i in fold.cases}
    with tempfile.TemporaryDirectory() as scratch:
        keys = [overrides_of(fold_of[i], case, Path(scratch)) if i in fold_of else {} for i, case in enumerate(cases)]
        by_case = dict(zip(map(id, cases), keys, strict=True))
        again = replay(cases, jobs=JOBS, overrides=lambda case: by_case[id(case)])
    return Study(pairs, list(zip(cases, again, strict=True)), folds, block_counts(cases), cpu_s())


def cpu_s() -> float:
    """Seconds of CPU so far, those of workers included: the system knows them once they have ended."""
    get_reusable_executor().shutdown(wait=True)
    return sum(os.times()[:4])


def block_counts(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """KV blocks that servers logged, beside those that the memory budget gives; one line per kind of server."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for case in cases:
        engine = dict(case.scenario.get("engine", {}))
        logged = engine.pop("num_gpu_blocks_override", None)
        if logged is None or case.config is not None:
            continue
        traffic = {"arrival": {"kind": "all_at_once"}, "num_requests": 1, "input_tokens": 1, "output_tokens": 1}
        setup = build(load_scenario({**case.scenario, "engine": engine, "name": case.id, "workload": traffic}, {}))
        key = case.labels["model"], case.labels["gpu"], str(engine.get("tensor_parallel_size")), str(logged)
        blocks = setup.num_blocks // setup.engine.data_parallel_size
        found[key] = {"model": key[0], "gpu": key[1], "tp": key[2], "logged": int(logged), "predicted": blocks}
    return list(found.values())


def main() -> int:
    """Read, simulate, fit, simulate, write."""
    if len(sys.argv) < 2:
        print("usage: python reports/fidelity.py MEASUREMENTS...", file=sys.stderr)
        return 2
    cases = read_cases([Path(argument) for argument in sys.argv[1:]])
    write(study(cases), Path(__file__).parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
