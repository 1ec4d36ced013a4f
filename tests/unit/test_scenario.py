"""A scenario file, and what is laid over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from sim import catalog
from sim.errors import ConfigError
from sim.presets import Policy
from sim.scenario import EngineSpec, Scenario, load_scenario, parse_setting
from sim.slo import METRICS

BASE = {"model": "meta-llama/Llama-3.1-8B", "hardware": "h100-sxm", "workload": "chat"}


@pytest.mark.parametrize("name", catalog.names("scenario"))
def test_every_shipped_scenario_is_read(name: str) -> None:
    """It knows its name and its file."""
    loaded = load_scenario(name)
    assert loaded.scenario.name
    assert loaded.path == catalog.find("scenario", name)


def test_three_keys_are_enough() -> None:
    """Model, hardware and workload; the rest has defaults."""
    scenario = load_scenario(BASE).scenario
    assert (scenario.seed, scenario.replicas.count, scenario.engine.preset, scenario.slo) == (0, 1, "vllm-v1", {})
    for key in BASE:
        with pytest.raises(ConfigError, match=f"{key}: is required but missing"):
            load_scenario({k: v for k, v in BASE.items() if k != key})


def test_the_file_gives_the_name(tmp_path: Path) -> None:
    """A scenario without a name is called like its file; a name that is written stays."""
    path = tmp_path / "mine.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in BASE.items()))
    assert load_scenario(path).scenario.name == "mine"
    assert load_scenario(path, {"name": "other"}).scenario.name == "other"
    assert load_scenario(BASE).scenario.name == ""


def test_a_policy_is_a_name_or_a_mapping() -> None:
    """`chunked` and `{kind: chunked}` mean the same; other keys are its options."""
    written = [load_scenario({**BASE, "engine": {"scheduler": s}}) for s in ("chunked", {"kind": "chunked"})]
    assert written[0].scenario == written[1].scenario
    assert Policy(kind="a", max_wait_ms=20).options == {"max_wait_ms": 20}  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("a=1", 1),
        ("a=1e-3", 0.001),
        ("a= x ", "x"),
        ("a=", None),
        ("a=b=c", "b=c"),
        ("a={kind: poisson, rate: 2}", {"kind": "poisson", "rate": 2}),
        ("a=[1, 2]", [1, 2]),
        ("a='1'", "1"),
    ],
)
def test_values_of_settings_are_yaml(setting: str, value: Any) -> None:
    """Numbers, texts, lists and mappings, as after a colon; only the first equals sign separates."""
    assert parse_setting(setting) == ("a", value)


keys = st.sampled_from(["a", "b", "c"])
settings = st.lists(st.tuples(st.lists(keys, min_size=1, max_size=3), st.integers()), max_size=6)


@given(settings)
def test_the_last_setting_wins_and_others_stay(pairs: list[tuple[list[str], int]]) -> None:
    """Settings below a free key are laid over each other in order; the mapping they are laid over is not touched."""
    overrides = {".".join(["workload", "x", *path, "end"]): value for path, value in pairs}
    base = {**BASE, "workload": {"x": {"kept": 7}}}
    workload = load_scenario(base, overrides).scenario.workload
    assert isinstance(workload, dict)
    assert workload["x"]["kept"] == 7
    for path, value in pairs:
        here: Any = workload["x"]
        for part in path:
            here = here[part]
        assert here["end"] == overrides[".".join(["workload", "x", *path, "end"])]
        assert isinstance(value, int)
    assert base == {**BASE, "workload": {"x": {"kept": 7}}}


def test_settings_reach_named_policies_lists_and_workloads() -> None:
    """A policy that is only named gets options, an item of a list gets another value, a named workload its own keys."""
    stages = {"kind": "stages", "stages": [{"rate": 1, "duration_s": 2}, {"rate": 3, "duration_s": 2}]}
    loaded = load_scenario(
        {**BASE, "workload": {"arrival": stages}, "replicas": {"router": "random"}},
        {"replicas.router.salt": 1, "workload.arrival.stages.1.rate": 9},
    ).scenario
    assert loaded.replicas.router == Policy(kind="random", salt=1)  # type: ignore[call-arg]
    assert isinstance(loaded.workload, dict)
    assert [stage["rate"] for stage in loaded.workload["arrival"]["stages"]] == [1, 9]
    assert stages["stages"][1]["rate"] == 3
    chat = load_scenario(BASE, {"workload.num_requests": 3}).scenario.workload
    assert isinstance(chat, dict)
    assert (chat["num_requests"], chat["arrival"]["kind"]) == (3, "gamma")


def test_a_trace_of_a_named_workload_is_still_found(tmp_path: Path) -> None:
    """When keys of a workload file are overridden, its trace is still looked for beside it."""
    folder = tmp_path / "w"
    folder.mkdir()
    (folder / "t.csv").touch()
    (folder / "w.yaml").write_text("trace: t.csv\n")
    workload = load_scenario({**BASE, "workload": str(folder / "w.yaml")}, {"workload.time_scale": 2}).scenario.workload
    assert workload == {"trace": str(folder / "t.csv"), "time_scale": 2}
    trace = load_scenario({**BASE, "workload": str(folder / "t.csv")}, {"workload.time_scale": 2}).scenario.workload
    assert trace == {"trace": str(folder / "t.csv"), "time_scale": 2}


def test_a_setting_inside_a_value_is_refused() -> None:
    """A number has no keys."""
    with pytest.raises(ConfigError, match=r"^--set: seed\.x: seed is 3, which has no key 'x'$"):
        load_scenario({**BASE, "seed": 3}, {"seed.x": 1})


@pytest.mark.parametrize("value", [True, "64", 1.5, 2**31])
def test_whole_numbers_are_whole_numbers(value: Any) -> None:
    """Truth values, texts, fractions and what no engine can count are not taken for a number of sequences."""
    with pytest.raises(ConfigError, match=r"engine\.max_num_seqs"):
        load_scenario({**BASE, "engine": {"max_num_seqs": value}})


@pytest.mark.parametrize("word", METRICS)
@pytest.mark.parametrize("statistic", ["", "_mean", "_median", "_p50", "_p99", "_p99.9"])
def test_objectives(word: str, statistic: str) -> None:
    """Every metric, with or without a statistic, in milliseconds or seconds."""
    slo = {f"{word}{statistic}_{unit}": 1.5 for unit in ("ms", "s")}
    assert load_scenario({**BASE, "slo": slo}).scenario.slo == slo
    with pytest.raises(ConfigError, match=r"is not an objective \(valid, nearest first: "):
        load_scenario({**BASE, "slo": {f"{word}{statistic}": 1}})


@pytest.mark.parametrize("schema", [Scenario, EngineSpec])
def test_every_key_is_described(schema: type[BaseModel]) -> None:
    """The descriptions are the user's documentation."""
    assert [name for name, field in schema.model_fields.items() if not field.description] == []
