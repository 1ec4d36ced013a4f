"""Roofserve: a roofline-calibrated discrete-event simulator of LLM inference serving.

from sim import load_scenario, simulate
result = simulate(load_scenario("quickstart"))
result.requests["first_token_ps"]
"""

from sim.errors import ConfigError, GateFailed, InvariantError, SimError
from sim.results import RunResult
from sim.run import simulate
from sim.scenario import load_scenario

__all__ = ["ConfigError", "GateFailed", "InvariantError", "RunResult", "SimError", "load_scenario", "simulate"]
