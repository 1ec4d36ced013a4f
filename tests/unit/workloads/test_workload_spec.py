"""The keys of a workload file, the presets, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sim import catalog
from sim.documents import parse_yaml, validate
from sim.errors import ConfigError
from sim.rng import stream
from sim.workloads.arrivals import Poisson
from sim.workloads.builder import build_workload, load_workload
from sim.workloads.closed_loop import ClosedLoopClients
from sim.workloads.lengths import law
from sim.workloads.spec import WorkloadSpec

GOOD = """\
num_requests: 20
arrival: {kind: poisson, rate: 8}
input_tokens: {kind: lognormal, mean: 1155, std: 1100, max: 14050}
output_tokens: 211
"""


def read(text: str) -> WorkloadSpec:
    """The spec in a YAML text."""
    return validate(WorkloadSpec, parse_yaml(text, Path("w.yaml")))


def test_a_workload_file_is_read() -> None:
    """The mapping of the documentation gives the traffic it describes."""
    spec = read(GOOD)
    assert spec.arrival == Poisson(rate=8)
    traffic = build_workload(spec, seed=1)
    assert len(list(traffic)) == traffic.num_requests == 20
    assert traffic.describe()["mean_output_tokens"] == 211


def test_a_closed_loop_is_built() -> None:
    """The kind of arrival decides whether clients wait."""
    spec = read(GOOD.replace("{kind: poisson, rate: 8}", "{kind: closed_loop, concurrency: 4}"))
    traffic = build_workload(spec)
    assert isinstance(traffic, ClosedLoopClients)
    assert len(list(traffic)) == 4


def test_a_saved_spec_is_read_again() -> None:
    """A spec dumped with all its defaults means the same."""
    spec = read(GOOD)
    assert WorkloadSpec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rate: 8", "rat: 8", r"w.yaml:2: arrival.rat: unknown key \(valid, nearest first: rate, kind\)"),
        ("rate: 8", "rate: -1", "w.yaml:2: arrival.rate: -1: input should be greater than 0"),
        ("poisson", "poison", r"w.yaml:2: arrival.kind: 'poison': .*nearest first: poisson, "),
        ("kind: poisson, ", "", "w.yaml:2: arrival.kind: is required"),
        ("211", "0", "w.yaml:4: output_tokens: 0: input should be greater"),
        ("211", "{kind: lognorml, mean: 3}", "w.yaml:4: output_tokens.kind: 'lognorml': .*nearest first: lognormal"),
        ("211", "{kind: lognormal, mean: 3}", "w.yaml:4: output_tokens.std: is required"),
        ("211", "{kind: uniform, min: 30, max: 3}", r"w.yaml:4: output_tokens: min \(30\) is above max"),
        ("num_requests: 20", "", "num_requests or duration_s is required"),
        ("{kind: poisson, rate: 8}", "{kind: all_at_once}\nduration_s: 3", None),
        (
            "num_requests: 20\narrival: {kind: poisson, rate: 8}",
            "duration_s: 3\narrival: {kind: all_at_once}",
            "at once",
        ),
        ("output_tokens: 211", "", "output_tokens is required"),
        ("211", "211\ntime_scale: 3", "time_scale belongs to a trace"),
        ("211", "211\ntrace: x.csv", "num_requests does not go with a trace: say max_requests"),
        ("arrival:", "arival:", "w.yaml:2: arival: unknown key .*nearest first: arrival"),
        ("211", "211\non_too_long: dropp", "w.yaml:5: on_too_long: 'dropp': .*nearest first: drop"),
    ],
)
def test_mistakes_are_answered(old: str, new: str, message: str | None) -> None:
    """One line names file, line, key, value and the nearest valid choices."""
    if message is None:
        read(GOOD.replace(old, new))
        return
    with pytest.raises(ConfigError, match=message):
        read(GOOD.replace(old, new))


def test_every_key_is_documented() -> None:
    """The schema that users see describes every key."""
    for name, key in WorkloadSpec.model_json_schema()["properties"].items():
        assert key.get("description"), name


@pytest.mark.parametrize("name", catalog.names("workload"))
def test_presets_can_be_drawn(name: str) -> None:
    """Every shipped workload gives its requests and says where its figures come from."""
    spec, _ = load_workload(name)
    assert spec.source
    assert spec.description
    if spec.application is not None:
        assert 0 < len(list(build_workload(spec))) <= spec.num_requests
    elif spec.sessions is None:
        assert len(list(build_workload(spec))) == spec.num_requests
    else:
        assert 0 < len(list(build_workload(spec))) < build_workload(spec).num_requests == spec.num_requests


# What was measured: mean, p50, p90, p99 (the sources are cited in the files themselves).
MEASURED = {
    ("chat", "input_tokens"): (1155, 1020, 2734, 4142),
    ("chat", "output_tokens"): (211, 129, 424, None),  # the trace has few answers between 600 and its limit of 1000
    ("code", "input_tokens"): (2048, 1469, 5188, 7436),
    ("code", "output_tokens"): (28, 13, 55, 251),
    ("summarise", "input_tokens"): (2588, 2730, 3702, 3933),
    ("summarise", "output_tokens"): (291, 167, None, 3271),  # no lognormal has both percentiles of the tail
    ("reasoning", "input_tokens"): (1268, 208, None, 23423),
    ("reasoning", "output_tokens"): (1527, 792, 3432, 12607),
}


@pytest.mark.parametrize(("name", "key"), MEASURED)
def test_presets_reproduce_what_was_measured(name: str, key: str) -> None:
    """A preset's law has the mean of its source within 3 %, and its percentiles within 30 %."""
    lengths = law(getattr(load_workload(name)[0], key))
    mean, *percentiles = MEASURED[name, key]
    assert lengths.mean_tokens == pytest.approx(mean, rel=0.03)
    drawn = np.percentile(lengths.draw(stream(0, "test"), 200_000), [50, 90, 99])
    for ours, measured in zip(drawn, percentiles, strict=True):
        assert measured is None or ours == pytest.approx(measured, rel=0.3)


def test_the_chat_preset_is_as_bursty_as_its_trace() -> None:
    """The gaps of the conversation trace have a coefficient of variation of 1.09."""
    spec, _ = load_workload("chat")
    times = [r.arrival_ps for r in build_workload(spec.limited(100_000))]
    gaps = np.diff(times)
    assert gaps.std() / gaps.mean() == pytest.approx(1.09, rel=0.02)
