"""`roofserve run`: what it prints, what it writes, and that the same question always gets the same answer."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sim.request import Reason, State
from sim.results import RunResult, Table

Command = Callable[..., Any]
FIGURES_AND_TABLES = ("report.html", "requests.parquet", "steps.parquet", "segments.parquet", "summary.json")


def summary(directory: Path) -> bytes:
    """The bytes of a run's summary."""
    return (directory / "summary.json").read_bytes()


def process_of(*arguments: object) -> list[str]:
    """The command in a process of its own; two figures will do."""
    few = "import sim.cli, sim.report.figures as f; f.KINDS = f.KINDS[:2]; sim.cli.main()"
    return [sys.executable, "-c", few, *map(str, arguments)]


def equal(a: Table, b: Table) -> bool:
    """Whether two tables hold the same values in the same order."""
    return all(np.array_equal(a[name], b[name]) for name in a.columns)


def accounted(directory: Path) -> Mapping[str, Any]:
    """A run's summary, after checking that it counts every row of the request table once."""
    told, requests = json.loads(summary(directory)), RunResult.load(directory).requests
    assert told["completed"] + told["failed"] + told["unfinished"] == len(requests) == told["num_prompts"]
    assert sum(told["failures"].values()) == told["failed"]
    assert len(set(requests["request_id"].tolist())) == len(requests)
    return told


def test_the_table_of_a_run(roofserve: Command, scenario: Path) -> None:
    """The answer on the terminal: what ran, how it went, latencies, and where the report is."""
    answer = roofserve("run", "s.yaml")
    assert (answer.code, answer.err) == (0, "")
    shown = ("Llama-3.1-8B", "1 x h100-sxm", "Successful requests", "Time to First Token", "Report: out/s/report.html")
    assert [words for words in shown if words not in answer.out] == []
    assert max(map(len, answer.out.splitlines())) <= 120
    assert "<html" in Path("out/s/report.html").read_text().lower()


@pytest.mark.parametrize("columns", ["80", "100"])
def test_the_table_keeps_to_the_terminal(
    columns: str, roofserve: Command, scenario: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is wider than the terminal, so that no row is torn apart."""
    monkeypatch.setenv("COLUMNS", columns)
    assert max(map(len, roofserve("run", "s.yaml").out.splitlines())) <= int(columns)


def test_json_and_nothing_else(roofserve: Command, scenario: Path) -> None:
    """--format json can be piped into another program: stdout is summary.json, stderr is silent."""
    answer = roofserve("run", "s.yaml", "--format", "json")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.encode() == summary(Path("out/s"))
    assert json.loads(answer.out)["completed"] == 40


def test_the_run_directory(roofserve: Command, scenario: Path) -> None:
    """Tables, summary, manifest, report and the resolved scenario are there, and no temporary file is."""
    roofserve("run", "s.yaml", "--out", "deep/er", "--timeline")
    written = {path.name for path in Path("deep/er").iterdir()}
    assert written == {
        *FIGURES_AND_TABLES, "manifest.json", "scenario.resolved.yaml", "timeline.json.gz", "figures",
    }  # fmt: skip
    manifest = json.loads(Path("deep/er/manifest.json").read_text())
    assert {"scenario", "seed", "versions", "hashes", "date", "wall_time_s"} <= set(manifest)


@pytest.mark.parametrize(("name", "folder"), [("../../evil", "evil"), ("a b/c\n", "a-b-c"), ("...", "run"), ("", "s")])
def test_the_name_of_a_scenario_is_no_path(name: str, folder: str, roofserve: Command, scenario: Path) -> None:
    """Whatever a scenario is called, its directory stays inside out/."""
    assert roofserve("run", "s.yaml", "--set", f"name={json.dumps(name)}").code == 0
    assert [path.name for path in Path("out").iterdir()] == [folder]


def test_seeds(roofserve: Command, scenario: Path) -> None:
    """The same seed gives the same bytes; another one gives other traffic."""
    roofserve("run", "s.yaml", "--out", "a")
    roofserve("run", "s.yaml", "--out", "b")
    roofserve("run", "s.yaml", "--out", "c", "--seed", 1)
    for name in FIGURES_AND_TABLES:
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()
    assert summary(Path("a")) != summary(Path("c"))
    assert json.loads(Path("c/manifest.json").read_text())["seed"] == 1


def test_the_same_bytes_in_any_process(scenario: Path, tmp_path: Path) -> None:
    """Two processes with different hash seeds write the same summary, tables, figures and page, byte for byte."""
    files = []
    for hash_seed in ("1", "2"):
        out = tmp_path / hash_seed
        command = process_of("run", scenario, "--out", out)
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": hash_seed})
        files.append({str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()})
    first, second = files
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} == {"manifest.json"}  # date and wall time


def test_step_by_step_gives_the_same_answer(roofserve: Command, scenario: Path) -> None:
    """Executing every step by itself changes no request and no line of the summary.

    Mean shares of KV blocks are the exception: between the rows of a run they are interpolated, and more rows say more.
    """
    crowded = ("--set", "workload.arrival.rate=400", "--set", "engine.num_gpu_blocks_override=300",
               "--set", "engine.max_model_len=2000")  # fmt: skip
    roofserve("run", "s.yaml", *crowded, "--out", "a")
    roofserve("run", "s.yaml", *crowded, "--out", "b", "--step-by-step")
    told = [json.loads(summary(Path(name))) for name in "ab"]
    shares = [{key: told_one["kv"].pop(key) for key in list(told_one["kv"]) if "mean" in key} for told_one in told]
    assert told[0] == told[1]
    assert shares[0] == pytest.approx(shares[1], abs=1e-3)
    a, b = RunResult.load("a"), RunResult.load("b")
    assert equal(a.requests, b.requests)
    assert len(a.steps) < len(b.steps)


def test_the_resolved_scenario_runs_again(roofserve: Command, scenario: Path) -> None:
    """The scenario a run saves, with every default filled in, gives the same run, from any folder."""
    roofserve("run", "s.yaml", "--out", "a", "--set", "engine.host.step_s=1 ms", "--set", "slo.ttft_p99_ms=5")
    os.chdir("a")
    answer = roofserve("run", "scenario.resolved.yaml", "--out", "../b")
    os.chdir("..")
    assert (answer.code, answer.err) == (0, "")
    for name in (*FIGURES_AND_TABLES, "scenario.resolved.yaml"):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes(), name
    saved = json.loads(Path("a/manifest.json").read_text())["scenario"]
    assert yaml.safe_load(Path("a/scenario.resolved.yaml").read_text()) == saved
    assert saved["engine"]["host"]["step_s"] == 0.001


def test_a_resolved_scenario_finds_its_files(roofserve: Command, tmp_path: Path) -> None:
    """Trace, GPU profile and model of one's own are named so that the resolved scenario finds them from elsewhere."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n0,374,44\n0.5,396,19\n0.6,100,1\n")
    (mine / "w.yaml").write_text("trace: t.csv\ntime_scale: 2\n")
    profile = (Path(__file__).parents[2] / "hardware_profiles" / "h100-sxm.yaml").read_text()
    (mine / "gpu.yaml").write_text(profile.replace("name: h100-sxm", "name: my-gpu"))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512, "vocab_size": 1000,
              "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 1024,
              "max_position_embeddings": 4096}  # fmt: skip
    (mine / "config.json").write_text(json.dumps(config))
    (mine / "s.yaml").write_text("model: ./config.json\nhardware: ./gpu.yaml\nworkload: w.yaml\n")
    assert roofserve("run", "mine/s.yaml", "--out", "a").code == 0
    answer = roofserve("run", "a/scenario.resolved.yaml", "--out", "b")
    assert (answer.code, answer.err) == (0, "")
    assert summary(Path("a")) == summary(Path("b"))
    assert accounted(Path("b"))["completed"] == 3


@pytest.mark.parametrize("workload", ["chat", "batch"])
def test_keys_of_a_named_workload_are_overridden(workload: str, roofserve: Command, scenario: Path) -> None:
    """A scenario that only names its workload still lets single keys of it be set."""
    roofserve("run", "s.yaml", "--set", f"workload={workload}", "--set", "workload.num_requests=7", "--out", "a")
    assert accounted(Path("a"))["num_prompts"] == 7
    saved = json.loads(Path("a/manifest.json").read_text())["scenario"]["workload"]
    assert saved["num_requests"] == 7
    assert saved["source"]


def test_nested_settings_reach_the_run(roofserve: Command, scenario: Path) -> None:
    """--set reaches mappings that are not written yet, options of a policy, items of a list, and reads 1e-3."""
    settings = {
        "engine.kv_cache.block_size": "32", "engine.scheduler": "continuous", "engine.max_model_len": "2048",
        "engine.host.step_s": "1e-3", "replicas.count": "2", "replicas.router.kind": "random",
        "workload.arrival": "{kind: stages, stages: [{rate: 1, duration_s: 1}]}",
        "workload.arrival.stages.0.rate": "30", "engine.quantization.weights": "fp8",
    }  # fmt: skip
    answer = roofserve("run", "s.yaml", *(x for pair in settings.items() for x in ("--set", "=".join(pair))))
    assert (answer.code, answer.err) == (0, "")
    told = json.loads(Path("out/s/manifest.json").read_text())["scenario"]
    assert told["engine"]["kv_cache"]["block_size"] == 32
    assert told["engine"]["scheduler"] == {"kind": "continuous"}
    assert told["engine"]["host"]["step_s"] == 0.001
    assert told["engine"]["quantization"]["weights"] == "fp8"
    assert told["replicas"] == {"count": 2, "router": "random"}
    assert told["workload"]["arrival"]["stages"][0]["rate"] == 30
    assert told["workload"]["arrival"]["kind"] == "stages"


def test_a_log_sets_what_it_says_and_set_has_the_last_word(roofserve: Command, scenario: Path) -> None:
    """KV blocks and resolved flags come from a vLLM start-up log, each with a note; --set still overrides them."""
    Path("v.log").write_text(
        "INFO non-default args: {'max_num_seqs': 77, 'max_num_batched_tokens': 4096, 'block_size': 32}\n"
        "INFO # GPU blocks: 1234, # CPU blocks: 0\n"
    )
    answer = roofserve("run", "s.yaml", "--from-log", "v.log", "--set", "engine.max_num_seqs=55", "--out", "a")
    assert (answer.code, answer.err) == (0, "")
    manifest = json.loads(Path("a/manifest.json").read_text())
    assert manifest["facts"]["num_gpu_blocks"] == 1234
    engine = manifest["scenario"]["engine"]
    assert (engine["max_num_seqs"], engine["max_num_batched_tokens"], engine["kv_cache"]["block_size"]) == (
        55,
        4096,
        32,
    )
    assert "from v.log: engine.num_gpu_blocks_override = 1234" in manifest["facts"]["notes"]
    assert not [note for note in manifest["facts"]["notes"] if "max_num_seqs" in note]


def test_every_request_ends_for_a_reason(roofserve: Command, scenario: Path) -> None:
    """Too long for the context, too large for the KV memory, given up by the client: each is counted by name."""
    scenario.write_text(
        "model: meta-llama/Llama-3.1-8B\nhardware: h100-sxm\n"
        "engine: {max_model_len: 3000, num_gpu_blocks_override: 100}\n"
        "workload:\n  num_requests: 300\n  arrival: {kind: poisson, rate: 200}\n  client_timeout_s: 0.4\n"
        "  input_tokens: {kind: empirical, values: [100, 800, 2000, 4000]}\n  output_tokens: 20\n"
    )
    assert roofserve("run", "s.yaml", "--out", "a").code == 0
    told = accounted(Path("a"))
    requests = RunResult.load("a").requests
    reasons = Counter(Reason(code).name.lower() for code in requests["reason"].tolist() if code)
    assert told["failures"] == reasons
    assert set(reasons) == {"too_long", "never_fits", "client_timeout"}
    aborted = requests.where(requests["state"] == State.ABORTED)
    patience_ps = aborted["finish_ps"] - aborted["arrival_ps"]
    assert patience_ps.min() >= 400_000_000_000
    assert patience_ps.max() < 500_000_000_000  # a step that runs is not torn apart
    assert told["completed"] > 0


def test_an_interrupted_run_keeps_what_happened(scenario: Path, tmp_path: Path) -> None:
    """Ctrl-C while the progress bar runs writes valid files about what there is, and exits with 130."""
    master, slave = pty.openpty()
    command = process_of("run", scenario, "--out", tmp_path / "a", "--step-by-step", "--format", "json",
                         "--set", "workload.num_requests=1000000")  # fmt: skip
    terminal = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, env=terminal) as process:
        os.close(slave)
        shown = b""
        while b"/1000000" not in shown.replace(b",", b""):
            shown += os.read(master, 4096)
        process.send_signal(signal.SIGINT)
        threading.Thread(target=_drain, args=[master], daemon=True).start()  # a full terminal would stop the bar
        assert process.stdout is not None
        out = process.stdout.read()
        assert process.wait() == 130
    told = accounted(tmp_path / "a")
    assert out == summary(tmp_path / "a")
    assert told["interrupted"]
    assert 0 < told["num_prompts"] < 1_000_000
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["interrupted"]
    assert (tmp_path / "a" / "report.html").stat().st_size > 10_000


def _drain(terminal: int) -> None:
    with suppress(OSError):  # which is how a terminal says that nobody is at the other end
        while os.read(terminal, 4096):
            pass
    os.close(terminal)


def test_output_into_a_pipe_that_closes(scenario: Path, tmp_path: Path) -> None:
    """`roofserve list models | head -1` ends without a complaint."""
    command = f"{sys.executable} -m sim list models | head -1"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path)
    assert ended.stdout.split()[0] == "model"
    assert ended.stderr == ""
