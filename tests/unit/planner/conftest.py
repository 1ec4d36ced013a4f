"""A small world for plans: a model and GPUs on which a simulation takes a few milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sim.planner.trial import Base

SCENARIO = {
    "name": "toy",
    "model": "meta-llama/Llama-3.2-1B",
    "hardware": "l4",
    "workload": {
        "num_requests": 300,
        "arrival": {"kind": "poisson", "rate": 10},
        "input_tokens": {"kind": "lognormal", "mean": 400, "std": 300, "max": 4000},
        "output_tokens": {"kind": "uniform", "min": 1, "max": 60},
    },
    "engine": {"max_model_len": 8192},
    "slo": {"ttft_p99_ms": 600, "tpot_p99_ms": 60},
}


@pytest.fixture
def base() -> Callable[..., Base]:
    """A base scenario with some keys overridden."""

    def make(**overrides: Any) -> Base:
        return Base(SCENARIO, {key.replace("__", "."): value for key, value in overrides.items()})

    return make
