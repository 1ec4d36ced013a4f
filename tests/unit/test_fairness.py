"""Who was served how."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sim.fairness import fairness, jain_index
from sim.request import State
from sim.results import REQUEST_COLUMNS, Table
from sim.units import PS_PER_S


def requests(**columns: list[int]) -> Table:
    """A request table whose unnamed columns are zero; times in seconds."""
    rows = len(columns["state"])
    scaled = {k: [x * PS_PER_S if k.endswith("_ps") and x > 0 else x for x in c] for k, c in columns.items()}
    return Table({name: np.array(scaled.get(name, [0] * rows), dtype=np.int64) for name in REQUEST_COLUMNS})


THREE = requests(
    tenant=[0, 0, 1, 1],
    state=[State.COMPLETED, State.ABORTED, State.COMPLETED, State.REJECTED],
    arrival_ps=[0, 0, 1, 1],
    scheduled_ps=[1, -1, 4, -1],
    first_token_ps=[2, -1, 6, -1],
    finish_ps=[3, 9, 8, 1],
    prompt_tokens=[10, 99, 20, 99],
    output_tokens=[5, 0, 40, 0],
)
TENANTS = {"workload": {"tenants": [{"name": "a", "priority": 0}, {"name": "b", "priority": 3}]}}


def test_the_longest_wait_counts_those_who_were_never_admitted() -> None:
    """A client who gave up after nine seconds waited longest; one who was refused did not wait."""
    assert fairness(THREE, {}) == {"longest_wait_ms": 9000.0, "tenants": []}


def test_each_tenant_has_a_line() -> None:
    """Service counts prompt tokens once and output tokens twice, of what was admitted."""
    found = fairness(THREE, TENANTS)
    a, b = found["tenants"]
    assert (a["tenant"], a["priority"], a["requests"], a["completed"]) == ("a", 0, 2, 1)
    assert (a["service_tokens"], b["service_tokens"]) == (20, 100)
    assert (a["mean_ttft_ms"], b["mean_ttft_ms"]) == (pytest.approx(2000), pytest.approx(5000))
    assert (a["longest_wait_ms"], b["longest_wait_ms"]) == (9000.0, 3000.0)
    assert found["jain_fairness_index"] == pytest.approx(120**2 / (2 * (20**2 + 100**2)))


def test_jain_index_runs_from_one_over_n_to_one() -> None:
    """Equal amounts give 1, everything for one gives 1 / n, nothing for anybody gives no number."""
    assert jain_index([7, 7, 7]) == 1
    assert jain_index([0, 0, 9]) == pytest.approx(1 / 3)
    assert math.isnan(jain_index([0, 0]))
