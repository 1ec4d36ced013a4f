"""What a large run costs, stage by stage: CPU seconds and peak memory from the scenario to the report.

    python benchmarks/large.py 1000000
    python benchmarks/large.py 10000000 --no-command --out /var/tmp/run
    python benchmarks/large.py 100000 300000 1000000 --no-command      # does a request cost more in a longer run?

The stages are those of `roofserve run`, one after the other in a process of their own for each size; then, unless
`--no-command`, the command itself. Peak memory is what the process has needed so far (its largest resident set), so a
stage that does not raise it fits into what an earlier one has used.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import yaml
from rich.console import Console
from rich.table import Table

SCENARIO = {
    "model": "meta-llama/Llama-2-7b-hf",
    "hardware": "h100-sxm",
    "workload": {"arrival": {"kind": "poisson", "rate": 12.0}, "input_tokens": 512, "output_tokens": 256},
    "engine": {"max_num_seqs": 256, "max_num_batched_tokens": 2048},
}
"""70 % of what one GPU can do, about 17 requests/s."""
_MIB = 1024  # ru_maxrss counts KiB on Linux


def _stages(requests: int, out: Path) -> Iterator[str]:
    """Runs the stages one by one; each name is yielded when its stage is done."""
    from sim.audit import audit
    from sim.breakdown import breakdown
    from sim.build import build
    from sim.engine.cluster import Cluster
    from sim.latencies import LatencySamples
    from sim.metrics import summarise
    from sim.results import RunResult
    from sim.run import manifest
    from sim.scenario import load_scenario
    from sim.series import series_of

    yield "imports"
    setup = build(load_scenario(_scenario(requests), {}))
    yield "build"
    parts, limit = [setup.parts()], setup.engine.max_model_len
    cluster = Cluster(setup.workload, parts, setup.router(), max_model_len=limit, directory=out)
    cluster.run()
    recorder = cluster.recorder
    tables = (recorder.requests.table(), recorder.steps.table(), recorder.segments.table())
    result = RunResult(*tables, manifest=manifest(setup))
    yield "simulation"
    audit(result, cluster.submitted)
    yield "audit"
    result.manifest["facts"]["breakdown"] = breakdown(setup.timer, result.steps)
    yield "time by operator"
    result.save(out)
    yield "save"
    samples = LatencySamples(result)
    yield "gaps between tokens"
    series = series_of(result)
    yield "series over time"
    summary = summarise(result, samples, series)
    yield "summary"
    from sim.report.evidence import Evidence
    from sim.report.write import write_report

    yield "import of the report"
    write_report(Evidence(result, summary, samples, series), out)
    yield "figures and page"


def _scenario(requests: int) -> dict[str, object]:
    workload = {**SCENARIO["workload"], "num_requests": requests}  # type: ignore[dict-item]
    return {**SCENARIO, "workload": workload}


def _measure(requests: int, out: Path) -> None:
    """The child: a line per stage on stdout."""
    begin = time.process_time()
    for name in _stages(requests, out):
        now = time.process_time()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MIB
        print(f"{name}\t{now - begin}\t{peak}", flush=True)
        begin = now


def _command(requests: int, out: Path) -> tuple[float, float]:
    """CPU seconds and peak MiB of `roofserve run`."""
    file = out / "scenario.yaml"
    file.write_text(yaml.safe_dump(_scenario(requests)))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "sim", "run", str(file), "--out", str(out / "command")], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, after.ru_maxrss / _MIB


def _table(requests: int, out: Path, command: bool) -> Table:
    table = Table(title=f"{requests:,} requests", title_style="bold")
    for heading in ("Stage", "CPU s", "Peak MiB", "CPU us/request"):
        table.add_column(heading, justify="left" if heading == "Stage" else "right")
    rows: list[tuple[str, float, float]] = []
    if command:  # first: the largest resident set of all children so far is then its own
        rows.append(("roofserve run", *_command(requests, out)))
    child = [sys.executable, __file__, str(requests), "--out", str(out), "--child"]
    for line in subprocess.run(child, check=True, capture_output=True, text=True).stdout.splitlines():
        name, cpu, peak = line.split("\t")
        rows.append((name, float(cpu), float(peak)))
    stages = [row for row in rows if row[0] != "roofserve run"]
    rows = [*stages, ("all stages", sum(row[1] for row in stages), stages[-1][2]), *rows[: len(rows) - len(stages)]]
    for name, cpu, peak in rows:
        table.add_row(name, f"{cpu:,.2f}", f"{peak:,.0f}", f"{cpu / requests * 1e6:,.1f}")
    return table


@click.command(help=__doc__)
@click.argument("sizes", metavar="REQUESTS...", type=click.IntRange(min=1), nargs=-1, required=True)
@click.option("--command/--no-command", default=True, help="Run `roofserve run` as well.")
@click.option("--out", type=click.Path(path_type=Path), help="Keep the files there. [default: a temporary directory]")
@click.option("--child", is_flag=True, hidden=True)
def main(sizes: tuple[int, ...], command: bool, out: Path | None, child: bool) -> None:
    """Measure and print."""
    for requests in sizes:
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(temporary) if out is None else out
            place.mkdir(parents=True, exist_ok=True)
            if child:
                _measure(requests, place)
            else:
                Console(width=80).print(_table(requests, place, command))


if __name__ == "__main__":
    main()
