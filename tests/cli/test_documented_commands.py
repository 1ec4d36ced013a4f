"""Every `roofserve` command that a page shows is run here, as the page shows it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sim.cli import call

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted(p / "README.md" for p in ROOT.iterdir() if (p / "README.md").exists())]
LOG = ROOT / "tests" / "data" / "imports" / "vllm_v1.log"
BENCH = ROOT / "tests" / "data" / "imports" / "vllm_bench.json"
# What a reader has and a test has not: a server's log, its benchmark, a scenario of one's own.
STAND_INS = {"vllm-server.log": LOG, "my-vllm-bench.json": BENCH}
SMALL = ["--set", "workload.num_requests=40"]


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def _commands(page: Path) -> list[list[str]]:
    lines = [line for block in _blocks(page, "bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("roofserve ")]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the files that the pages assume their reader to have."""
    for name, source in STAND_INS.items():
        (tmp_path / name).write_bytes(source.read_bytes())
    (tmp_path / "my-scenario.yaml").write_bytes((ROOT / "scenarios" / "quickstart.yaml").read_bytes())
    (tmp_path / "scenarios").symlink_to(ROOT / "scenarios")
    for block in _blocks(ROOT / "hardware_profiles" / "README.md", "yaml"):
        if block.startswith("# my-gpu.yaml"):
            (tmp_path / "my-gpu.yaml").write_text(block)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.parent.relative_to(ROOT)))
def test_commands_of_a_page_work_in_their_order(page: Path, desk: Path) -> None:
    """A newcomer who types a page's commands one after the other sees every one of them succeed."""
    for arguments in _commands(page):
        small = arguments[0] == "run" and "workload=chat" not in arguments
        assert call([*arguments, *(SMALL if small else [])]) == 0, f"{page}: roofserve {shlex.join(arguments)}"


def test_the_readme_shows_commands() -> None:
    """The pages do show commands: an empty list would make the test above say nothing."""
    assert sum(len(_commands(page)) for page in PAGES) >= 10


def test_python_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The Python example of the README prints a latency in milliseconds."""
    [example] = _blocks(ROOT / "README.md", "python")
    exec(compile(example.replace('"workload.arrival.rate": 8', '"workload.num_requests": 50'), "README.md", "exec"), {})
    assert float(capsys.readouterr().out) > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.parent.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    """Every relative link and picture of a page exists."""
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page}: {target}"


def test_scheduler_example_of_the_page_serves_requests() -> None:
    """The scheduler that the page shows how to add really schedules: one request at a time."""
    from toy import ListWorkload, ToyTimer

    from sim.batch import DecodeBatch
    from sim.engine.cluster import Cluster
    from sim.engine.replica import ReplicaParts
    from sim.engine.router import RoundRobin
    from sim.kv.paged import PagedKV
    from sim.request import Request

    example = next(b for b in _blocks(ROOT / "sim" / "README.md", "python") if "class OneAtATime" in b)
    names: dict[str, object] = {}
    exec(compile(example, "sim/README.md", "exec"), names)
    kv, batch = PagedKV(100, 16), DecodeBatch()
    scheduler = names["OneAtATime"](kv, batch, max_num_seqs=8, max_num_batched_tokens=512)  # type: ignore[operator]
    workload = ListWorkload([Request(i, 0, 10, 5) for i in range(4)])
    cluster = Cluster(workload, [ReplicaParts(scheduler, kv, batch, ToyTimer())], RoundRobin(), max_model_len=100)
    cluster.run()
    steps = cluster.recorder.steps.table()
    assert workload.ended == [0, 1, 2, 3] and steps["running"].max() <= 1
