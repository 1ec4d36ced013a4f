"""Simulate a case and compute what its table has measured."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sim.build import build
from sim.cost.calibrated_kernels import formats_of
from sim.errors import SimError
from sim.regime import Regime, judge
from sim.request import State
from sim.results import RunResult, Table
from sim.run import run_setup
from sim.scenario import load_scenario
from sim.setup import Setup
from sim.units import PS_PER_S, ceil_div
from sim.validation.serving.case import Case, Floats, Nominal, Part, Traffic
from sim.validation.serving.shares import Shares, shares_of
from sim.workloads.arrivals import AllAtOnce, ClosedLoop
from sim.workloads.base import Workload
from sim.workloads.closed_loop import ClosedLoopClients
from sim.workloads.replay import TraceReplay, TraceRows
from sim.workloads.synthetic import OpenLoop
from sim.workloads.trace_table import Trace

_BLOCK_TOKENS = 16
_MS = 1e3


@dataclass(frozen=True)
class Predicted:
    """What became of a case: metrics per part, whether its queue grew without end, or why there is nothing."""

    parts: tuple[Mapping[str, float], ...] = ()
    overloaded: bool | None = None
    problem: str = ""
    shares: tuple[Shares, ...] = ()
    """What the latencies of each part consist of, where that was asked for."""
    formats: Mapping[str, str] = field(default_factory=dict)
    """The measured number format of each operator class, likewise."""


def predict(case: Case, overrides: Mapping[str, Any] | None = None, *, with_shares: bool = False) -> Predicted:
    """Simulate a case; `overrides` are dotted keys of the scenario. A case that cannot run says why."""
    if case.problem or case.traffic is None:
        return Predicted(problem=case.problem or "has no traffic")
    try:
        setup, result = _simulate(case, case.traffic, overrides or {})
        requests = result.requests
        parts = tuple(metrics(requests, part, case.nominal) for part in case.parts)
        shares = shares_of(setup, result, case.parts) if with_shares else ()
        formats = formats_of(setup.timer.forward) if with_shares else {}
    except SimError as error:
        return Predicted(problem=str(error))
    except Exception as error:  # one row of a table must not cost the others
        return Predicted(problem=f"failed: {error!r}")
    if not any(parts):
        return Predicted(problem="no request completed in the simulation" if case.parts else "states no metric")
    kind = {"closed_loop": "closed_loop", "at_once": "all_at_once"}.get(case.traffic.client, "")
    behind = judge(requests, kind).regime is Regime.OVERLOADED if not kind else None
    return Predicted(parts, behind, shares=shares, formats=formats)


def _simulate(case: Case, traffic: Traffic, overrides: Mapping[str, Any]) -> tuple[Setup, RunResult]:
    with tempfile.TemporaryDirectory() as folder:
        scenario = {**case.scenario, "name": case.id, "workload": _placeholder(traffic)}
        if case.config is not None:
            path = Path(folder) / "config.json"
            path.write_text(json.dumps(case.config), encoding="utf-8")
            scenario["model"] = str(path)
        if case.never_evicts:
            overrides = {**overrides, **_seats(scenario, overrides, traffic)}
        setup = build(load_scenario(scenario, overrides))
        result = run_setup(replace(setup, workload=_workload(traffic, case.path)))
    if result.manifest["interrupted"]:
        raise KeyboardInterrupt
    return setup, result


def _seats(scenario: Mapping[str, Any], overrides: Mapping[str, Any], traffic: Traffic) -> dict[str, int]:
    """As many seats as there is room for requests of final length; exact for equal lengths.

    Buffers shrink with the seats, so the room is that of a server with few of them.
    """
    setup = build(load_scenario(scenario, {**overrides, "engine.max_num_seqs": 1}))
    longest = int((traffic.input_tokens + traffic.output_tokens).max())
    each = ceil_div(longest, setup.engine.kv_cache["block_size"]) + setup.fixed_blocks
    most = int(scenario["engine"].get("max_num_seqs", setup.engine.max_num_batched_tokens))
    seats = max(1, min(most, setup.num_blocks // each))
    # The budget must not be smaller than the seats, and blocks are those of one data-parallel group.
    blocks = setup.num_blocks // setup.engine.data_parallel_size
    return {"engine.max_num_seqs": seats, "engine.num_gpu_blocks_override": blocks}


def _placeholder(traffic: Traffic) -> dict[str, Any]:
    """A scenario must name some traffic; the real one is put in its place."""
    told: dict[str, Any] = {
        "arrival": {"kind": "all_at_once"},
        "num_requests": 1,
        "input_tokens": 1,
        "output_tokens": 1,
    }
    return told | ({} if traffic.timeout_s is None else {"client_timeout_s": traffic.timeout_s})


def _workload(traffic: Traffic, path: Path) -> Workload:
    rows = len(traffic)
    arrival_s: Floats = np.zeros(rows) if traffic.arrival_s is None else traffic.arrival_s - traffic.arrival_s.min()
    trace = Trace(
        "measured", path, np.rint(arrival_s * PS_PER_S).astype(np.int64), traffic.input_tokens, traffic.output_tokens,
        rows, prefix_hashes=_hashes(traffic), prefix_block_tokens=_BLOCK_TOKENS,
    )  # fmt: skip
    if traffic.client == "closed_loop":
        clients = ClosedLoop(concurrency=min(traffic.concurrency, rows))
        return ClosedLoopClients(clients, TraceRows(trace), num_requests=rows)
    if traffic.client == "at_once":
        return OpenLoop(AllAtOnce(), TraceRows(trace), num_requests=rows)
    return TraceReplay(trace)


def _hashes(traffic: Traffic) -> Any:
    """Per request the identity of its prompt's full blocks; None where no prompt comes twice."""
    if traffic.prompt_id is None:
        return None
    known: dict[int, tuple[int, ...]] = {}
    hashes = np.empty(len(traffic), object)
    for i, (prompt, tokens) in enumerate(zip(traffic.prompt_id.tolist(), traffic.input_tokens.tolist(), strict=True)):
        blocks = tokens // _BLOCK_TOKENS
        chain = known.get(prompt, ())
        if len(chain) < blocks:
            chain = known[prompt] = tuple((prompt << 20) + block for block in range(blocks))
        hashes[i] = chain[:blocks]
    return hashes


def metrics(requests: Table, part: Part, nominal: Nominal) -> dict[str, float]:
    """The metrics of one part that its table has measured too; times in ms, rates per second.

    Latencies are of completed requests; nothing is found when there is none. TPOT is
    (E2E - TTFT) / (n - 1), one value per request with n > 1.
    """
    number, done = requests["request_id"], requests["state"] == State.COMPLETED
    inside = done & (number >= part.first) & (number < part.last)
    if not inside.any():
        return {}
    ttft = (requests["first_token_ps"] - requests["arrival_ps"]) / PS_PER_S * _MS
    e2e = (requests["finish_ps"] - requests["arrival_ps"]) / PS_PER_S * _MS
    tokens = requests["output_tokens"]
    gaps = np.maximum(tokens - 1, 1)
    latencies = {"ttft": ttft, "e2e": e2e, "tpot": (e2e - ttft) / gaps}
    several = tokens > 1
    found: dict[str, float] = {}
    for name, values in latencies.items():
        chosen = inside & several if name == "tpot" else inside
        if chosen.any():
            steady = chosen & (number >= part.tails_from)
            found |= _statistics(name, values[chosen], values[steady if steady.any() else chosen])
    found |= _rates(requests, inside)
    if (inside & several).any():
        found["itl_mean"] = float((e2e - ttft)[inside & several].sum() / gaps[inside & several].sum())
    found |= _derived(found, nominal)
    return {metric: found[metric] for metric in part.measured if metric in found}


def _statistics(name: str, values: Floats, steady: Floats) -> dict[str, float]:
    found = {f"{name}_mean": float(values.mean())}
    found |= {f"{name}_p{q}": float(np.percentile(values, q)) for q in (50, 90)}
    return found | {f"{name}_p{q}": float(np.percentile(steady, q)) for q in (95, 99)}


def _rates(requests: Table, inside: Any) -> dict[str, float]:
    start = int(requests["arrival_ps"][inside].min())
    seconds = max((int(requests["finish_ps"][inside].max()) - start) / PS_PER_S, 1e-12)
    answers, prompts = (int(requests[name][inside].sum()) for name in ("output_tokens", "prompt_tokens"))
    return {
        "req_s": int(inside.sum()) / seconds,
        "out_tok_s": answers / seconds,
        "total_tok_s": (answers + prompts) / seconds,
    }


def _derived(found: Mapping[str, float], nominal: Nominal) -> dict[str, float]:
    """What tables call by other names, and the columns that they derive from the nominal sizes."""
    values = {"ttft": found["ttft_mean"], "out_tok_s_gpu": found["out_tok_s"] / nominal.num_gpus}
    if "tpot_mean" in found and nominal.osl:
        values["tpot"] = found["tpot_mean"]
        values["e2e_derived"] = e2e = values["ttft"] + values["tpot"] * (nominal.osl - 1)
        values["out_tok_s_gpu_derived"] = nominal.concurrency * nominal.osl / e2e * _MS / nominal.num_gpus
    return values
