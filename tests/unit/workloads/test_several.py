"""Traffic whose requests ask for several answers."""

from __future__ import annotations

from typing import Any

import pytest

from sim.documents import Document, validate
from sim.errors import ConfigError
from sim.request import Request
from sim.sequences import Sequence
from sim.workloads.base import Workload
from sim.workloads.builder import build_workload
from sim.workloads.spec import WorkloadSpec

LAW = {"kind": "uniform", "min": 5, "max": 500}
BASE = {"num_requests": 50, "arrival": {"kind": "poisson", "rate": 2.0}, "input_tokens": LAW, "output_tokens": LAW}


def traffic(seed: int = 1, **keys: Any) -> Workload:
    """What the base spec with some keys means."""
    return build_workload(validate(WorkloadSpec, Document(None, {**BASE, **keys})), seed=seed)


def lengths(workload: Workload) -> list[tuple[int, ...]]:
    """The output lengths of every request."""
    return [r.group.lengths if isinstance(r, Sequence) else (r._output_tokens,) for r in workload]


def test_one_answer_is_a_plain_request() -> None:
    """`n: 1` is the default and makes no groups."""
    assert all(type(request) is Request for request in traffic(n=1))


def test_more_samples_shift_nobody() -> None:
    """The first sample is the answer there would be without; the second of two is the second of four."""
    one, two, four = (lengths(traffic(n=n)) for n in (1, 2, 4))
    assert [of[:1] for of in two] == [of[:1] for of in four] == one
    assert [of[1] for of in two] == [of[1] for of in four]
    assert len({len(set(of)) for of in four} - {1}) > 0  # lengths of their own
    assert lengths(traffic(n=4)) == four != lengths(traffic(seed=2, n=4))


def test_samples_are_cut_where_the_client_says() -> None:
    """`max_output_tokens` is for each sequence."""
    requests = list(traffic(n=4, max_output_tokens=100))
    assert all(max(r.group.lengths) <= 100 == r.max_output_tokens for r in requests if isinstance(r, Sequence))


def test_all_beams_are_as_long() -> None:
    """A beam search ends for all beams at once, and replaces them as the neutral model does unless it is said."""
    assert all(of == of[:1] * 3 for of in lengths(traffic(beam_width=3)))
    assert traffic(beam_width=2).describe()["beam_switch_probability"] == 0.25
    assert traffic(beam_width=2, beam_switch_probability=0.5).describe()["beam_switch_probability"] == 0.5


def test_clients_that_wait_ask_for_as_many() -> None:
    """What follows an answer has as many sequences, and the traffic says so."""
    workload = traffic(n=3, arrival={"kind": "closed_loop", "concurrency": 2})
    first = next(iter(workload))
    (following,) = workload.on_finish(first, 10)
    assert isinstance(following, Sequence)
    assert (len(following.group.lengths), following.forks) == (3, 2)
    assert (workload.describe()["n"], workload.num_requests) == (3, 50)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"n": 2, "beam_width": 2}, "n does not go with beam_width"),
        ({"beam_switch_probability": 0.1}, "there is no beam_width"),
        ({"beam_width": 1}, "beam_width"),
        ({"n": 0}, "n"),
    ],
)
def test_contradictions_are_refused(keys: dict[str, Any], problem: str) -> None:
    """Samples or beams, not both."""
    with pytest.raises(ConfigError, match=problem):
        traffic(**keys)
