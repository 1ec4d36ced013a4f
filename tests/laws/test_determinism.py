"""The same seed gives the same tables: in one process, in any process, whatever Python's hashes are."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from scenarios import play, random_scenario, with_spans

ROOT = Path(__file__).resolve().parents[2]


def fingerprint(seeds: range) -> str:
    """A digest of all tables of some random runs."""
    digest = hashlib.sha256()
    for seed in seeds:
        for scenario in (random_scenario(seed), with_spans(random_scenario(seed), seed)):
            run = play(scenario)
            for table in (run.requests, run.steps, run.segments):
                for name in table.columns:
                    digest.update(table[name].tobytes())
    return digest.hexdigest()


def test_the_same_seed_gives_the_same_tables() -> None:
    """Running twice in one process changes nothing: there is no state outside a run."""
    assert fingerprint(range(5)) == fingerprint(range(5))


def test_another_seed_gives_other_tables() -> None:
    """The fingerprint sees differences."""
    assert fingerprint(range(5)) != fingerprint(range(5, 10))


def test_other_processes_give_the_same_tables() -> None:
    """The order of sets and hashes of strings, which differ between processes, decide nothing."""
    here = fingerprint(range(5))
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(_paths())}
        code = "from test_determinism import fingerprint; print(fingerprint(range(5)))"
        there = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert there.stdout.strip() == here


def _paths() -> list[str]:
    return [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "laws")]
