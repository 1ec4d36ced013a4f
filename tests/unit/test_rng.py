"""Named streams of random numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sim.rng import stream

FROZEN = [0.436449278038878, 0.007180727049899915]
"""Published results depend on these: a change of the keying is a change of every result."""


def draws(*key: object) -> list[float]:
    return stream(*key).random(2).tolist()  # type: ignore[arg-type]


def test_equal_keys_give_equal_numbers() -> None:
    """In any order of calls."""
    first, other = draws(1, "arrivals", 3), draws(1, "sizes")
    assert draws(1, "sizes") == other
    assert draws(1, "arrivals", 3) == first


def test_every_part_of_the_key_matters() -> None:
    """Seed, name and each index make another stream."""
    keys = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 1), (0, "a", 2), (0, "a", 1, 1), (0, "a", 1, 2), (0, "a", 2, 1)]
    assert len({tuple(draws(*key)) for key in keys}) == len(keys)


def test_the_number_of_indices_matters() -> None:
    """An index of 0 is not the same as no index."""
    assert draws(0, "a") != draws(0, "a", 0)
    assert draws(0, "a", 1) != draws(0, "a", 1, 0)


def test_streams_do_not_disturb_each_other() -> None:
    """More draws from one stream leave another where it was."""
    a, b = stream(0, "a"), stream(0, "b")
    a.random(1000)
    assert b.random() == draws(0, "b")[0]


def test_other_processes_draw_the_same() -> None:
    """The name does not enter by Python's hash, which differs between processes."""
    code = "from sim.rng import stream; print(stream(0, 'arrivals').random(2).tolist())"
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert out.stdout.strip() == str(draws(0, "arrivals")) == str(FROZEN)
