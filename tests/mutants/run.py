"""Break the rules of the program one by one, and see which test notices: `make mutants`.

A mutant is a patch in one of the `.diff` files beside this one, applied to a copy of the repository. The page that is
written names for each rule the first test that failed. Exit code 1 when a mutant lives, or its patch no longer applies.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

for library in ("hypothesis", "numpy", "pandas", "pyarrow.parquet", "pydantic", "scipy", "simpy", "yaml"):
    importlib.import_module(library)  # once, not once per mutant
FORK = multiprocessing.get_context("fork")
ROOT = Path(__file__).resolve().parents[2]
MOST_CPU_S = 200
"""Processor time of one test run. One that needs more hangs, which counts as noticed."""
LIVES, STALE = "**nobody**", "**the patch does not apply**"


@dataclass(frozen=True)
class Mutant:
    """A rule, and the lines of one source file that break it: `old`, found exactly once, becomes `new`."""

    group: str
    tests: tuple[str, ...]
    """Where the test that notices should be, in the order in which they are run."""
    rule: str
    file: str
    old: str
    new: str
    equivalent: str
    """Why no test can tell this mutant from the program, where that is so."""


def read(file: Path) -> Iterator[Mutant]:
    """Groups begin with `# title` and `tests: ...`; mutants with `## rule`, their file, and then a piece of a diff.

    A line `equivalent: why` before the file says that nobody can notice.
    """
    for group in file.read_text().split("\n# "):
        title, tests, *_ = group.removeprefix("# ").split("\n")
        for mutant in group.split("\n## ")[1:]:
            rule, *rest = mutant.strip("\n").split("\n")
            equivalent = rest.pop(0).removeprefix("equivalent: ") if rest[0].startswith("equivalent: ") else ""
            old, new = ("".join(f"{line[1:]}\n" for line in rest[1:] if line[0] in mark) for mark in (" -", " +"))
            yield Mutant(title, tuple(tests.split()[1:]), rule, rest[0], old, new, equivalent)


def all_mutants() -> list[Mutant]:
    """Those of all files."""
    return [mutant for file in sorted(Path(__file__).parent.glob("*.diff")) for mutant in read(file)]


def applied(mutant: Mutant, healthy: str) -> str | None:
    """The broken source; None if the patch does not apply."""
    lines = "\n" + healthy
    return lines.replace("\n" + mutant.old, "\n" + mutant.new)[1:] if lines.count("\n" + mutant.old) == 1 else None


def verdict(mutant: Mutant) -> str:
    """The test that fails in a copy of the repository with this mutant in it."""
    file = ROOT / mutant.file
    broken = applied(mutant, file.read_text()) if file.exists() else None
    if broken is None:
        return STALE
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "repository"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "out"))
        (copy / mutant.file).write_text(broken)
        return first_failure(copy, mutant.tests)


def first_failure(copy: Path, tests: tuple[str, ...]) -> str:
    """Run tests until one fails; its name, or `LIVES`."""
    ours, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=run_tests, args=(copy, tests, theirs))
    process.start()
    theirs.close()
    try:
        return str(ours.recv())
    except EOFError:
        return "hangs"
    finally:
        process.join()


def run_tests(copy: Path, tests: tuple[str, ...], answer: Connection) -> None:
    """In a process of its own, which began with the libraries loaded."""
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU_S, MOST_CPU_S))
    os.chdir(copy)
    os.environ.update(PYTHONPATH=str(copy), HYPOTHESIS_PROFILE="quick")
    sys.path[:0] = [str(copy), str(copy / "tests")]
    first = FirstFailure()
    options = ["-x", "-n", "0", "-p", "no:cacheprovider", "--tb=no"]
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):  # noqa: PTH123
        code = pytest.main([*options, *(f"tests/{test}" for test in tests)], plugins=[first])
    answer.send(f"`{first.name}`" if first.name else LIVES if code == 0 else "does not start")


class FirstFailure:
    """A pytest plugin that remembers which test failed."""

    name = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid.removeprefix("tests/").split("[")[0]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.name:
            self.name = f"{report.nodeid.removeprefix('tests/')} (does not load)"


def verdicts(chosen: list[Mutant], jobs: int) -> Iterator[str]:
    """What became of each mutant, in order."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(verdict, chosen)


HEAD = """`make mutants` regenerates this page.

# Do the tests bite?

Each line is a rule of the program. It was taken out of a copy (the patches are in `tests/mutants/`), the tests of its
part were run until one failed, and that test is named. `laws/test_exactness.py` compares leaping, single-stepping and a
naive simulator that was written from the rules alone.
"""


def page(results: dict[Mutant, str]) -> str:
    """The report."""
    caught = sum(result not in (LIVES, STALE) for result in results.values())
    equal = sum(bool(mutant.equivalent) for mutant in results)
    lines = [HEAD, f"{len(results)} mutants: {caught} noticed, {equal} not to be told from the program."]
    group = ""
    for mutant, result in results.items():
        if mutant.group != group:
            group = mutant.group
            lines += ["", f"## {group}", "", "| rule taken out | noticed by |", "|---|---|"]
        lines.append(f"| {mutant.rule} | {mutant.equivalent or result} |")
    return "\n".join(lines) + "\n"


def to_look_at(results: dict[Mutant, str]) -> Iterable[str]:
    """Mutants that live, patches that do not apply, and mutants said to be equivalent that are not."""
    for mutant, result in results.items():
        if result == STALE or (result == LIVES) != bool(mutant.equivalent):
            yield f"{mutant.group}: {mutant.rule}: {result}"


def main() -> int:
    """Run all mutants and write the page, or only those whose group, rule or file contains a word."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="?", default="", help="part of a group's title, a rule or a file")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    chosen = [m for m in all_mutants() if options.only in f"{m.group}|{m.rule}|{m.file}"]
    results: dict[Mutant, str] = {}
    for mutant, result in zip(chosen, verdicts(chosen, options.jobs), strict=True):
        results[mutant] = result
        print(f"{mutant.group}: {mutant.rule}: {result}", flush=True)
    if not options.only:
        (ROOT / "reports" / "exactness.md").write_text(page(results))
    bad = list(to_look_at(results))
    print(f"\n{len(results)} mutants, {len(bad)} to look at", *bad, sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
