"""Fit an engine's parameters to one's own server: results of a benchmark client, and the scenario that describes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sim.errors import ConfigError
from sim.imports.measured import MeasuredRun
from sim.imports.read import read_run
from sim.presets import EnginePreset, load_preset
from sim.scenario import load_scenario
from sim.validation.serving.case import Case, Traffic
from sim.validation.serving.left_out import Values, fit, save_preset, with_values
from sim.validation.serving.predict import Predicted, predict
from sim.validation.serving.table import one_part, poisson, same

PARAMETERS = ("host.step_s", "host.sequence_s", "host.token_s", "host.request_s", "host.prompt_token_s", "gemm",
              "moe", "attention_decode")  # fmt: skip
"""What one server's results may move; a few runs say little more."""
_METRICS = {
    "mean_ttft_ms": "ttft_mean", "mean_tpot_ms": "tpot_mean", "mean_e2el_ms": "e2e_mean",
    "output_throughput": "out_tok_s", "request_throughput": "req_s",
}  # fmt: skip
_COLUMNS = {
    "arrival": ("arrival_s", "arrival", "start_time"), "prompt": ("in_tok", "input_tokens", "prompt_tokens"),
    "answer": ("out_tok", "output_tokens", "completion_tokens"), "ttft": ("ttft_ms",), "e2e": ("e2e_ms", "latency_ms"),
}  # fmt: skip
_ROUNDS = 2
"""The schedule changes with the parameters, so that the fit goes on once from a new simulation."""
_DEFAULT_REQUESTS = 500


@dataclass(frozen=True)
class OwnFit:
    """The preset before and after, the values that were fitted, and what each predicts of every run."""

    preset: EnginePreset
    before: Sequence[Predicted]
    after: Sequence[Predicted]
    start: Values
    values: Values
    cases: Sequence[Case]


def own_case(where: str, scenario: str, overrides: Mapping[str, Any]) -> Case:
    """The run in a result file of `vllm bench serve`, inference-perf, guidellm or aiperf, or in a CSV of requests.

    The scenario describes the server; traffic is what the file says, and what it leaves out the scenario's. Raises
    ConfigError for a file that cannot be read or says too little.
    """
    path = Path(where)
    if path.suffix == ".csv":
        traffic, values = _from_csv(path)
    else:
        run = read_run(where)
        path = run.path  # of the file itself where one of several runs was chosen
        traffic, values = _from_results(run)
    loaded = load_scenario(scenario, overrides)
    labels = {"model": loaded.scenario.model, "gpu": loaded.scenario.hardware, "engine": loaded.scenario.engine.preset}
    data = {key: value for key, value in loaded.document.data.items() if key != "workload"}
    return Case(where, "own", labels, path, data, traffic, parts=one_part(values, len(traffic)))


def fit_own(cases: Sequence[Case], folder: Path) -> OwnFit:
    """Fit the engine's parameters to all cases together; presets that are tried are written into `folder`."""
    names = {case.labels["engine"] for case in cases}
    if len(names) > 1:
        raise ConfigError("all results must be of one engine preset", key="engine.preset", value=", ".join(names))
    preset = load_preset(names.pop())
    before = found = _simulated(cases, {})
    start = values = _parameters(preset)
    for number in range(_ROUNDS):
        values = fit(list(zip(cases, found, strict=True)), with_values(preset, values), values=values, few=True)
        path = folder / f"fitted-{number}.yaml"
        save_preset(with_values(preset, values), path)
        found = _simulated(cases, {"engine.preset": str(path)})
    return OwnFit(with_values(preset, values), before, found, start, values, cases)


def _simulated(cases: Sequence[Case], keys: Mapping[str, Any]) -> list[Predicted]:
    found = [predict(case, keys, with_shares=True) for case in cases]
    for case, predicted in zip(cases, found, strict=True):
        if predicted.problem:
            raise ConfigError(f"cannot be simulated: {predicted.problem}", file=case.path)
    return found


def _parameters(preset: EnginePreset) -> Values:
    host, factors = preset.host.model_dump(), preset.kernel_factors
    return {name: host[name[5:]] if name.startswith("host.") else factors.get(name, 1.0) for name in PARAMETERS}


def _from_results(run: MeasuredRun) -> tuple[Traffic, dict[str, float]]:
    metrics, meta = run.metrics, run.meta
    values = {ours: metrics[theirs] for theirs, ours in _METRICS.items() if metrics.get(theirs, 0) > 0}
    count = int(metrics.get("completed") or meta.get("num_prompts") or _DEFAULT_REQUESTS)
    totals = [metrics.get(name) for name in ("total_input_tokens", "total_output_tokens")]
    if None in totals:
        raise ConfigError("does not say how many tokens went in and out", file=run.path)
    prompt, answer = (float(total or 0) / count for total in totals)
    lengths = same(prompt, count), same(answer, count)
    rate, clients = meta.get("request_rate"), meta.get("max_concurrency")
    if rate is not None and np.isfinite(float(rate)) and float(rate) > 0:
        return Traffic(*lengths, "trace", poisson(float(rate), count)), values
    if clients:
        return Traffic(*lengths, "closed_loop", concurrency=int(clients)), values
    return Traffic(*lengths), values


def _from_csv(path: Path) -> tuple[Traffic, dict[str, float]]:
    import pandas as pd

    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"is not a readable CSV table ({error})", file=path) from error
    named = {}
    for name, spellings in _COLUMNS.items():
        column = next((spelling for spelling in spellings if spelling in table), None)
        if column is None:
            raise ConfigError("lacks a column", file=path, key=name, choices=spellings)
        named[name] = table[column].to_numpy(float)
    chosen = np.isfinite(np.stack(list(named.values()))).all(axis=0)
    if not chosen.any():
        raise ConfigError("holds no complete request", file=path)
    columns = {name: values[chosen] for name, values in named.items()}
    order = np.argsort(columns["arrival"], kind="stable")
    arrival, prompt, answer, ttft, e2e = (columns[name][order] for name in _COLUMNS)
    lengths = np.maximum(np.rint(prompt), 1).astype(np.int64), np.maximum(np.rint(answer), 1).astype(np.int64)
    end_s = (arrival + e2e / 1e3).max() - arrival.min()
    several = answer > 1
    values = {"ttft_mean": ttft.mean(), "e2e_mean": e2e.mean(), "out_tok_s": answer.sum() / end_s}
    if several.any():
        values["tpot_mean"] = ((e2e - ttft)[several] / (answer[several] - 1)).mean()
    return Traffic(*lengths, "trace", arrival), {name: float(value) for name, value in values.items()}
