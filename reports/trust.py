"""Regenerates reports/trust.md: what was tried to make the simulator wrong, crash or lose work, and what came of it.

    python reports/trust.py                 # everything (make trust): an hour or so
    python reports/trust.py --share         # a small share of it, nothing written: what CI runs

Exit code 1 when anything was found.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import requires, version
from pathlib import Path

import jinja2
import pyarrow.parquet as pq

from sim.audit import audit
from sim.build import build
from sim.run import run_setup
from sim.scenario import load_scenario

HERE = Path(__file__).parent
ROOT = HERE.parent
SCENARIO = {
    "model": "meta-llama/Llama-3.1-8B", "hardware": "h100-sxm",
    "workload": {"num_requests": 4000, "arrival": {"kind": "poisson", "rate": 12}, "input_tokens": 512,
                 "output_tokens": 256},
}  # fmt: skip
SWEEP = """\
scenario: {scenario}
grid:
  seed: [{seeds}]
  workload.arrival.rate: [{rates}]
"""
POINT = """\
model: meta-llama/Llama-3.1-8B
hardware: h100-sxm
workload: {num_requests: 20, arrival: {kind: poisson, rate: 4}, input_tokens: 100, output_tokens: 20}
"""


@dataclass(frozen=True)
class Amount:
    """How much of everything."""

    fuzz_cases: int
    kills: int
    sweep_points: int
    audits: int


FULL, SHARE = Amount(200_000, 60, 10_000, 5), Amount(15_000, 6, 200, 2)


def properties() -> dict[str, int]:
    """Tests whose cases hypothesis draws, by folder of tests."""
    found: dict[str, int] = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        folder = file.relative_to(ROOT / "tests").parts[0]
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and any("given" in ast.dump(mark) for mark in node.decorator_list):
                found[folder] = found.get(folder, 0) + 1
    return found


def laws() -> int:
    """Tests in the folder of laws."""
    files = (ROOT / "tests/laws").glob("test_*.py")
    return sum(len(re.findall(r"^def test_", file.read_text(), re.MULTILINE)) for file in files)


def fuzz(amount: Amount, scratch: Path) -> dict[str, object]:
    """The figures of `make fuzz`."""
    figures = scratch / "fuzz.json"
    command = [sys.executable, "-m", "fuzz.run", "--cases", str(amount.fuzz_cases), "--json", str(figures)]
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    if not figures.exists():
        raise RuntimeError(ended.stderr)
    found: dict[str, object] = json.loads(figures.read_text())
    if ended.returncode:
        print(ended.stdout, file=sys.stderr)
    return found


def kills(amount: Amount, scratch: Path) -> dict[str, int]:
    """kill -9 at random moments of a run and of a sweep: half files found, and results that differ afterwards."""
    scenario, sweep = scratch / "s.yaml", scratch / "sweep.yaml"
    scenario.write_text(POINT.replace("num_requests: 20", "num_requests: 3000"))
    point = scratch / "point.yaml"
    point.write_text(POINT)
    sweep.write_text(SWEEP.format(scenario=point, seeds="1, 2, 3, 4, 5", rates="1, 2, 4, 8"))
    commands = {
        "run": ["run", str(scenario), "--no-report"],
        "sweep": ["sweep", str(sweep), "--jobs", "1"],
    }
    broken = differing = done = 0
    for name, command in commands.items():
        quiet = scratch / f"{name}-quiet"
        took = _call([*command, "--out", str(quiet)])
        for number in range(amount.kills // 2):
            place, moment = scratch / f"{name}-{number}", random.Random(f"{name}/{number}")
            _call([*command, "--out", str(place)], moment.uniform(0.1, 1.1) * took)
            broken += _half_files(place)
            _call([*command, "--out", str(place)])
            differing += not _same(quiet, place)
            done += 1
    return {"kills": done, "half_files": broken, "differing": differing}


def _call(arguments: list[str], killed_after_s: float | None = None) -> float:
    """Run the command, or kill it while it runs; the seconds it took."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "sim", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        process.wait(killed_after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return time.perf_counter() - started


def _half_files(directory: Path) -> int:
    readers: dict[str, Callable[[Path], object]] = {
        ".parquet": pq.read_table, ".json": lambda file: json.loads(file.read_text()),
    }  # fmt: skip
    broken = 0
    for file in directory.rglob("[!.]*"):
        try:
            readers.get(file.suffix, lambda file: None)(file)
        except Exception:
            broken += 1
    return broken


def _same(one: Path, other: Path) -> bool:
    """Whether two directories hold the same results; the manifest tells the time, and is left out."""
    names = sorted(str(file.relative_to(one)) for file in one.rglob("[!.]*") if file.suffix in (".parquet", ".json"))
    names = [name for name in names if not name.endswith("manifest.json")]
    return all((other / name).exists() and (one / name).read_bytes() == (other / name).read_bytes() for name in names)


def audit_share(amount: Amount) -> float:
    """Processor time of the audit, of that of the run and its audit."""
    shares = []
    for _ in range(amount.audits):
        started = time.process_time()
        result = run_setup(build(load_scenario(SCENARIO)))
        whole, started = time.process_time() - started, time.process_time()
        audit(result, len(result.requests))
        shares.append((time.process_time() - started) / whole)
    return min(shares)


def large_sweep(amount: Amount, scratch: Path) -> dict[str, float]:
    """A sweep of many small points: all there, and what it took."""
    point, sweep = scratch / "p.yaml", scratch / "large.yaml"
    point.write_text(POINT)
    seeds = ", ".join(map(str, range(amount.sweep_points // 10)))
    sweep.write_text(SWEEP.format(scenario=point, seeds=seeds, rates="1, 2, 3, 4, 5, 6, 7, 8, 9, 10"))
    took = _call(["sweep", str(sweep), "--out", str(scratch / "large"), "--jobs", "2"])
    table = pq.read_table(scratch / "large" / "sweep.parquet")
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    ok = table["status"].to_pylist().count("ok")
    return {"points": table.num_rows, "ok": ok, "seconds": took, "largest_process_mib": largest}


def mutants() -> str:
    """The second line of the page about mutants."""
    page = HERE / "exactness.md"
    found = re.search(r"^(\d+ mutants: .*)$", page.read_text(), re.MULTILINE) if page.exists() else None
    return found[1] if found else ""


def dependencies() -> Iterable[tuple[str, str, str]]:
    """Name, the lowest version allowed, the version here."""
    for line in requires("roofserve") or []:
        if "extra" not in line:
            name = re.split(r"[<>=!~ ]", line)[0]
            yield name, line.removeprefix(name).strip(), version(name)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", action="store_true", help="a small share, and write nothing")
    amount = SHARE if (asked := parser.parse_args()).share else FULL
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        found = {
            "fuzz": fuzz(amount, scratch),
            "kills": kills(amount, scratch),
            "audit_share": audit_share(amount),
            "sweep": large_sweep(amount, scratch),
        }
    found |= {"properties": properties(), "laws": laws(), "mutants": mutants(), "dependencies": list(dependencies()),
              "python": sys.version.split()[0], "seconds": time.perf_counter() - started}  # fmt: skip
    template = jinja2.Template((HERE / "trust.md.j2").read_text(), trim_blocks=True, lstrip_blocks=True)
    page = template.render(found)
    print(page)
    if not asked.share:
        (HERE / "trust.md").write_text(page.rstrip() + "\n")
    failures = sum(target["failures"] for target in found["fuzz"]["targets"])
    lost = found["sweep"]["points"] - found["sweep"]["ok"]
    return int(bool(failures or found["kills"]["half_files"] or found["kills"]["differing"] or lost))


if __name__ == "__main__":
    sys.exit(main())
