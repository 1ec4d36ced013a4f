"""Hand the program files that are wrong in every way, and see that it says so: `make fuzz`.

Case n of a target is drawn from (target, n) alone, so `--only TARGET --first n --cases 1` repeats it. A case passes if
the reader accepts the file or raises a SimError, within seconds and a bounded memory. Whatever else it does (another
exception, a hang, memory) is printed with the file that provoked it. Exit code 1 when there was any.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from fuzz.corpus import Target, targets
from fuzz.mutate import mutated

from sim.errors import InvariantError, SimError

MOST_S = 10.0
MOST_BYTES = 3 << 30
_BATCH = 500


@dataclass
class Outcome:
    """What became of the cases of one target."""

    target: str
    cases: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    failures: tuple[str, ...] = ()


class _HangError(BaseException):
    """A case took too long. Not an Exception, so that nobody swallows it."""


def play(target: Target, first: int, cases: int) -> Outcome:
    """Cases `first` to `first + cases - 1` of a target, in this process."""
    signal.signal(signal.SIGALRM, _too_long)
    outcome = Outcome(target.name)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as directory:
        for number in range(first, first + cases):
            _one(target, number, Path(directory), outcome)
    return outcome


def _one(target: Target, number: int, directory: Path, outcome: Outcome) -> None:
    random = Random(f"{target.name}/{number}")
    name, seed = random.choice(target.seeds)
    path = directory / name
    path.write_bytes(mutated(random, seed))
    started = time.process_time()
    signal.setitimer(signal.ITIMER_REAL, MOST_S)
    problem = ""
    try:
        target.read(path)
    except InvariantError:
        problem = traceback.format_exc()
    except SimError as error:
        outcome.refused += 1
        problem = "" if str(error).count("\n") == 0 else f"the message has several lines: {error!r}"
    except (Exception, _HangError):
        problem = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    outcome.cases += 1
    outcome.slowest_s = max(outcome.slowest_s, time.process_time() - started)
    if problem:
        outcome.failures += (f"{target.name} {number} ({name}):\n{problem[-1500:]}\n{path.read_bytes()[:400]!r}",)
    path.unlink()


def _too_long(number: int, frame: FrameType | None) -> None:
    raise _HangError


def _batches(chosen: list[Target], first: int, cases: int) -> Iterator[tuple[int, int, int]]:
    weight = sum(target.weight for target in chosen)
    for i, target in enumerate(chosen):
        share = -(-cases * target.weight // weight)
        for start in range(first, first + share, _BATCH):
            yield i, start, min(_BATCH, first + share - start)


def _play_batch(batch: tuple[int, int, int]) -> Outcome:
    return play(_CHOSEN[batch[0]], *batch[1:])


_CHOSEN: list[Target] = []


def _bound() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))


def fuzz(only: str, first: int, cases: int, jobs: int) -> list[Outcome]:
    """Play the cases in `jobs` processes of bounded memory; one outcome per target."""
    _CHOSEN[:] = [target for target in targets() if only in target.name]
    total = {target.name: Outcome(target.name) for target in _CHOSEN}
    batches = list(_batches(_CHOSEN, first, cases))
    with multiprocessing.get_context("fork").Pool(jobs, _bound, maxtasksperchild=20) as pool:
        for done, outcome in enumerate(pool.imap_unordered(_play_batch, batches), 1):
            sum_ = total[outcome.target]
            sum_.cases += outcome.cases
            sum_.refused += outcome.refused
            sum_.slowest_s = max(sum_.slowest_s, outcome.slowest_s)
            sum_.failures += outcome.failures
            print(f"\r{done} of {len(batches)} batches, {_failed(total)} failures", end="", file=sys.stderr)
    print(file=sys.stderr)
    return list(total.values())


def _failed(total: dict[str, Outcome]) -> int:
    return sum(len(outcome.failures) for outcome in total.values())


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000, help="of all targets together")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", default="", help="part of a target's name")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here")
    asked = parser.parse_args()
    started = time.perf_counter()
    outcomes = fuzz(asked.only, asked.first, asked.cases, asked.jobs)
    for outcome in outcomes:
        print(f"{outcome.target:20s} {outcome.cases:8,d} cases {outcome.refused:8,d} refused"
              f" {outcome.slowest_s:6.2f} s at most {len(outcome.failures):5d} failures")  # fmt: skip
        for failure in outcome.failures[:3]:
            print(failure)
    if asked.json:
        figures: dict[str, Any] = {"seconds": time.perf_counter() - started, "targets": [
            {**asdict(outcome), "failures": len(outcome.failures)} for outcome in outcomes
        ]}  # fmt: skip
        asked.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if any(outcome.failures for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
