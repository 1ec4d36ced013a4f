"""Roofserve: a roofline-calibrated discrete-event simulator of LLM inference serving.

from sim import load_scenario, simulate
result = simulate(load_scenario("quickstart"))
result.requests["first_token_ps"]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sim.errors import ConfigError, GateFailed, InvariantError, SimError

if TYPE_CHECKING:
    from sim.results import RunResult
    from sim.run import simulate
    from sim.scenario import load_scenario

__all__ = ["ConfigError", "GateFailed", "InvariantError", "RunResult", "SimError", "load_scenario", "simulate"]

# Imported on first use: numpy and the engine behind them take a second, which `roofserve --help` does not need.
_LAZY = {"RunResult": "sim.results", "simulate": "sim.run", "load_scenario": "sim.scenario"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
